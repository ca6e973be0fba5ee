"""Which functions each test enters, and how long it takes: what decides which tests judge a change."""

import hashlib
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.mutants.changes import Mutant
from tests.mutants.edits import Edit

Place = tuple[str, str]
"""A module's path from the root, and the qualified name of a function in it."""
SECONDS = 60.0
"""Tests that judge one change take no longer together, as measured without it."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A test that enters a function, and how long it takes."""

    test: str
    seconds: float
    """Of the test itself."""
    setup: float
    """Of all its fixtures, of which it may share most."""

    @property
    def file(self) -> str:
        """The test's file, from the root."""
        return self.test.split("::")[0]


class Recorder:
    """A pytest plugin: records the functions of the copy at `root` that each test and fixture enters."""

    def __init__(self, root: Path) -> None:
        self._prefixes = tuple(f"{root}/{part}/" for part in ("harness", "analysis"))
        self._root = len(str(root)) + 1
        self._known: dict[CodeType, Place | None] = {}
        self.entered: set[Place] = set()
        self._fixtures: dict[int, _Fixture] = {}
        self._setting_up = 0.0
        self.reached: list[dict[str, Any]] = []

    def _call(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code not in self._known:
            inside = code.co_filename.startswith(self._prefixes)
            place = (code.co_filename[self._root :], code.co_qualname) if inside else None
            self._known[code] = place
        place = self._known[code]
        if place is not None:
            self.entered.add(place)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record which functions are entered, in all threads."""
        sys.settrace(self._call)
        threading.settrace(self._call)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.entered, self._setting_up = set(), 0.0
        clock = _Clock()
        with self.recording():
            yield
        own = clock.seconds() - self._setting_up
        fixtures = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        used = [self._fixtures[id(f)] for each in fixtures for f in each if id(f) in self._fixtures]
        places = self.entered.union(*(each.places for each in used))
        functions: dict[str, list[str]] = defaultdict(list)
        for module, function in sorted(places):
            functions[module].append(function)
        setup = sum(each.seconds for each in used)
        reached = {"test": item.nodeid, "seconds": own, "setup": setup, "places": functions}
        self.reached.append(reached)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Keep what a shared fixture enters for every test that uses it, not for its first one alone."""
        outside, self.entered = self.entered, set()
        clock = _Clock()
        yield
        seconds = clock.seconds()
        self._setting_up += seconds
        known = self._fixtures.get(id(fixturedef), _Fixture(set(), 0.0))
        both = known.places | self.entered
        self._fixtures[id(fixturedef)] = _Fixture(both, max(known.seconds, seconds))
        self.entered |= outside


@dataclass(frozen=True, slots=True)
class _Fixture:
    """What setting up a fixture enters, and how long it takes."""

    places: set[Place]
    seconds: float


class _Clock:
    """Seconds since it was made: on a processor, but for those that were waited; others may run, too."""

    def __init__(self) -> None:
        self._cpu, self._wall = _cpu_seconds(), time.monotonic()

    def seconds(self) -> float:
        """Return the seconds until now."""
        return max(_cpu_seconds() - self._cpu, (time.monotonic() - self._wall) / 4)


def _cpu_seconds() -> float:
    """Return the time on a processor of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def digests(test_files: Iterable[str], root: Path) -> dict[str, str]:
    """Return for each test file a hash of what its reach depends on: the code, its tools and itself."""
    code = hashlib.sha256()
    for part in ("harness", "analysis", "conf", "sweeps", "tests"):
        for file in sorted((root / part).rglob("*")):
            is_test = part == "tests" and file.name.startswith("test_")
            if file.suffix in (".py", ".yaml") and not is_test and "mutants" not in file.parts:
                code.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return {
        name: hashlib.sha256(code.digest() + (root / name).read_bytes()).hexdigest()
        for name in test_files
    }


class Reach:
    """What is known of all tests."""

    def __init__(self, file: Path, root: Path) -> None:
        """What is kept in a file, of the tests of the project at `root`."""
        self._file, self._root = file, root
        self._asked: list[str] = []
        self._kept: dict[str, dict[str, Any]] = (
            json.loads(file.read_text()) if file.exists() else {}
        )

    def unknown(self, test_files: Sequence[str]) -> list[str]:
        """Return the test files whose reach has to be recorded, and forget what is out of date."""
        files = {n for n in (*test_files, *self._kept) if (self._root / n).exists()}
        now = digests(files, self._root)
        self._kept = {n: e for n, e in self._kept.items() if e["digest"] == now.get(n)}
        self._asked = list(test_files)
        return [name for name in test_files if name not in self._kept]

    def keep(self, test_files: Sequence[str], reached: Sequence[dict[str, Any]]) -> None:
        """Keep what the tests of these files reach."""
        for name, digest in digests(test_files, self._root).items():
            own = [each for each in reached if each["test"].split("::")[0] == name]
            self._kept[name] = {"digest": digest, "tests": own}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._kept))

    def judges(self, mutant: Mutant | Edit) -> list[Reached]:
        """Return the tests that enter the changed function: those of the module's own file first.

        Their sum stays within SECONDS. What runs at import, and what no test enters in its own process, is
        judged by the tests that enter any function of its module.
        """
        tests = [each for name in self._asked for each in self._kept[name]["tests"]]
        of_module = [each for each in tests if mutant.module in each["places"]]
        entering = [each for each in of_module if mutant.function in each["places"][mutant.module]]
        found = [
            Reached(each["test"], each["seconds"], each["setup"]) for each in entering or of_module
        ]
        stem = Path(mutant.module).stem
        found.sort(
            key=lambda each: (Path(each.file).stem != f"test_{stem}", each.seconds + each.setup)
        )
        total, chosen, files = 0.0, [], set[str]()
        for each in found:
            total += each.seconds + (0.0 if each.file in files else each.setup)
            if total > SECONDS and chosen:
                break
            files.add(each.file)
            chosen.append(each)
        return _by_file(chosen)


def _by_file(tests: Sequence[Reached]) -> list[Reached]:
    """Return the tests file by file, since a file shares what it sets up; files in order of their first."""
    files: dict[str, list[Reached]] = {}
    for each in tests:
        files.setdefault(each.file, []).append(each)
    return [each for file in files.values() for each in file]
