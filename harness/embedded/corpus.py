"""The procedural corpus: every document that the embedded base is pretrained or judged on.

Standard library only. A document is a story, or a prompt with its response. Each text belongs to
exactly one `Part`, decided by its own CRC-32, so pretraining, held-out data and the fine-tuning
tasks cannot share a prompt however much of each is drawn.
"""

import enum
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from harness.embedded import skills, stories
from harness.embedded.draws import Draws
from harness.embedded.skills import Pair

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# Skill name -> (generator, share of the documents in percent). Stories take what is left.
SKILLS: dict[str, tuple[Callable[[Draws], Pair], int]] = {
    "copy": (skills.copy, 8),
    "reverse": (skills.reverse, 10),
    "sort": (skills.sort, 11),
    "count": (skills.count, 8),
    "arithmetic": (skills.arithmetic, 15),
    "compare": (skills.compare, 3),
    "lookup": (skills.lookup, 10),
    "position": (skills.position, 8),
    "member": (skills.member, 3),
    "edit": (skills.edit, 6),
    "spell": (skills.spell, 3),
    "story_question": (stories.story_question, 10),
}
STORY = "story"
_DECK = tuple(name for name, (_, share) in SKILLS.items() for _ in range(share))
DECK = _DECK + (STORY,) * (100 - len(_DECK))


class Part(enum.Enum):
    """Who may see a text."""

    PRETRAIN = "pretrain"
    HELD_OUT = "held_out"
    TASK_TRAIN = "task_train"
    TASK_VALIDATION = "task_validation"
    TASK_TEST = "task_test"


# Sixteenths of all texts, by CRC-32 modulo 16.
_PARTS = (
    (Part.HELD_OUT,)
    + (Part.TASK_TRAIN,) * 3
    + (Part.TASK_VALIDATION, Part.TASK_TEST)
    + (Part.PRETRAIN,) * 10
)


class Document(NamedTuple):
    """A story (`prompt` is None) or a prompt with its response."""

    skill: str
    prompt: str | None
    response: str

    @property
    def text(self) -> str:
        """What a model reads between BOS and EOS."""
        return self.response if self.prompt is None else f"{self.prompt}\n{self.response}"


def part_of(prompt: str) -> Part:
    """The one part to which a prompt (or a story's whole text) belongs."""
    return _PARTS[zlib.crc32(prompt.encode("utf-8")) % len(_PARTS)]


def _draw(draws: Draws) -> Document:
    skill = draws.pick(DECK)
    if skill == STORY:
        return Document(STORY, None, stories.story(draws))
    return Document(skill, *SKILLS[skill][0](draws))


def documents(part: Part, *, seed: int, shard: int = 0) -> Iterator[Document]:
    """An endless stream of the documents of one part; `shard` names independent streams.

    The same (part, seed, shard) gives the same documents on every machine.
    """
    draws = Draws(f"corpus/{part.value}/{seed}/{shard}")
    while True:
        document = _draw(draws)
        if part_of(document.prompt or document.response) is part:
            yield document


def skill_pairs(skill: str, part: Part, *, seed: int) -> Iterator[Pair]:
    """An endless stream of one skill's prompts and responses in one part.

    Raises ValueError for a name that is not a skill with prompts.
    """
    if skill not in SKILLS:
        raise ValueError(f"skill={skill!r} is not a skill; use one of {', '.join(SKILLS)}")
    draws = Draws(f"skill/{skill}/{part.value}/{seed}")
    generate = SKILLS[skill][0]
    while True:
        pair = generate(draws)
        if part_of(pair.prompt) is part:
            yield pair
