"""Small changes to the code, each made alone, and whether the tests notice.

    python -m tests.mutants [--sample 200] [--seed 0] [--rooms plan,study] [--jobs 2]
    python -m tests.mutants --edits     only the ten that once went unnoticed, which come first otherwise
    python -m tests.mutants … --tests tests/plan tests/measure/test_throughput.py    judged by these alone

The changes are cosmic-ray's. Its own runner starts a Python for each, which here would spend ten seconds
on imports; so the tests run in forks of processes that have the code and the tests loaded, in copies of the
project. All tests run once without any change, which must pass, and it is recorded which lines each of them
runs: a change is judged by those that run the changed lines, until one fails. Prints a table and
writes `out/mutants/verdicts.json`; what survived belongs into docs/mutants.md, with its reason.
"""

import argparse
import importlib
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import unified_diff
from itertools import islice
from pathlib import Path

from tests.mutants.changes import ROOMS, ROOT, Mutant, modules, mutants_of, only_elsewhere
from tests.mutants.edits import EDITS, Edit
from tests.mutants.reach import Reach
from tests.mutants.trials import Copy, side_by_side

LIBRARIES = (
    *("torch", "transformers", "peft", "numpy", "scipy.stats", "optuna", "pandas", "yaml", "hydra"),
    *("matplotlib.pyplot", "hypothesis", "cosmic_ray.plugins", "bitsandbytes", "datasets"),
    *("transformers.models.llama.modeling_llama", "rouge_score.rouge_scorer"),
)
OUT = ROOT / "out" / "mutants"
FILES = 5
"""Test files of a room that are recorded in one process, which shares what they set up."""
ROOMS_GIVEN = ",".join(ROOMS)
QUICK = ("config", "records", "embedded", "commands/test_data.py", "sweeping/test_tenancy.py")
"""Tests that judge beside those of the rooms: quick ones that use them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said of a change."""

    mutant: Mutant | Edit
    outcome: str
    """killed; timeout, which is killed, too; survived; unreached, where no test runs the module; elsewhere,
    where only a GPU would run it."""
    by: str
    """The test that failed, or why no test here can."""
    seconds: float
    diff: str


def verdicts(
    work: Sequence[Mutant | Edit], reach: Reach, unchanged: Path, copies: Sequence[Copy]
) -> Iterator[Verdict]:
    """Try every change."""

    def diff(mutant: Mutant | Edit) -> str:
        return _diff(mutant.module, before := before_of(mutant), mutant.source(before))

    def before_of(mutant: Mutant | Edit) -> str:
        return (unchanged / mutant.module).read_text()

    judged = {mutant: [] if only_elsewhere(mutant) else reach.judges(mutant) for mutant in work}
    for mutant in (each for each in work if not judged[each]):
        reason = only_elsewhere(mutant)
        yield Verdict(mutant, "elsewhere" if reason else "unreached", reason, 0.0, diff(mutant))

    def start(copy: Copy, mutant: Mutant | Edit) -> None:
        source = mutant.source(before_of(mutant))
        copy.change(mutant.module, source)
        tests = [(each.test, each.seconds, each.setup) for each in judged[mutant]]
        copy.ask("judge", mutant.module, mutant.function, mutant.lines, source, tests)

    for end in side_by_side([each for each in work if judged[each]], copies, start):
        end.copy.put_back(end.work.module)
        survived = end.outcome == "survived"
        by = "" if survived else (end.copy.directory / "killer.txt").read_text()
        yield Verdict(end.work, end.outcome, by, end.seconds, diff(end.work))


def _diff(module: str, before: str, after: str) -> str:
    lines = unified_diff(before.splitlines(), after.splitlines(), module, module, n=0, lineterm="")
    return "\n".join(list(lines)[2:])


def record_reach(reach: Reach, test_files: Sequence[str], copies: Sequence[Copy]) -> None:
    """Run all tests that may judge, as the code is; raises SystemExit if one fails: it notices anything."""
    rooms: dict[str, list[str]] = {}
    for file in reach.unknown(test_files):
        rooms.setdefault(file.split("/")[1], []).append(file)
    parts = [files[i : i + FILES] for files in rooms.values() for i in range(0, len(files), FILES)]
    order = sorted(parts, key=len, reverse=True)

    def start(copy: Copy, files: list[str]) -> None:
        copy.ask("record", files)

    for end in side_by_side(order, copies, start):
        about = f"{end.seconds:4.0f} s  unchanged: {len(end.work)} files of {end.work[0]}"
        print(about, flush=True)
        if end.outcome != "survived":
            raise SystemExit(f"{end.work} fail without any change:\n{end.copy.log}")
        reach.keep(end.work, end.copy.reached())


