"""One change, judged in a fork of a process that has the code and the tests loaded already."""

import contextlib
import functools
import gc
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.mutants.reach import AT_IMPORT, Reached, Recorder

OURS = ("harness", "analysis", "tests")
BYTES = 12 * 2**30
"""Memory that a changed process may ask for: 2 ** rows is soon more than a machine has."""
UNLOADED = 77
"""Exit code of a process in which the change could only be made by importing everything anew."""


def serve(connection: Connection, copy: Path, number: int, test_files: Sequence[str]) -> None:
    """Do what is asked for in forks of this process, which has these tests loaded, until that is None.

    It has a core of its own, by its number: what would be divided over several is done by one process.
    """
    _enter(copy)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    loaded = Loaded(copy, test_files) if test_files else None
    while (asked := connection.recv()) is not None:
        os.truncate("log.txt", 0)
        began = time.monotonic()
        status = _forked(functools.partial(_do, copy, loaded, *asked))
        connection.send((status, time.monotonic() - began))


def _do(copy: Path, loaded: "Loaded | None", kind: str, *about: Any) -> int:
    if kind == "record":
        return record(copy, *about)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    *change, tests = about
    if loaded is not None and not loaded.change(*change):
        return UNLOADED
    return judge(copy, [Reached(*each) for each in tests])


def _enter(copy: Path) -> None:
    """Make a copy the project of the present process."""
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    for name in [n for n in sys.modules if n.split(".")[0] in OURS]:
        del sys.modules[name]


class Loaded:
    """The code and the tests, imported into the present process: a function is changed where it is."""

    def __init__(self, root: Path, test_files: Sequence[str]) -> None:
        """Import these tests, and what they import, from the copy at `root`."""
        recorder = Recorder(root)
        code = _pytest(test_files, object(), "--collect-only")
        if code:
            raise SystemExit("the tests cannot be collected")
        self._root = root
        self._at_import = recorder.lines()[AT_IMPORT]
        self._functions: dict[str, list[FunctionType]] = {}
        self._caches: list[Any] = []
        for each in gc.get_objects():
            if type(each) is FunctionType:
                self._functions.setdefault(each.__code__.co_filename, []).append(each)
            elif isinstance(each, functools._lru_cache_wrapper):
                self._caches.append(each)
        gc.freeze()  # forks share what is loaded

    def change(self, module: str, function: str, lines: Sequence[int], source: str) -> bool:
        """Change a function; False where what it did at import would stay as it was."""
        if not function or {*lines} & {*self._at_import.get(module, ())}:
            return False
        file = str(self._root / module)
        codes = list(_codes(compile(source, file, "exec", dont_inherit=True)))
        times = Counter(map(_name, codes))
        new = {_name(code): code for code in codes}
        functions = self._functions.get(file, [])
        for each in functions:
            code, old = new.get(_name(each.__code__)), each.__code__
            if code is None or times[_name(old)] > 1 or code.co_freevars != old.co_freevars:
                return False
        for each in functions:
            each.__code__ = new[_name(each.__code__)]
        for cache in self._caches:
            if cache.__module__.split(".")[0] in OURS:
                cache.cache_clear()
        return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _name(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def record(copy: Path, test_files: Sequence[str]) -> int:
    """Run test files unchanged and write what they reach to `reach.json`; returns pytest's exit code."""
    recorder = Recorder(copy)
    code = _pytest(test_files, recorder, "-rf")
    (copy / "reach.json").write_text(json.dumps(recorder.reached()))
    return code


def judge(copy: Path, tests: Sequence[Reached]) -> int:
    """Run tests one by one until one fails, whose name goes to `killer.txt`; returns pytest's exit code."""
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    files = dict.fromkeys(each.file for each in tests)
    return _pytest(list(files), Judge(copy / "killer.txt", tests), "--tb=no")


def _pytest(files: Sequence[str], plugin: object, *more: str) -> int:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", "-p", "no:xdist", *more]
    options.append("--hypothesis-profile=judges")
    return int(pytest.main([*options, *files], plugins=[plugin]))


class Judge:
    """A pytest plugin: runs the chosen tests in their order, each within a multiple of its own time."""

    def __init__(self, file: Path, tests: Sequence[Reached]) -> None:
        self._file = file
        self._rank = {each.test: index for index, each in enumerate(tests)}
        self._seconds = {each.test: each.seconds + each.setup for each in tests}
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


def _forked(do: Callable[[], int]) -> int:
    """Do something in a fork of the present process, end what that leaves running, and return its status."""
    process = os.fork()
    if not process:
        code = 1
        try:
            os.setsid()
            code = do()
        finally:
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what a test has started is in the group of its process
    return status
