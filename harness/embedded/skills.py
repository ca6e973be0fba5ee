"""The skills of the embedded language: small generators of a prompt and its only right answer.

Each skill is a function from a stream of draws to a `Pair`. Lists are written with spaces or with
commas, and an answer that is a list is written as the list in the prompt was.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness.embedded.draws import Draws
from harness.embedded.lexicon import COLORS, LETTERS, NAMES, NOUNS, ORDINALS

SEPARATORS = (" ", ", ")


class Pair(NamedTuple):
    """A prompt and the response it should get; rendered as prompt, newline, response."""

    prompt: str
    response: str


def _numbers(draws: Draws, count: int) -> list[str]:
    return [str(number) for number in draws.sample(range(100), count)]


def _items(draws: Draws, count: int) -> list[str]:
    """`count` different items of one kind: mostly nouns, else names, letters or numbers."""
    kind = draws.integer(0, 9)
    if kind < 6:
        return draws.sample(NOUNS, count)
    if kind < 7:
        return draws.sample(NAMES, count)
    if kind < 8:
        return draws.sample(LETTERS, count)
    return _numbers(draws, count)


def _crowd(draws: Draws, count: int) -> list[str]:
    """`count` items in which repetitions are common: drawn from three nouns."""
    pool = draws.sample(NOUNS, 3)
    return [draws.pick(pool) for _ in range(count)]


COPY = (
    "Repeat these words: {}",
    "Say this again: {}",
    "Copy the list: {}",
    "Write the same list once more: {}",
    "Echo this: {}",
    "Please repeat: {}",
    "Here is a list: {}. Copy it.",
    "Read {} and write it down again.",
)


def copy(draws: Draws) -> Pair:
    """Repeat a list of two to eight items."""
    shown = draws.pick(SEPARATORS).join(_items(draws, draws.integer(2, 8)))
    return Pair(draws.pick(COPY).format(shown), shown)


REVERSE = (
    "Reverse the list: {}",
    "Write these backwards: {}",
    "Turn this list around: {}",
    "Say the words from last to first: {}",
    "List in the opposite order: {}",
    "Please reverse: {}",
    "Here is a list: {}. Reverse it.",
    "Read {} and write it from the end to the start.",
)


def reverse(draws: Draws) -> Pair:
    """Reverse a list of two to seven items."""
    separator = draws.pick(SEPARATORS)
    items = _items(draws, draws.integer(2, 7))
    prompt = draws.pick(REVERSE).format(separator.join(items))
    return Pair(prompt, separator.join(items[::-1]))


SORT_WORDS = (
    "Sort the words: {}",
    "Put these in alphabetical order: {}",
    "Order from a to z: {}",
    "Arrange the words by the alphabet: {}",
    "Please sort: {}",
    "Here is a list: {}. Sort it.",
)
SORT_NUMBERS = (
    "Sort the numbers: {}",
    "Put these numbers in order: {}",
    "Order from small to large: {}",
    "Arrange the numbers, smallest first: {}",
    "Please sort the numbers: {}",
    "Here are numbers: {}. Sort them.",
)


def sort(draws: Draws) -> Pair:
    """Sort two to six nouns or letters by the alphabet, or numbers below 100 by size."""
    separator = draws.pick(SEPARATORS)
    count = draws.integer(2, 6)
    if draws.chance(0.4):
        items = _numbers(draws, count)
        prompt = draws.pick(SORT_NUMBERS).format(separator.join(items))
        return Pair(prompt, separator.join(sorted(items, key=int)))
    items = draws.sample(NOUNS if draws.chance(0.75) else LETTERS, count)
    prompt = draws.pick(SORT_WORDS).format(separator.join(items))
    return Pair(prompt, separator.join(sorted(items)))


COUNT_ALL = (
    "How many words are in this list: {}",
    "Count the words: {}",
    "What is the length of the list: {}",
    "Here is a list: {}. How long is it?",
    "Say how many words you see: {}",
)
COUNT_ONE = (
    "How many times does {target} appear in: {items}",
    "Count the word {target} in this list: {items}",
    "Here is a list: {items}. How often do you see {target}?",
    "In {items}, how many times is there {target}?",
)


def count(draws: Draws) -> Pair:
    """Count the words of a list, or how often one of them occurs in it."""
    separator = draws.pick(SEPARATORS)
    if draws.chance(0.5):
        items = draws.sample(NOUNS, draws.integer(2, 9))
        return Pair(draws.pick(COUNT_ALL).format(separator.join(items)), str(len(items)))
    items = _crowd(draws, draws.integer(3, 9))
    target = draws.pick(items)
    prompt = draws.pick(COUNT_ONE).format(target=target, items=separator.join(items))
    return Pair(prompt, str(items.count(target)))


ADD = (
    "What is {} plus {}?",
    "{} + {} =",
    "Add {} and {}.",
    "Find the sum of {} and {}.",
    "Compute {} + {}.",
    "How much is {} and {} together?",
)
SUBTRACT = (
    "What is {} minus {}?",
    "{} - {} =",
    "From {} take away {}.",
    "Find the difference of {} and {}.",
    "Compute {} - {}.",
    "How much is left of {} without {}?",
)
GAIN = (
    "{name} has {first} {thing}s and finds {second} more. How many does {name} have now?",
    "There were {first} {thing}s. {name} brought {second} more. How many are there?",
    "{name} bought {first} {thing}s, then {second} again. How many is that?",
)
LOSS = (
    "{name} has {first} {thing}s and loses {second}. How many does {name} have now?",
    "There were {first} {thing}s. {name} took {second} away. How many are left?",
    "{name} had {first} {thing}s and sold {second}. How many are left?",
)
COUNTABLE = (
    "bag",
    "ball",
    "bell",
    "book",
    "coin",
    "cup",
    "egg",
    "hat",
    "key",
    "nail",
    "nut",
    "pen",
)


def arithmetic(draws: Draws) -> Pair:
    """Add or subtract numbers below 100; no result is negative. A quarter are word problems."""
    first, second = draws.integer(0, 99), draws.integer(0, 99)
    gains = draws.chance(0.5)
    if not gains:
        first, second = max(first, second), min(first, second)
    answer = str(first + second if gains else first - second)
    if draws.chance(0.25):
        prompt = draws.pick(GAIN if gains else LOSS).format(
            name=draws.pick(NAMES), thing=draws.pick(COUNTABLE), first=first, second=second
        )
    else:
        prompt = draws.pick(ADD if gains else SUBTRACT).format(first, second)
    return Pair(prompt, answer)


LARGER = (
    "Which is larger, {} or {}?",
    "Name the bigger number: {} or {}.",
    "Of {} and {}, which is more?",
)
SMALLER = (
    "Which is smaller, {} or {}?",
    "Name the lesser number: {} or {}.",
    "Of {} and {}, which is less?",
)


def compare(draws: Draws) -> Pair:
    """Name the larger or the smaller of two numbers below 100."""
    first, second = draws.sample(range(100), 2)
    if draws.chance(0.5):
        return Pair(draws.pick(LARGER).format(first, second), str(max(first, second)))
    return Pair(draws.pick(SMALLER).format(first, second), str(min(first, second)))


LOOKUP_COLOR = (
    ("The {} is {}.", " ", "What color is the {}?"),
    ("the {} is {}", ", ", "Say the color of the {}."),
    ("{}: {}", ", ", "Which color belongs to {}?"),
)
LOOKUP_PRICE = (
    ("The {} costs {}.", " ", "What is the price of the {}?"),
    ("{} = {}", ", ", "Give the number of {}."),
    ("{}: {}", ", ", "Which number belongs to {}?"),
)
LOOKUP_OWNER = (
    ("{} has the {}.", " ", "What does {} have?"),
    ("{} likes the {}.", " ", "What does {} like?"),
    ("{}: {}", ", ", "What goes with {}?"),
)


def lookup(draws: Draws) -> Pair:
    """Find the value of one key among two to six pairs written in the prompt."""
    size = draws.integer(2, 6)
    forms, keys, values = draws.pick(
        (
            (LOOKUP_COLOR, NOUNS, COLORS),
            (LOOKUP_PRICE, NOUNS, range(100)),
            (LOOKUP_OWNER, NAMES, NOUNS),
        )
    )
    entry, separator, question = draws.pick(forms)
    pairs = list(zip(draws.sample(keys, size), draws.sample(values, size), strict=True))
    listed = separator.join(entry.format(key, value) for key, value in pairs)
    key, value = draws.pick(pairs)
    stop = "" if listed.endswith(".") else "."
    return Pair(f"{listed}{stop} {question.format(key)}", str(value))


AT_POSITION = (
    "What is the {} word in: {}",
    "Name the {} word of this list: {}",
    "Pick the {} one: {}",
    "Give me the {} word of {}.",
)
AFTER = ("Which word comes right after {} in: {}", "What follows {} in this list: {}")
BEFORE = ("Which word comes right before {} in: {}", "What stands just before {} in: {}")


def position(draws: Draws) -> Pair:
    """Name the word at a place of a list, or the neighbour of a given word."""
    items = draws.sample(NOUNS, draws.integer(3, 7))
    shown = draws.pick(SEPARATORS).join(items)
    place = draws.integer(0, min(len(items), len(ORDINALS)) - 1)
    kind = draws.integer(0, 3)
    if kind == 0 and place > 0:
        return Pair(draws.pick(AFTER).format(items[place - 1], shown), items[place])
    if kind == 1 and place > 0:
        return Pair(draws.pick(BEFORE).format(items[place], shown), items[place - 1])
    if kind == 2:
        return Pair(draws.pick(AT_POSITION).format("last", shown), items[-1])
    return Pair(draws.pick(AT_POSITION).format(ORDINALS[place], shown), items[place])


MEMBER = (
    "Is {} in this list: {}",
    "Does {} appear in: {}",
    "Do you see {} here: {}",
)


def member(draws: Draws) -> Pair:
    """Say yes or no: does the list contain the word?"""
    items = draws.sample(NOUNS, draws.integer(2, 8) + 1)
    outsider, items = items[0], items[1:]
    present = draws.chance(0.5)
    target = draws.pick(items) if present else outsider
    prompt = draws.pick(MEMBER).format(target, draws.pick(SEPARATORS).join(items))
    return Pair(prompt, "yes" if present else "no")


REPLACE = (
    "Replace {} with {} in: {}",
    "Write {1} instead of {0}: {2}",
    "Change every {} to {}: {}",
)
REMOVE = ("Leave out {} from: {}", "Remove {} from this list: {}", "Write without {}: {}")


def edit(draws: Draws) -> Pair:
    """Replace or remove one word of a list of two to seven."""
    separator = draws.pick(SEPARATORS)
    newcomer, *items = draws.sample(NOUNS, draws.integer(2, 7) + 1)
    target = draws.pick(items)
    shown = separator.join(items)
    if draws.chance(0.5):
        answer = [newcomer if item == target else item for item in items]
        return Pair(draws.pick(REPLACE).format(target, newcomer, shown), separator.join(answer))
    answer = [item for item in items if item != target]
    return Pair(draws.pick(REMOVE).format(target, shown), separator.join(answer))


SPELL = (
    "Spell {} and {}.",
    "Write the letters of {} {}.",
    "How do you spell {} {}?",
    "Take {} {} apart into letters.",
)


def spell(draws: Draws) -> Pair:
    """Write two nouns letter by letter."""
    words = draws.sample(NOUNS, 2)
    return Pair(draws.pick(SPELL).format(*words), ", ".join(" ".join(word) for word in words))


def as_list(text: str) -> Sequence[str]:
    """The items of a list written in either of the two ways."""
    return text.split(", ") if ", " in text else text.split(" ")
