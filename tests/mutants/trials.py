"""Trying changes: forks of one process that has the libraries loaded, in copies of the project."""

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from tests.mutants.reach import Reached, Recorder

PARTS = ("harness", "analysis", "pretraining", "tests", "conf", "sweeps", "bench", "pyproject.toml")
BYTES = 12 * 2**30
"""Memory that a changed process may ask for: 2 ** rows is soon more than a machine has."""

Work = TypeVar("Work")


class Copy:
    """A copy of the project in which one change at a time is tried."""

    def __init__(self, directory: Path, of: Path) -> None:
        self.directory, self._of = directory, of
        for part in PARTS:
            source, target = of / part, directory / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    def change(self, module: str, source: str) -> None:
        """Write a changed module, with nothing left of what was compiled from it."""
        for compiled in (self.directory / module).parent.glob(f"__pycache__/{Path(module).stem}.*"):
            compiled.unlink()
        (self.directory / module).write_text(source)

    def put_back(self, module: str) -> None:
        """Undo the change."""
        shutil.copy(self._of / module, self.directory / module)

    def start(self, do: Callable[[], int], *, writes_bytecode: bool) -> int:
        """Fork a process that does something in the copy; returns its id."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.setsid()
            os.chdir(self.directory)
            os.environ["PYTHONPATH"] = str(self.directory)
            sys.path.insert(0, str(self.directory))
            sys.dont_write_bytecode = not writes_bytecode
            log = os.open(self.directory / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            ours = ("harness", "analysis", "tests")
            for name in [n for n in sys.modules if n.split(".")[0] in ours]:
                del sys.modules[name]
            code = do()
        finally:
            os._exit(code)


def record(copy: Copy, test_files: Sequence[str]) -> int:
    """Run test files unchanged and write what they reach to `reach.json`; returns pytest's exit code."""
    recorder = Recorder(copy.directory)
    code = _pytest(test_files, recorder)
    (copy.directory / "reach.json").write_text(json.dumps(recorder.reached))
    return code


def judge(copy: Copy, tests: Sequence[Reached]) -> int:
    """Run tests one by one until one fails, whose name goes to `killer.txt`; returns pytest's exit code."""
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    files = dict.fromkeys(each.file for each in tests)
    return _pytest(list(files), Judge(copy.directory / "killer.txt", tests))


def _pytest(files: Sequence[str], plugin: object) -> int:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", "-p", "no:xdist"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


class Judge:
    """A pytest plugin: runs the chosen tests in their order, each within a multiple of its own time."""

    def __init__(self, file: Path, tests: Sequence[Reached]) -> None:
        self._file = file
        self._rank = {each.test: index for index, each in enumerate(tests)}
        self._seconds = {each.test: each.seconds for each in tests}
        file.write_text("at import or collection")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._rank),
            key=lambda item: self._rank[item.nodeid],
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Name the test, and let the kernel end the process when it takes too long."""
        self._file.write_text(nodeid)
        seconds = self._seconds[nodeid]
        signal.setitimer(signal.ITIMER_PROF, 10 + 5 * seconds)  # SIGPROF ends a process by itself
        signal.setitimer(signal.ITIMER_REAL, 60 + 10 * seconds)


@dataclass(frozen=True, slots=True)
class Ended(Generic[Work]):
    """What came of one piece of work."""

    work: Work
    copy: Copy
    status: int
    """As `os.wait` gives it."""
    seconds: float


def side_by_side(
    work: Sequence[Work], copies: Sequence[Copy], start: Callable[[Copy, Work], int]
) -> Iterator[Ended[Work]]:
    """Do every piece of work, one in each copy at a time; the copy is free when the next one is asked for."""
    idle, waiting = list(copies), list(reversed(work))
    running: dict[int, tuple[Copy, Work, float]] = {}
    while waiting or running:
        while waiting and idle:
            copy, piece = idle.pop(), waiting.pop()
            running[start(copy, piece)] = (copy, piece, time.monotonic())
        process, status = os.wait()
        if process not in running:
            continue
        copy, piece, began = running.pop(process)
        _end_group(process)
        yield Ended(piece, copy, status, time.monotonic() - began)
        idle.append(copy)


def _end_group(process: int) -> None:
    """End what a test has left running: it is in the process group of its own test process."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def outcome(status: int) -> str:
    """Return what a test process's end says of a change: killed, survived, or timeout."""
    if os.WIFSIGNALED(status):
        is_late = os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGPROF)
        return "timeout" if is_late else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def read_reached(copy: Copy) -> list[dict[str, Any]]:
    """Return what a process that recorded has written."""
    return json.loads((copy.directory / "reach.json").read_text())
