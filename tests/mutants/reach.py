"""Which lines each test runs, and how long it takes: what decides which tests judge a change."""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

from tests.mutants.changes import Mutant
from tests.mutants.edits import Edit

SECONDS, BESIDE_SECONDS = 30.0, 10.0
"""Tests that judge one change take no longer together, as measured without it: those that run its lines; and
where none does, those that run something else of its module."""
QUICK_SECONDS = 1.0
"""Tests that take longer judge after those that do not."""
AT_IMPORT = ""
"""The context of what runs outside of tests."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A test that runs a line, and how long it takes."""

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
    """A pytest plugin: records the lines of the copy at `root` that each test and each fixture runs."""

    def __init__(self, root: Path) -> None:
        self._root = root
        inside = [f"{root}/{part}/*" for part in ("harness", "analysis")]
        self._coverage = Coverage(data_file=None, include=inside, config_file=False)
        self._setups: dict[str, float] = {}
        self._setting_up = 0.0
        self._tests: list[dict[str, Any]] = []
        self._coverage.start()

    def lines(self) -> dict[str, dict[str, list[int]]]:
        """Return the lines by context, a test or a fixture, and module; stops recording."""
        self._coverage.stop()
        data = self._coverage.get_data()
        found: dict[str, dict[str, list[int]]] = defaultdict(dict)
        for file in data.measured_files():
            module = str(Path(file).relative_to(self._root))
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    found[context].setdefault(module, []).append(line)
        return found

    def reached(self) -> list[dict[str, Any]]:
        """Return for each test its seconds and its lines, those of its fixtures with them."""
        lines = self.lines()
        for test in self._tests:
            modules: dict[str, set[int]] = defaultdict(set)
            for context in (test["test"], *test.pop("fixtures")):
                for module, own in lines[context].items():
                    modules[module].update(own)
            test["lines"] = {module: sorted(own) for module, own in sorted(modules.items())}
        return self._tests

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        self._setting_up = 0.0
        clock = _Clock()
        yield
        seconds = clock.seconds() - self._setting_up
        self._coverage.switch_context(AT_IMPORT)
        fixtures = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        used = [name for each in fixtures for f in each if (name := _name(f)) in self._setups]
        setup = sum(self._setups[name] for name in used)
        self._tests.append(
            {"test": item.nodeid, "seconds": seconds, "setup": setup, "fixtures": used}
        )

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """Keep what a shared fixture runs for every test that uses it, not for its first one alone."""
        name, clock = _name(fixturedef), _Clock()
        self._coverage.switch_context(name)
        yield
        self._coverage.switch_context(request._pyfuncitem.nodeid)
        seconds = clock.seconds()
        self._setting_up += seconds
        self._setups[name] = max(seconds, self._setups.get(name, 0.0))


def _name(fixturedef: Any) -> str:
    return f"fixture {fixturedef.baseid} {fixturedef.argname} {id(fixturedef)}"


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
        """Return the tests that run the changed lines: the quick first, of these the module's own file's.

        Their sum stays within SECONDS. What runs at import, and what no test runs in its own process, is
        judged by the tests that run anything of its module, else by those of the file of its name or its
        package's.
        """
        tests = [each for name in self._asked for each in self._kept[name]["tests"]]
        of_module = [each for each in tests if mutant.module in each["lines"]]
        changed = set(mutant.lines)
        running = [each for each in of_module if changed & set(each["lines"][mutant.module])]
        if not mutant.function:
            running = []
        path = Path(mutant.module)
        own = f"test_{path.stem}"
        named = (own, f"test_{path.parent.name}")  # of constants alone nothing runs in a test
        of_module = of_module or [
            each for each in tests if Path(each["test"].split("::")[0]).stem in named
        ]
        found = [
            Reached(each["test"], each["seconds"], each["setup"]) for each in running or of_module
        ]
        found.sort(
            key=lambda each: (
                each.seconds + each.setup > QUICK_SECONDS,
                Path(each.file).stem != own,
                each.seconds + each.setup,
            )
        )
        total, chosen, files = 0.0, [], set[str]()
        for each in found:
            total += each.seconds + (0.0 if each.file in files else each.setup)
            if total > (SECONDS if running else BESIDE_SECONDS) and chosen:
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
