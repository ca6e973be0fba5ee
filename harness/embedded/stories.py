"""Little stories whose people and things stay consistent, and questions about them."""

from dataclasses import dataclass, field

from harness.embedded.draws import Draws
from harness.embedded.lexicon import ANIMALS, COLORS, NAMES, PLACES, THINGS, TRAITS
from harness.embedded.skills import Pair

WENT = ("went to", "walked to", "ran to", "came to", "moved to", "hurried to")
TOOK = ("picked up", "took", "found", "grabbed", "got")
GAVE = ("gave", "handed", "passed")
LEFT = ("put down", "dropped", "left behind")
THEN = ("", "", "", "Then ", "Later ", "After that ", "Soon ")


@dataclass(slots=True)
class World:
    """Who is where and who holds what, so that every sentence told is possible."""

    people: list[str]
    things: list[str]
    place_of: dict[str, str] = field(default_factory=dict)
    holder_of: dict[str, str] = field(default_factory=dict)

    def held_by(self, person: str) -> list[str]:
        """The things that a person holds, in the order of `things`."""
        return [thing for thing in self.things if self.holder_of.get(thing) == person]


def _move(world: World, draws: Draws, person: str) -> str:
    place = draws.pick([p for p in PLACES if p != world.place_of.get(person)])
    world.place_of[person] = place
    return f"{person} {draws.pick(WENT)} the {place}."


def _handle(world: World, draws: Draws, person: str) -> str:
    """The person takes a free thing, or gives or drops the one in hand."""
    held = world.held_by(person)
    if not held:
        free = [thing for thing in world.things if thing not in world.holder_of]
        if not free:
            return _move(world, draws, person)
        thing = draws.pick(free)
        world.holder_of[thing] = person
        return f"{person} {draws.pick(TOOK)} the {thing}."
    thing = held[0]
    others = [p for p in world.people if p != person and not world.held_by(p)]
    if others and draws.chance(0.6):
        receiver = draws.pick(others)
        world.holder_of[thing] = receiver
        return f"{person} {draws.pick(GAVE)} the {thing} to {receiver}."
    del world.holder_of[thing]
    return f"{person} {draws.pick(LEFT)} the {thing}."


def _events(world: World, draws: Draws, count: int) -> list[str]:
    sentences = []
    for index in range(count):
        person = draws.pick(world.people)
        act = _move if draws.chance(0.55) else _handle
        sentence = act(world, draws, person)
        sentences.append((draws.pick(THEN) if index else "") + sentence)
    return sentences


WHERE = ("Where is {}?", "Where is {} now?", "In which place is {}?")
WHO_HAS = ("Who has the {}?", "Who holds the {} now?", "Whose hands hold the {}?")
CARRIES = ("What does {} carry?", "What is {} holding?", "Which thing does {} have now?")


def _questions(world: World, draws: Draws) -> list[Pair]:
    questions = [
        Pair(draws.pick(WHERE).format(person), place) for person, place in world.place_of.items()
    ]
    for thing, person in world.holder_of.items():
        questions.append(Pair(draws.pick(WHO_HAS).format(thing), person))
        questions.append(Pair(draws.pick(CARRIES).format(person), thing))
    return questions


def story_question(draws: Draws) -> Pair:
    """A story of three to seven events and a question about how it ended."""
    world = World(draws.sample(NAMES, draws.integer(2, 3)), draws.sample(THINGS, 2))
    sentences = _events(world, draws, draws.integer(3, 7))
    questions = _questions(world, draws)
    if not questions:  # Everything was dropped and nobody moved: one more sentence settles it.
        sentences.append(_move(world, draws, world.people[0]))
        questions = _questions(world, draws)
    question, answer = draws.pick(questions)
    return Pair(f"{' '.join(sentences)} {question}", answer)


OPENINGS = (
    "Once there was {a_trait} {animal} called {hero}.",
    "{hero} was {a_trait} {animal}.",
    "In the {home} lived {a_trait} {animal} named {hero}.",
    "Long ago, {a_trait} {animal} called {hero} lived near the {home}.",
)
WISHES = (
    "{hero} wanted {a_color} {thing}.",
    "More than anything, {hero} wished for {a_color} {thing}.",
    "One day {hero} lost {a_color} {thing}.",
    "{hero} dreamed of {a_color} {thing} every night.",
)
JOURNEYS = (
    "So {hero} left the {home} and went to the {place}.",
    "One morning {hero} walked from the {home} to the {place}.",
    "{hero} asked a friend, {friend}, and together they went to the {place}.",
)
MEETINGS = (
    'There {hero} met {friend}. "Have you seen {a_color} {thing}?" asked {hero}.',
    '"Where can I find {a_color} {thing}?" {hero} asked {friend}.',
    "At the {place} {friend} was waiting with a smile.",
)
ENDINGS = (
    "{friend} found the {thing} at the {place} and gave it to {hero}. "
    "The {trait} {animal} was happy.",
    "The {color} {thing} was under a tree. {hero} thanked {friend} and went home to the {home}.",
    "They looked all day, and at last {friend} saw the {thing}. {hero} took it back to the {home}.",
    "There was no {thing} at the {place}, but {hero} and {friend} became good friends.",
)


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def story(draws: Draws) -> str:
    """A plain story of about five sentences; hero, friend, thing and places stay the same."""
    hero, friend = draws.sample(NAMES, 2)
    home, place = draws.sample(PLACES, 2)
    trait, color = draws.pick(TRAITS), draws.pick(COLORS)
    words = {
        "hero": hero,
        "friend": friend,
        "home": home,
        "place": place,
        "animal": draws.pick(ANIMALS),
        "trait": trait,
        "a_trait": _with_article(trait),
        "color": color,
        "a_color": _with_article(color),
        "thing": draws.pick(THINGS),
    }
    parts = [draws.pick(part) for part in (OPENINGS, WISHES, JOURNEYS, MEETINGS, ENDINGS)]
    return " ".join(part.format(**words) for part in parts)
