"""Copies of the project in which changes are tried, one at a time in each."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from tests.mutants import loaded

PARTS = (
    *("harness", "analysis", "pretraining", "tests", "conf", "sweeps", "bench", "docs"),
    "pyproject.toml",
)

Work = TypeVar("Work")

_ENDS: list[Connection] = []
"""Of this process to those that it asks."""


class Copy:
    """A copy of the project, with two processes in which its tests run: one has them loaded already."""

    def __init__(self, directory: Path, of: Path, number: int = 0) -> None:
        self.directory, self._of, self._number = directory, of, number
        for part in PARTS:
            source, target = of / part, directory / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    def load(self, test_files: Sequence[str]) -> None:
        """Start the two processes."""
        self._bare, self._loaded = self._served(()), self._served(test_files)
        self.asked = self._loaded

    def _served(self, test_files: Sequence[str]) -> Connection:
        ours, theirs = Pipe()
        _ENDS.append(ours)
        if not os.fork():
            for end in _ENDS:  # so that what is asked is at its end when the asking process is
                end.close()
            try:
                loaded.serve(theirs, self.directory, self._number, test_files)
            finally:
                os._exit(1)
        theirs.close()
        return ours

    def close(self) -> None:
        """End the two processes."""
        for connection in (self._bare, self._loaded):
            connection.send(None)

    def change(self, module: str, source: str) -> None:
        """Write a changed module, with nothing left of what was compiled from it."""
        for compiled in (self.directory / module).parent.glob(f"__pycache__/{Path(module).stem}.*"):
            compiled.unlink()
        (self.directory / module).write_text(source)

    def put_back(self, module: str) -> None:
        """Undo the change."""
        shutil.copy(self._of / module, self.directory / module)

    def ask(self, *what: Any) -> None:
        """Begin to record or to judge."""
        self._what, self.asked = what, self._loaded
        self.asked.send(what)

    def answer(self) -> tuple[str, float] | None:
        """Return the outcome and its seconds; None where it has to be asked again without what is loaded."""
        try:
            status, seconds = self.asked.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"the tests cannot be run:\n{self.log}") from None
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == loaded.UNLOADED:
            self.asked = self._bare
            self.asked.send(self._what)
            return None
        return _outcome(status), seconds

    @property
    def log(self) -> str:
        """The end of what the tests have said."""
        return (self.directory / "log.txt").read_text(errors="replace")[-3000:]

    def reached(self) -> list[dict[str, Any]]:
        """Return what was recorded."""
        return json.loads((self.directory / "reach.json").read_text())


@dataclass(frozen=True, slots=True)
class Ended(Generic[Work]):
    """What came of one piece of work."""

    work: Work
    copy: Copy
    outcome: str
    """survived, killed or timeout."""
    seconds: float


def side_by_side(
    work: Sequence[Work], copies: Sequence[Copy], start: Callable[[Copy, Work], None]
) -> Iterator[Ended[Work]]:
    """Do every piece of work, one in each copy at a time; the copy is free when the next one is asked for."""
    idle, waiting = list(copies), list(reversed(work))
    running: dict[Connection, tuple[Copy, Work]] = {}
    while waiting or running:
        while waiting and idle:
            copy, piece = idle.pop(), waiting.pop()
            start(copy, piece)
            running[copy.asked] = (copy, piece)
        for connection in wait(list(running)):
            assert isinstance(connection, Connection)
            copy, piece = running.pop(connection)
            answer = copy.answer()
            if answer is None:
                running[copy.asked] = (copy, piece)
                continue
            yield Ended(piece, copy, *answer)
            idle.append(copy)


def _outcome(status: int) -> str:
    """Return what a test process's end says of a change: killed, survived, or timeout."""
    if os.WIFSIGNALED(status):
        is_late = os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGPROF)
        return "timeout" if is_late else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"
