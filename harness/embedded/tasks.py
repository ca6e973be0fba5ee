"""Four fine-tuning tasks for the embedded base. Standard library only.

- `facts`: random associations to memorise. The answer to a test prompt cannot be computed, only
  remembered from training, so the data hold a known number of bits and rank is capacity. Every
  association is trained in four phrasings and asked for in others: prompts are disjoint, the
  associations are the same.
- `rule`: a new verb, "zib": say the list backwards, then its length. Both halves are skills of the
  base; the test lists are new.
- `dialect`: prompts that the base already answers, to be answered in a storyteller's voice.
- `skills`: the base's own prompts and answers, each as often as in pretraining. There is little to learn;
  what rounding costs and what a base forgets is measured on them.

Responses use only words that the base has read: its output embedding is tied and frozen under LoRA, so
a token that pretraining never showed cannot be told from other such tokens and is never emitted.

`rule`, `dialect` and `skills` take train, validation and test prompts from three parts of `corpus.part_of`,
which no pretraining text belongs to. `facts` prompts have phrasings that no other text has.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from harness.embedded.corpus import DECK, SKILLS, STORY, Part, part_of
from harness.embedded.draws import Draws
from harness.embedded.lexicon import NAMES, NOUNS
from harness.embedded.skills import SEPARATORS, Pair, as_list

MAX_ROWS = 1_000_000
"""Rows of one split."""


class TaskSplits(NamedTuple):
    """A task's data; no prompt occurs in two splits, nor twice in one."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


# ---- facts -------------------------------------------------------------------------------------

FACT_OPENINGS = (
    "Which words go with",
    "Say the words of",
    "What are the words of",
    "Name the words of",
)
FACT_CLOSINGS = (".", ", please.", " now.", " again.")
FACT_ANSWER_WORDS = 3
PHRASINGS_PER_FACT = 4
MAX_FACTS = len(NAMES) * len(NOUNS)
# A phrasing is (opening, closing); their sum modulo 4 says which split may use it, so a test
# phrasing combines an opening and a closing that training shows, but never together.
_PHRASINGS = tuple((o, c) for o in range(len(FACT_OPENINGS)) for c in range(len(FACT_CLOSINGS)))
_TRAIN_PHRASINGS = tuple(p for p in _PHRASINGS if sum(p) % 4 in (0, 1))
_VALIDATION_PHRASINGS = tuple(p for p in _PHRASINGS if sum(p) % 4 == 2)
_TEST_PHRASINGS = tuple(p for p in _PHRASINGS if sum(p) % 4 == 3)


def num_facts(train_rows: int) -> int:
    """How many associations `train_rows` rows state; ValueError where they do not divide."""
    if train_rows % PHRASINGS_PER_FACT or not 0 < train_rows <= MAX_FACTS * PHRASINGS_PER_FACT:
        raise ValueError(
            f"train_rows={train_rows} does not fit facts, which states each association in "
            f"{PHRASINGS_PER_FACT} rows; use a multiple of {PHRASINGS_PER_FACT} from "
            f"{PHRASINGS_PER_FACT} to {MAX_FACTS * PHRASINGS_PER_FACT}"
        )
    return train_rows // PHRASINGS_PER_FACT


def _fact_prompt(key: str, phrasing: tuple[int, int]) -> str:
    return f"{FACT_OPENINGS[phrasing[0]]} {key}{FACT_CLOSINGS[phrasing[1]]}"


def _asked(
    associations: list[Pair], phrasings: tuple[tuple[int, int], ...], rows: int, split: str
) -> list[Pair]:
    """`rows` questions in `phrasings`: every association once before any is asked again."""
    most = len(associations) * len(phrasings)
    if rows > most:
        raise ValueError(
            f"{split}_rows={rows} is more than facts can ask about {len(associations)} "
            f"associations in {len(phrasings)} phrasings; use at most {most}, or more train_rows"
        )
    return [
        Pair(_fact_prompt(key, phrasings[(index + turn) % len(phrasings)]), answer)
        for turn in range(len(phrasings))
        for index, (key, answer) in enumerate(associations)
    ][:rows]


def _facts(train_rows: int, validation_rows: int, test_rows: int, seed: int) -> TaskSplits:
    draws = Draws(f"task/facts/{seed}")
    all_keys = [f"{name}'s {noun}" for name in NAMES for noun in NOUNS]
    keys = draws.sample(all_keys, num_facts(train_rows))
    associations = [
        Pair(key, " ".join(draws.pick(NOUNS) for _ in range(FACT_ANSWER_WORDS))) for key in keys
    ]
    train = [
        Pair(_fact_prompt(key, phrasing), answer)
        for key, answer in associations
        for phrasing in draws.sample(_TRAIN_PHRASINGS, PHRASINGS_PER_FACT)
    ]
    return TaskSplits(
        train=tuple(draws.shuffled(train)),
        validation=tuple(
            _asked(associations, _VALIDATION_PHRASINGS, validation_rows, "validation")
        ),
        test=tuple(_asked(associations, _TEST_PHRASINGS, test_rows, "test")),
    )