def files_of(judging: Sequence[str], root: Path) -> list[str]:
    """Return the test files in these directories."""
    places = [root / place for place in judging]
    found = [f for p in places for f in (sorted(p.rglob("test_*.py")) if p.is_dir() else [p])]
    return [str(file.relative_to(root)) for file in found]


def by_edit(results: Sequence[Verdict]) -> str:
    """Return a Markdown table of changes and the test that failed first."""
    lines = ["| change | outcome | the first test that failed |", "| --- | --- | --- |"]
    lines += [f"| {each.mutant.operator} | {each.outcome} | {each.by} |" for each in results]
    return "\n".join(lines)


KINDS = ("killed", "timeout", "survived", "unreached", "elsewhere")


def table(results: Sequence[Verdict]) -> str:
    """Return a Markdown table of outcomes by room."""
    rooms: dict[str, Counter[str]] = {}
    for verdict in results:
        path = Path(verdict.mutant.module)
        room = path.parts[1] if path.parts[0] == "harness" else path.parts[0]
        rooms.setdefault(room, Counter())[verdict.outcome] += 1
    lines = [
        "| room | changes | killed | timed out | survived | unreached | only on a GPU | noticed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for room, counts in [*sorted(rooms.items()), ("all", sum(rooms.values(), Counter()))]:
        judged = sum(counts.values()) - counts["elsewhere"]
        noticed = (counts["killed"] + counts["timeout"]) / judged if judged else 1.0
        numbers = [sum(counts.values()), *(counts[kind] for kind in KINDS)]
        lines.append(f"| {room} | {' | '.join(map(str, numbers))} | {noticed:.1%} |")
    return "\n".join(lines)


def sampled(rooms: Sequence[str], unchanged: Path, count: int, seed: int) -> list[Mutant | Edit]:
    """Return a sample of all changes to the modules of these rooms, or all of them."""
    found: list[Mutant | Edit] = [
        each for name in modules(rooms, unchanged) for each in mutants_of(name, unchanged)
    ]
    random.Random(seed).shuffle(found)
    programs = (each for each in found if _is_program((unchanged / each.module).read_text(), each))
    work = list(islice(programs, count or None))
    print(f"{len(work)} of {len(found)} mutants, seed {seed}", flush=True)
    return work


def _is_program(before: str, mutant: Mutant | Edit) -> bool:
    """Say whether a change can be compiled; that of the stars in f(**settings) cannot."""
    try:
        compile(mutant.source(before), mutant.module, "exec")
    except SyntaxError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Try a sample of changes, or with `--sample 0` all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default=ROOMS_GIVEN)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--edits", action="store_true", help="the ten of edits.py alone")
    parser.add_argument("--tests", nargs="+", help="files and directories that judge; all rooms'")
    asked = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    rooms = asked.rooms.split(",")
    judging = asked.tests or [f"tests/{name}" for name in (*rooms, *QUICK)]
    from harness.base.quick_imports import quiet_libraries

    quiet_libraries()
    for name in LIBRARIES:
        importlib.import_module(name)
    results: list[Verdict] = []
    with tempfile.TemporaryDirectory() as place:
        unchanged = Copy(Path(place, "unchanged"), ROOT).directory  # the tree may go on changing
        copies = [Copy(Path(place, str(n)), unchanged, n) for n in range(asked.jobs)]
        work: list[Mutant | Edit] = list(EDITS) if asked.rooms == ROOMS_GIVEN else []
        if not asked.edits:
            work += sampled(rooms, unchanged, asked.sample, asked.seed)
        reach = Reach(OUT / "reach.json", unchanged)
        test_files = files_of(judging, unchanged)
        for copy in copies:
            copy.load(test_files)
        record_reach(reach, test_files, copies)
        for verdict in verdicts(work, reach, unchanged, copies):
            results.append(verdict)
            mutant = verdict.mutant
            print(
                f"{len(results)}/{len(work)} {verdict.outcome} {verdict.seconds:.0f} s "
                f"{mutant.module} {mutant.operator} {verdict.by}",
                flush=True,
            )
            if verdict.outcome not in ("killed", "timeout"):
                print(verdict.diff, flush=True)
        for copy in copies:
            copy.close()
    print(by_edit([each for each in results if isinstance(each.mutant, Edit)]))
    print(table([each for each in results if isinstance(each.mutant, Mutant)]))
    OUT.mkdir(parents=True, exist_ok=True)
    kept = [asdict(verdict) for verdict in results]
    (OUT / "verdicts.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
