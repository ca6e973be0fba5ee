"""Which functions each test enters, and how long it takes: what decides which tests judge a change."""

import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
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
        self._entered: set[Place] = set()
        self._of_fixtures: dict[int, set[Place]] = defaultdict(set)
        self.reached: list[dict[str, Any]] = []

    def _call(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code not in self._known:
            inside = code.co_filename.startswith(self._prefixes)
            place = (code.co_filename[self._root :], code.co_qualname) if inside else None
            self._known[code] = place
        place = self._known[code]
        if place is not None:
            self._entered.add(place)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._entered = set()
        began = time.process_time()
        wall = time.monotonic()
        sys.settrace(self._call)
        threading.settrace(self._call)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        seconds = max(time.process_time() - began, time.monotonic() - wall)
        places = set(self._entered)
        for fixtures in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
            for fixture in fixtures:
                places |= self._of_fixtures[id(fixture)]
        functions: dict[str, list[str]] = defaultdict(list)
        for module, function in sorted(places):
            functions[module].append(function)
        self.reached.append({"test": item.nodeid, "seconds": seconds, "places": functions})

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Keep what a shared fixture enters for every test that uses it, not for its first one alone."""
        outside, self._entered = self._entered, set()
        yield
        self._of_fixtures[id(fixturedef)] |= self._entered
        self._entered |= outside


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
        self._kept: dict[str, dict[str, Any]] = (
            json.loads(file.read_text()) if file.exists() else {}
        )

    def unknown(self, test_files: Sequence[str]) -> list[str]:
        """Return the test files whose reach has to be recorded, and forget the others' past."""
        now = digests(test_files, self._root)
        self._kept = {n: e for n, e in self._kept.items() if e["digest"] == now.get(n)}
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

        Their sum stays within SECONDS. What runs at import is judged by the tests that enter any function of
        its module.
        """
        found: list[Reached] = []
        for entry in self._kept.values():
            for each in entry["tests"]:
                functions = each["places"].get(mutant.module, [])
                if mutant.function in functions or (functions and not mutant.function):
                    found.append(Reached(each["test"], each["seconds"]))
        stem = Path(mutant.module).stem
        found.sort(key=lambda each: (Path(each.file).stem != f"test_{stem}", each.seconds))
        total, chosen = 0.0, []
        for each in found:
            total += each.seconds
            if total > SECONDS and chosen:
                break
            chosen.append(each)
        return _by_file(chosen)


def _by_file(tests: Sequence[Reached]) -> list[Reached]:
    """Return the tests file by file, since a file shares what it sets up; files in order of their first."""
    files: dict[str, list[Reached]] = {}
    for each in tests:
        files.setdefault(each.file, []).append(each)
    return [each for file in files.values() for each in file]