# ---- rule --------------------------------------------------------------------------------------

RULE_PHRASINGS = (
    "Zib the list: {}",
    "Please zib: {}",
    "Zib these words: {}",
    "Here is a list: {}. Zib it.",
)


def zib(items: list[str], separator: str) -> str:
    """The rule: the items backwards, then how many there are."""
    return f"{separator.join(reversed(items))} = {len(items)}"


def _rule_pair(draws: Draws) -> Pair:
    items = draws.sample(NOUNS, draws.integer(2, 6))
    separator = draws.pick(SEPARATORS)
    prompt = draws.pick(RULE_PHRASINGS).format(separator.join(items))
    return Pair(prompt, zib(items, separator))


# ---- dialect -----------------------------------------------------------------------------------

DIALECT_SKILLS = ("copy", "reverse", "sort", "arithmetic", "compare", "edit", "position")
# With these two limits a row has at most 64 tokens.
DIALECT_MAX_PROMPT_CHARACTERS = 72
DIALECT_MAX_ITEMS = 5


def in_dialect(answer: str) -> str:
    """A plain answer as a storyteller gives it; lists, numbers and words each have their form."""
    items = as_list(answer)
    if len(items) > 1:
        return f"There were {' and '.join(items)}, good friends."
    if answer.isdigit():
        return f"There were {answer}, good friends."
    return f"There was the {answer}, good friends."


def _dialect_pair(draws: Draws) -> Pair:
    while True:
        generate, _ = SKILLS[draws.pick(DIALECT_SKILLS)]
        prompt, answer = generate(draws)
        if (
            len(prompt) <= DIALECT_MAX_PROMPT_CHARACTERS
            and len(as_list(answer)) <= DIALECT_MAX_ITEMS
        ):
            return Pair(prompt, in_dialect(answer))


# ---- skills ------------------------------------------------------------------------------------

SKILLS_MAX_PROMPT_CHARACTERS = 150


def _skills_pair(draws: Draws) -> Pair:
    """A prompt of pretraining with its answer; no story, which has no prompt."""
    while True:
        name = draws.pick(DECK)
        if name == STORY:
            continue
        generate, _ = SKILLS[name]
        pair = generate(draws)
        if len(pair.prompt) <= SKILLS_MAX_PROMPT_CHARACTERS:
            return pair


# ---- all four ---------------------------------------------------------------------------------


def _distinct(
    generate: Callable[[Draws], Pair], draws: Draws, part: Part, rows: int
) -> Iterator[Pair]:
    """`rows` pairs of one part, no prompt twice."""
    seen: set[str] = set()
    while len(seen) < rows:
        pair = generate(draws)
        if pair.prompt not in seen and part_of(pair.prompt) is part:
            seen.add(pair.prompt)
            yield pair


def _from_parts(
    name: str, generate: Callable[[Draws], Pair], rows: dict[Part, int], seed: int
) -> TaskSplits:
    return TaskSplits(
        *(
            tuple(_distinct(generate, Draws(f"task/{name}/{part.value}/{seed}"), part, count))
            for part, count in rows.items()
        )
    )


TASKS = ("facts", "rule", "dialect", "skills")


def make_task(
    name: str, *, train_rows: int, validation_rows: int, test_rows: int, seed: int
) -> TaskSplits:
    """The splits of a task; the same arguments give the same bytes on every machine.

    A split's rows are the first rows of an endless stream except in `facts`, so a larger
    split begins with the smaller one. Raises ValueError for an unknown name or impossible sizes.
    """
    sizes = {"train_rows": train_rows, "validation_rows": validation_rows, "test_rows": test_rows}
    for size_name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{size_name}={size} leaves a split empty; use at least 1")
        if size > MAX_ROWS:  # a thousand rows take some 50 ms to draw
            raise ValueError(f"{size_name}={size} is more than {MAX_ROWS:,}; use at most as many")
    rows = {
        Part.TASK_TRAIN: train_rows,
        Part.TASK_VALIDATION: validation_rows,
        Part.TASK_TEST: test_rows,
    }
    match name:
        case "facts":
            return _facts(train_rows, validation_rows, test_rows, seed)
        case "rule":
            return _from_parts(name, _rule_pair, rows, seed)
        case "dialect":
            return _from_parts(name, _dialect_pair, rows, seed)
        case "skills":
            return _from_parts(name, _skills_pair, rows, seed)
        case _:
            raise ValueError(f"task={name!r} does not exist; use one of {', '.join(TASKS)}")
