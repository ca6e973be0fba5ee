"""The words of the embedded language. Short words, so that most are one token."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    """
    ant apple axe bag ball bat bear bed bell bird boat book bowl box bread brush bus cake cap
    car cat chair clock coat coin cow crow cup deer desk dog door drum duck egg fan fish flag
    fork fox frog gate goat hat hen horse ink jar key kite lamp leaf lion map milk moon mouse
    mug nail nest net nut oar owl pan pear pen pig pin plum pot rake rat ring rope rose rug
    sack salt seal seed ship shoe sock soup spoon star sun tent tree vase well wolf wool
    """
)
NAMES = _words(
    """
    Ada Ann Ben Bob Cal Dan Eli Eva Fay Gus Hal Ida Ian Jan Joe Kai Kim Lea Leo Liz Max Mia Nia
    Ned Pam Ray Ron Sam Sue Tim Tom Zoe
    """
)
PLACES = _words(
    """
    attic barn cave cellar farm field garden hall harbor hill house inn kitchen lake market
    mill park river school tower
    """
)
COLORS = _words(
    """
    black blue brown gold gray green orange pink purple red white yellow
    """
)
THINGS = _words(
    """
    ball bell book box coin cup drum egg hat jar key kite lamp map pen ring rope rose spoon
    vase
    """
)
ANIMALS = _words(
    """
    bear bird cat cow crow deer dog duck fox frog goat hen horse lion mouse owl pig rat wolf
    """
)
TRAITS = _words(
    """
    brave calm clever happy kind lazy old proud quiet sad shy small tall young
    """
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
