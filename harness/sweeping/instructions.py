"""What users have told a sweep while it goes on: `instructions.jsonl` in its directory, a line each.

The live page appends, every driver that works in this directory reads and obeys, and one that begins later
does so again: each instruction says what is to be in the end, so that obeying it twice changes nothing. Only
a stop of the sweep is for those alone that heard it. Must not import torch or optuna.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from harness.errors import RequestError
from harness.parsing import Unreadable, read_json, shaped
from harness.question.load import question_text
from harness.question.question import Question
from harness.question.widen import with_trials, with_value
from harness.records.run_directory import utc_now, write_text
from harness.sweeping.state import SweepDirectory

if TYPE_CHECKING:
    from harness.study.study import Study

MAX_BYTES = 4_000_000
"""Of the file that are read: nobody gives ten thousand instructions by hand."""


class InstructionKind(Enum):
    """What a sweep can be told."""

    stop_run = "stop_run"
    stop_sweep = "stop_sweep"
    more_trials = "more_trials"
    add_value = "add_value"
    clone = "clone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One thing that a user has told a sweep."""

    kind: InstructionKind
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A name that no other instruction has."""
    given_at: str = field(default_factory=utc_now)
    run_id: str = ""
    """The run that is to stop, or that a clone has been made of."""
    trials: int = 0
    """How many trials the sweep is to have at least."""
    axis: str = ""
    value: str = ""
    """The value that the axis is to have, too."""
    point: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    """A clone's point, and what it has beyond that, its seed included."""
    clone_id: str = ""

    def tree(self) -> dict[str, Any]:
        """Return the instruction as plain values."""
        return {**asdict(self), "kind": self.kind.value}

    @property
    def text(self) -> str:
        """What is asked, for a person."""
        match self.kind:
            case InstructionKind.stop_run:
                return f"stop run {self.run_id}"
            case InstructionKind.stop_sweep:
                return "stop the sweep"
            case InstructionKind.more_trials:
                return f"have {self.trials} trials"
            case InstructionKind.add_value:
                return f"try {self.axis}={self.value}, too"
            case InstructionKind.clone:
                changed = " ".join(self.overrides)
                return f"train {self.clone_id}, {self.run_id} with {changed}"
            case unknown:
                assert_never(unknown)

    def change(self, question: Question) -> Question:
        """Return a question as this asks for it. Raises RequestError where it cannot have that."""
        match self.kind:
            case InstructionKind.more_trials:
                return with_trials(question, self.trials)
            case InstructionKind.add_value:
                return with_value(question, self.axis, self.value)
            case _:
                return question


def instruction_of(tree: Any) -> Instruction:
    """Return the instruction that `Instruction.tree` gave. Raises Unreadable for anything else."""
    return shaped(Instruction, tree)


class Instructions:
    """The file, as one process reads it on and on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._at = 0

    def read_on(self) -> list[Instruction]:
        """Return what was appended since this was last asked; a line that is no instruction is passed over.

        A line without its end is still being written, and is read the next time.
        """
        try:
            if self.file.stat().st_size <= self._at:
                return []
            with self.file.open("rb") as file:
                file.seek(self._at)
                new = file.read(MAX_BYTES)
        except OSError:
            return []
        whole, newline, _ = new.rpartition(b"\n")
        self._at += len(whole) + len(newline)
        found = []
        for line in whole.splitlines():
            try:
                found.append(instruction_of(read_json(line)))
            except Unreadable:
                continue
        return found

    def append(self, instruction: Instruction) -> None:
        """Write an instruction down so that it outlives this machine, behind those of other processes."""
        line = json.dumps(instruction.tree()).encode() + b"\n"
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # its writer was killed
                line = b"\n" + line
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_told(question: Question, instructions: Sequence[Instruction]) -> Question:
    """Return a question with the trials and the values that its sweep was told to have.

    What it cannot have any more, since it is asked otherwise now, is left out.
    """
    for each in instructions:
        with contextlib.suppress(RequestError):
            question = each.change(question)
    return question


# What one driver hears: from its directory, and from members with another -------------------------


class Inbox:
    """The instructions of one sweep, each heard once; members pass them on by the study."""

    def __init__(
        self, directory: SweepDirectory, study: "Study", say: Callable[[str], None]
    ) -> None:
        """`say` is told what was heard, a line each."""
        self.say = say
        self._directory = directory
        self._study = study
        self._read = Instructions(directory.instructions)
        self._heard: set[str] = set()

    def hear(self) -> list[Instruction]:
        """Return what is new to this driver."""
        found = self._read.read_on()
        if self._study.leases is not None:
            if found:
                self._study.pass_on([each.tree() for each in found])
            found = []
            for tree in self._study.instructions:
                with contextlib.suppress(Unreadable):
                    found.append(instruction_of(tree))
        new = [each for each in found if each.key not in self._heard]
        self._heard.update(each.key for each in new)
        return new

    def keep(self, question: Question) -> None:
        """Write down the question as it is asked now: who begins again asks the same."""
        write_text(self._directory.question, question_text(question))
