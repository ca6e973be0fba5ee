"""What one driver hears of its users' instructions: from its directory, and from members with another."""

import contextlib
from collections.abc import Callable

from harness.parsing import Unreadable
from harness.question.load import question_text
from harness.question.question import Question
from harness.records.run_directory import write_text
from harness.study.study import Study
from harness.sweeping.instructions import Instruction, Instructions, instruction_of
from harness.sweeping.state import SweepDirectory


class Inbox:
    """The instructions of one sweep, each heard once; members pass them on by the study."""

    def __init__(self, directory: SweepDirectory, study: Study, say: Callable[[str], None]) -> None:
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
