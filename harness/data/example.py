"""One example before it is tokenized: a conversation or plain text, and what is rendered of it.

Imports nothing heavy.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple


class Role(Enum):
    """Who speaks in a turn; the values are those of `messages` in chat data."""

    system = "system"
    user = "user"
    assistant = "assistant"
    tool = "tool"
    """What a tool that the assistant has called gives back."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says."""

    role: Role
    text: str
    carries_loss: bool = True
    """Whether an answer is learned; False where its message says `weight: 0` or `train: false`."""
    further: str = ""
    """What else a message holds for the model's chat template (tool calls, reasoning), as JSON or ""."""

    def message(self) -> dict[str, Any]:
        """Return the message as chat templates take it."""
        further: dict[str, Any] = json.loads(self.further) if self.further else {}
        return {"role": self.role.value, "content": self.text, **further}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation that ends with an assistant turn, or, where `turns` is empty, a plain text.

    `input` is the optional second part of a pair's prompt, as Alpaca's `input`; empty: there is none.
    `complete` is False for a text that goes on in the next example, so no end token follows it.
    """

    turns: tuple[Turn, ...] = ()
    input: str = ""
    text: str = ""
    complete: bool = True
    tools: str = ""
    """The tools that a conversation's assistant may call, as a JSON list; "": none."""

    @property
    def has_prompt(self) -> bool:
        """Whether there is a prompt that an answer can be generated for."""
        return bool(self.turns)

    @property
    def response(self) -> str:
        """The last assistant turn, the reference of a generated answer; "" for a plain text."""
        return self.turns[-1].text if self.turns else ""


class Piece(NamedTuple):
    """A stretch of text that is tokenized on its own."""

    text: str
    carries_loss: bool
    is_skipped: bool = False
    """Whether its message says that it is not to be learned, whatever `data.loss_on` is."""
    is_changed: bool = False
    """Whether it is an answer in which the template dropped or added text."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the model is given and what it is to answer, both as rendered."""

    given: str
    answer: str
    carries_loss: bool = True
    is_changed: bool = False
    """Whether the template dropped or added text within the answer."""

    def answered(self, end: str) -> list[Piece]:
        """Return the pieces of the answer and of what ends it."""
        learned = self.carries_loss
        return [
            Piece(self.answer, learned, not learned, self.is_changed),
            Piece(end, learned, not learned),
        ]


def pair(prompt: str, response: str, input: str = "") -> Example:
    """Return the example of one prompt, its optional second part, and its response."""
    return Example(turns=(Turn(Role.user, prompt), Turn(Role.assistant, response)), input=input)


def examples_digest(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of the examples' contents, in order."""
    digest = hashlib.sha256()
    for example in examples:
        turns = [(t.role.value, t.text, t.carries_loss, t.further) for t in example.turns]
        fields = (turns, example.input, example.text, example.complete, example.tools)
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()
