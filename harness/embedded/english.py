"""Two small fine-tuning tasks in plain English, for bases that read it. Standard library only.

- `comments`: viewers' comments under videos on statistics, answered briefly, in one voice, with a sign-off. A
  walk-through of QLoRA has 59 such rows, 50 to learn and 9 to evaluate.
- `instructions`: an instruction, an input or none, and an answer that can be checked, as Alpaca has them.

All text is the project's own. No question occurs in two splits, nor twice in one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from harness.embedded.corpus import Part, part_of
from harness.embedded.draws import Draws

SIGN_OFF = "–Ada"
_TOPICS = {
    "variance": "It is how far values lie from their mean, squared and averaged.",
    "the median": "It is the value in the middle once you have sorted them all.",
    "a fat tail": "It means that very rare events decide much of the sum.",
    "overfitting": "The model has learned the noise of its data along with the signal.",
    "a p-value": "It is how often chance alone would look at least this striking.",
    "the central limit theorem": "Sums of many small independent things look like a bell curve.",
    "Bayes' theorem": "It turns what you believed and what you saw into what you should believe.",
    "gradient descent": "Step downhill, look again, and step once more.",
    "regularization": "You ask the model to be simple as well as right.",
    "the bootstrap": "Draw from your own sample again and again, and watch how the answer moves.",
    "correlation": "Two things move together; why they do is another question.",
    "a confounder": "It is a third thing that moves both of the two you are looking at.",
    "cross-validation": "Every row gets a turn at being the test.",
    "the learning rate": "It is the length of each step that training takes.",
    "an embedding": "It is a list of numbers that stands for a word, so that near words are near.",
    "attention": "Each word looks at the others and takes what it needs.",
    "quantization": "You round the weights to a few levels and keep the scale beside them.",
    "a low-rank update": "Two thin matrices do the work of one large one.",
    "a power law": "Double the size, and the count falls by the same factor each time.",
    "entropy": "It is the number of yes-or-no questions that you still have to ask.",
}
_KINDS: tuple[tuple[str, Callable[[str, str], str]], ...] = (
    ("What is {topic}?", lambda _, said: said),
    (
        "I have watched it twice and still do not get {topic}.",
        lambda _, said: f"Tricky one! {said}",
    ),
    ("The part on {topic} was so clear, thank you!", lambda _, __: "Glad it helped :)"),
    (
        "Could you make a video on {topic} next?",
        lambda topic, _: f"Great idea, {topic} is on my list.",
    ),
)
MOST_COMMENTS = len(_TOPICS) * len(_KINDS)


class Asked(NamedTuple):
    """One row: what is asked, its second part or "", and the answer."""

    prompt: str
    response: str
    input: str = ""


class EnglishSplits(NamedTuple):
    """A task's rows."""

    train: tuple[Asked, ...]
    validation: tuple[Asked, ...]
    test: tuple[Asked, ...]


# ---- comments ----------------------------------------------------------------------------------


def _comments(train_rows: int, validation_rows: int, test_rows: int, seed: int) -> EnglishSplits:
    wanted = train_rows + validation_rows + test_rows
    if wanted > MOST_COMMENTS:
        raise ValueError(
            f"comments has {MOST_COMMENTS} rows in all, and train_rows={train_rows}, "
            f"validation_rows={validation_rows} and test_rows={test_rows} are {wanted}; ask for fewer"
        )
    everything = [
        Asked(comment.format(topic=topic), f"{reply(topic, said)} {SIGN_OFF}")
        for topic, said in _TOPICS.items()
        for comment, reply in _KINDS
    ]
    rows = Draws(f"task/comments/{seed}").sample(everything, wanted)
    held = train_rows + validation_rows
    return EnglishSplits(tuple(rows[:train_rows]), tuple(rows[train_rows:held]), tuple(rows[held:]))


# ---- instructions ------------------------------------------------------------------------------

_CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Kenya": "Nairobi",
    "Greece": "Athens",
    "Cuba": "Havana",
}
_WORDS = (
    *("apple", "river", "stone", "cloud", "horse", "table", "green", "music", "paper", "light"),
    *("bread", "house", "ocean", "train", "plant", "night", "water", "glass", "chair", "smile"),
)


def _sequence(draws: Draws) -> Asked:
    first, second = draws.integer(1, 9), draws.integer(1, 9)
    terms = [first, second]
    adds = draws.chance(0.5)
    step = draws.integer(1, 9)
    while len(terms) < 9:
        terms.append(terms[-1] + terms[-2] if adds else terms[-1] + step)
    if not adds:
        terms = [first + step * index for index in range(9)]
    known, wanted = (", ".join(map(str, part)) for part in (terms[:5], terms[5:]))
    rule = "in which each number is the sum of the two before it" if adds else "of equal steps"
    return Asked(f"Continue the sequence {rule}.", wanted, known)


def _words(draws: Draws) -> Asked:
    words = draws.sample(_WORDS, draws.integer(3, 5))
    prompt, answer = draws.pick(
        (
            ("Write the words in reverse order.", words[::-1]),
            ("Put the words in alphabetical order.", sorted(words)),
            ("Which of the words is the first in the dictionary?", sorted(words)[:1]),
        )
    )
    return Asked(prompt, ", ".join(answer), ", ".join(words))


def _capital(draws: Draws) -> Asked:
    country = draws.pick(tuple(_CAPITALS))
    other = draws.pick(tuple(sorted(set(_CAPITALS) - {country})))
    return Asked(
        f"Name the capitals of {country} and {other}.",
        f"{_CAPITALS[country]} and {_CAPITALS[other]}.",
    )


def _instruction(draws: Draws) -> Asked:
    return draws.pick((_sequence, _words, _capital))(draws)


def _distinct(draws: Draws, part: Part, rows: int) -> Iterator[Asked]:
    seen: set[tuple[str, str]] = set()
    while len(seen) < rows:
        row = _instruction(draws)
        question = row.prompt, row.input
        if question not in seen and part_of("\n".join(question)) is part:
            seen.add(question)
            yield row


def _instructions(
    train_rows: int, validation_rows: int, test_rows: int, seed: int
) -> EnglishSplits:
    sizes = {
        Part.TASK_TRAIN: train_rows,
        Part.TASK_VALIDATION: validation_rows,
        Part.TASK_TEST: test_rows,
    }
    if max(sizes.values()) > MOST_INSTRUCTIONS:
        raise ValueError(
            f"instructions has at most {MOST_INSTRUCTIONS} rows a split, got {max(sizes.values())}"
        )
    return EnglishSplits(
        *(
            tuple(_distinct(Draws(f"task/instructions/{part.value}/{seed}"), part, rows))
            for part, rows in sizes.items()
        )
    )


MOST_INSTRUCTIONS = 20_000
ENGLISH_TASKS = {"comments": _comments, "instructions": _instructions}


def make_english_task(
    name: str, *, train_rows: int, validation_rows: int, test_rows: int, seed: int
) -> EnglishSplits:
    """Return the splits of a task; the same arguments give the same bytes on every machine.

    Raises ValueError for sizes that the task does not have.
    """
    return ENGLISH_TASKS[name](train_rows, validation_rows, test_rows, seed)
