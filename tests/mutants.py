"""Mutation testing: small changes to the code, each made alone, and whether the tests of its room notice.

    python -m tests.mutants [--sample 200] [--seed 0] [--rooms plan,study] [--jobs 2]

The changes are cosmic-ray's. Its own runner starts a Python for each, which here would spend five seconds on
imports; so the tests run in a process forked from one that has the libraries loaded, in a copy of the
project that has the change, first the file that mirrors the module, then the rest of the room's tests.
Prints a table and writes `out/mutants.json`; what survived belongs into docs/mutants.md, with its reason.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("engine", "base", "data", "training", "evals", "measure", "plan", "question", "study")
PARTS = ("harness", "analysis", "pretraining", "tests", "conf", "sweeps", "bench", "pyproject.toml")
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scipy.stats",
    "optuna",
    "pytest",
    "hypothesis",
)
LEFT_OUT = (
    *("ReplaceBinaryOperator_BitOr", "RemoveDecorator", "ExceptionReplacer", "Variable"),
    *("Is_Eq", "IsNot_NotEq"),
)
"""Operators that break imports (types are written with |) and so are noticed by anything, or need names,
or (is for ==) are equal of enums and None."""
SECONDS = 600


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the n-th place in a module where an operator of cosmic-ray applies."""

    module: str
    operator: str
    occurrence: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said of a change."""

    mutant: Mutant
    outcome: str
    """killed, survived or timeout (which is killed, too)."""
    seconds: float
    diff: str


def modules(rooms: Sequence[str]) -> list[str]:
    """Return the modules of the rooms as paths from the root."""
    directories = [ROOT / ("analysis" if r == "analysis" else f"harness/{r}") for r in rooms]
    files = (file for each in directories for file in sorted(each.rglob("*.py")))
    return [
        str(f.relative_to(ROOT)) for f in files if f.name != "__init__.py" and "cuda" not in f.parts
    ]


def mutants_of(module: str) -> Iterator[Mutant]:
    """Yield every change to a module, in a fixed order."""
    import parso
    from cosmic_ray.ast import ast_nodes
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(parso.parse((ROOT / module).read_text())))
    for name in sorted(operator_names()):
        if any(part in name for part in LEFT_OUT):
            continue
        operator = get_operator(name)()
        places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        yield from (Mutant(module, name, index) for index in range(places))


def mutated(mutant: Mutant) -> str | None:
    """Return the source with the change, or None if there is none."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / mutant.module).read_text()
    return mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)


def tests_of(module: str) -> list[str]:
    """Return what mirrors a module: files of its name in any room, then its own room."""
    path = Path(module)
    room = Path("tests", *path.parts[path.parts[0] == "harness" : 2 - (path.parts[0] != "harness")])
    own = sorted(ROOT.glob(f"tests/**/test_{path.stem}.py"))
    return [*(str(file.relative_to(ROOT)) for file in own), str(room)]


class Bench:
    """A copy of the project in which one change at a time is tried."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for part in PARTS:
            source, target = ROOT / part, directory / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    def start(self, module: str, source: str | None) -> int:
        """Fork a process that runs the module's tests; returns its id. No source: no change."""
        if source is not None:
            (self.directory / module).write_text(source)
        process = os.fork()
        if process == 0:
            self._test(module)
        return process

    def put_back(self, module: str) -> None:
        """Undo the change."""
        shutil.copy(ROOT / module, self.directory / module)

    def _test(self, module: str) -> None:
        os.setsid()
        signal.alarm(SECONDS)
        os.chdir(self.directory)
        os.environ |= {"PYTHONPATH": str(self.directory), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(self.directory))
        sys.dont_write_bytecode = True
        log = os.open(self.directory / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        for name in [n for n in sys.modules if n.split(".")[0] in ("harness", "analysis", "tests")]:
            del sys.modules[name]
        code = 1
        try:
            import pytest

            for path in tests_of(module):
                code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", path]))
                if code:
                    break
        finally:
            os._exit(code)


def try_all(work: Sequence[Mutant], jobs: int) -> Iterator[Verdict]:
    """Try every change, `jobs` at a time."""
    with tempfile.TemporaryDirectory() as place:
        idle = [Bench(Path(place, str(index))) for index in range(jobs)]
        running: dict[int, tuple[Bench, Mutant, str, float]] = {}
        waiting = list(work)
        while waiting or running:
            while waiting and idle:
                mutant = waiting.pop()
                source = mutated(mutant)
                if source is None:
                    continue
                bench = idle.pop()
                process = bench.start(mutant.module, source)
                running[process] = (bench, mutant, source, time.monotonic())
            if not running:
                return
            process, status = os.wait()
            if process not in running:
                continue
            bench, mutant, source, began = running.pop(process)
            _end_group(process)
            bench.put_back(mutant.module)
            idle.append(bench)
            yield Verdict(mutant, _outcome(status), time.monotonic() - began, _diff(mutant, source))


def _outcome(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _end_group(process: int) -> None:
    """End what a test has left running: it is in the process group of its own test process."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _diff(mutant: Mutant, source: str) -> str:
    before = (ROOT / mutant.module).read_text().splitlines()
    lines = unified_diff(
        before, source.splitlines(), mutant.module, mutant.module, n=0, lineterm=""
    )
    return "\n".join(list(lines)[2:])


def unchanged_rooms_pass(work: Sequence[Mutant]) -> None:
    """Run the tests of each room as the code is; raises SystemExit if some fail, for they notice anything."""
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place, "unchanged"))
        for module in {tests_of(mutant.module)[-1]: mutant.module for mutant in work}.values():
            process = bench.start(module, None)
            _, status = os.waitpid(process, 0)
            _end_group(process)
            if _outcome(status) != "survived":
                tail = (bench.directory / "log.txt").read_text()[-3000:]
                raise SystemExit(f"{tests_of(module)[-1]} fails without any change:\n{tail}")


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a Markdown table of outcomes by room."""
    rooms: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        path = Path(verdict.mutant.module)
        room = path.parts[1] if path.parts[0] == "harness" else path.parts[0]
        rooms.setdefault(room, Counter())[verdict.outcome] += 1
    lines = [
        "| room | mutants | killed | timed out | survived |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for room, counts in [*sorted(rooms.items()), ("all", sum(rooms.values(), Counter()))]:
        numbers = [sum(counts.values()), counts["killed"], counts["timeout"], counts["survived"]]
        lines.append(f"| {room} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Try a sample of changes, or with `--sample 0` all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default=",".join((*ROOMS, "analysis")))
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    work = [mutant for module in modules(asked.rooms.split(",")) for mutant in mutants_of(module)]
    found = len(work)
    if asked.sample:
        work = random.Random(asked.seed).sample(work, min(asked.sample, found))
    print(f"{len(work)} of {found} mutants, seed {asked.seed}", flush=True)
    for name in LIBRARIES:
        importlib.import_module(name)
    unchanged_rooms_pass(work)
    verdicts: list[Verdict] = []
    for verdict in try_all(work, asked.jobs):
        verdicts.append(verdict)
        place = f"{verdict.mutant.module} {verdict.mutant.operator}"
        print(
            f"{len(verdicts)}/{len(work)} {verdict.outcome} {verdict.seconds:.0f} s {place}",
            flush=True,
        )
        if verdict.outcome == "survived":
            print(verdict.diff, flush=True)
    print(table(verdicts))
    out = ROOT / "out" / "mutants.json"
    out.parent.mkdir(exist_ok=True)
    kept: list[dict[str, Any]] = [asdict(verdict) for verdict in verdicts]
    out.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
