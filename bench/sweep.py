"""What a sweep costs against its runs one by one, in processes of their own and in one warm worker.

    python -m bench.sweep [--parts processes tokens idle workers] [--positions 64 256]

- `processes`: 16 runs (4 ranks x 4 learning rates) of `harness run`'s defaults on the embedded base: as 16
  `harness run` processes one after another, as a sweep one at a time (one worker, cohort 1), and as a sweep
  that chooses workers and cohorts. Targets: 1/2.5 of the processes.
- `tokens`: the same 16 with 64 to 4096 positions per run and step in one worker, one at a time against the
  chosen cohort. Targets: 1/1.3 (aim 1/1.6) up to 256 positions, never slower.
- `idle`: 16 runs whose lengths differ 4 times; how long workers had nothing to do. Target: 2 %.
- `workers`: 16 runs of one length, and 16 whose lengths differ 4 times, two CPU workers against one; each
  worker has half of the cores, also the one alone. Reported.

Every arm is a `harness` command from a shell, imports and all; `warm` seconds leave out the time until the
worker's first run begins. W&B is off in all arms. Results: bench/results/sweep.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from bench.measured import BENCH, circumstances, load
from harness.records.run_directory import write_text

RANKS = (2, 4, 8, 16)
RATES = (2e-3, 5e-3, 1e-2, 2e-2)
ROW_POSITIONS = 27
"""Positions that a row of `rule` on the embedded base takes on average, its share of padding included."""
TOKENS = {64: 60, 256: 40, 1024: 20, 4096: 10}
"""Positions per run and step -> steps."""
ONE_WORKER = "resources.devices=cpu"
SHORT = ("tracker=none", "eval=loss", "eval.before=false")
ONE_AT_A_TIME = (ONE_WORKER, "resources.cohort=1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of training the same runs."""

    seconds: float
    """Seconds from the first command to the end of the last."""
    warm_seconds: float
    """Without imports: from the first run's beginning to the last one's end, as the worker saw it."""
    waited_seconds: float
    """Seconds that all workers together had nothing to do since their first run began."""
    packing: str


def harness(arguments: Sequence[str], threads: str | None = None) -> float:
    """Run one command, on so many threads if that is said; returns its seconds."""
    environment = os.environ if threads is None else os.environ | {"OMP_NUM_THREADS": threads}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began


def sweep(question: Path, out: Path, *overrides: str, threads: str | None = None) -> Arm:
    """Run a sweep from nothing; its cache of bases and data is kept between arms."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    shutil.rmtree(out / "sweeps", ignore_errors=True)
    seconds = harness(["sweep", str(question), f"paths.out={out}", *overrides], threads)
    state = json.loads((out / "sweeps" / question.stem / "state.json").read_text())
    assert all(run["status"] == "completed" for run in state["runs"]), state["runs"]
    devices = state["devices"]
    return Arm(
        seconds=seconds,
        warm_seconds=max(device["seconds"] for device in devices),
        waited_seconds=sum(device["waited_seconds"] for device in devices),
        packing="; ".join(device["packing"] for device in devices),
    )


def choice(values: Iterable[object]) -> str:
    """Return an axis of these values, as a sweep's file has it."""
    return f"choice({','.join(map(str, values))})"


SIXTEEN = {"lora.rank": choice(RANKS), "optim.lr": choice(RATES)}


def write_question(
    directory: Path,
    name: str,
    base: Sequence[str],
    space: Mapping[str, str] = SIXTEEN,
    **parts: object,
) -> Path:
    """Write a question for `harness sweep`, a grid unless `search` says otherwise; returns its file."""
    file = directory / f"{name}.yaml"
    tree = {"question": "What does this sweep cost?", "base": [*base], "space": {**space}}
    tree |= {"search": {"method": "grid"}, **parts}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def processes(directory: Path) -> dict[str, object]:
    """16 processes one after another against a sweep, and against one worker one at a time."""
    out = directory / "out"
    file = write_question(directory, "sixteen", ["tracker=none"])
    one_run = ("run", "tracker=none", f"paths.out={out}")
    harness([*one_run, "optim.steps=1"])  # the caches are warm for all
    chosen = [sweep(file, out)]
    shutil.rmtree(out / "runs")
    alone = sum(
        harness([*one_run, f"lora.rank={rank}", f"optim.lr={rate}"])
        for rank in RANKS
        for rate in RATES
    )
    one = sweep(file, out, *ONE_AT_A_TIME)
    chosen.append(sweep(file, out))
    best = min(arm.seconds for arm in chosen)
    return {
        "processes_seconds": alone,
        "one_at_a_time": asdict(one),
        "sweep": [asdict(arm) for arm in chosen],
        "processes_over_sweep": alone / (sum(arm.seconds for arm in chosen) / len(chosen)),
        "processes_over_best_sweep": alone / best,
    }


def tokens(directory: Path, sizes: Sequence[int] = tuple(TOKENS)) -> dict[str, object]:
    """One at a time against the chosen cohort at several batch sizes, interleaved."""
    found: dict[str, object] = {}
    for positions in sizes:
        steps = TOKENS[positions]
        rows = max(1, round(positions / ROW_POSITIONS))
        base = [*SHORT, "data.validation_rows=32"]
        base += [f"optim.batch_size={rows}", f"optim.steps={steps}"]
        file = write_question(directory, f"tokens{positions}", base)
        out = directory / "out"
        chosen = [sweep(file, out, ONE_WORKER)]
        one = [sweep(file, out, *ONE_AT_A_TIME)]
        chosen.append(sweep(file, out, ONE_WORKER))
        one.append(sweep(file, out, *ONE_AT_A_TIME))
        ratio = sum(a.warm_seconds for a in one) / sum(a.warm_seconds for a in chosen)
        found[str(positions)] = {
            "one_at_a_time": [asdict(arm) for arm in one],
            "chosen": [asdict(arm) for arm in chosen],
            "one_at_a_time_over_chosen": ratio,
        }
        print(f"{positions} positions: {ratio:.2f}  ({chosen[-1].packing})")
    return found


def idle(directory: Path) -> dict[str, object]:
    """The worker's time with nothing to do, for runs of 40 to 160 steps."""
    space = {"optim.steps": choice((40, 80, 120, 160)), "optim.lr": choice(RATES)}
    file = write_question(directory, "lengths", ["tracker=none", "eval=loss"], space)
    arm = sweep(file, directory / "out")
    found: dict[str, object] = asdict(arm)
    return found | {"waited_share": arm.waited_seconds / arm.warm_seconds}


def workers(directory: Path) -> dict[str, object]:
    """Two CPU workers against one, interleaved, for runs of 40 steps and for runs of 16 to 64."""
    threads = str(max(1, (os.cpu_count() or 1) // 2))  # what `cpu:2` gives to each
    spread = {"optim.steps": choice((16, 32, 48, 64)), "optim.lr": choice(RATES)}
    files = (
        write_question(directory, "one_length", [*SHORT, "optim.steps=40"]),
        write_question(directory, "spread_lengths", SHORT, spread),
    )
    found: dict[str, object] = {"threads_per_worker": int(threads)}
    for file in files:
        arms: dict[int, list[Arm]] = {1: [], 2: []}
        for count in (1, 2, 2, 1):
            overrides = (f"resources.devices=cpu:{count}",)
            arms[count].append(sweep(file, directory / "out", *overrides, threads=threads))
        one, two = arms[1], arms[2]
        found[file.stem] = {
            "one_worker": [asdict(arm) for arm in one],
            "two_workers": [asdict(arm) for arm in two],
            "speed_up": sum(a.seconds for a in one) / sum(a.seconds for a in two),
            "speed_up_warm": sum(a.warm_seconds for a in one) / sum(a.warm_seconds for a in two),
        }
    return found


PARTS: dict[str, Callable[[Path], dict[str, object]]] = {
    "processes": processes,
    "tokens": tokens,
    "idle": idle,
    "workers": workers,
}


def main() -> None:
    """Measure the parts asked for; results of the others are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--positions", nargs="+", type=int, choices=TOKENS, default=list(TOKENS))
    arguments = parser.parse_args()
    asked = arguments.parts
    parts = PARTS | {"tokens": lambda directory: tokens(directory, arguments.positions)}
    file = BENCH / "results" / "sweep.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for name in asked:
        before = load()
        with tempfile.TemporaryDirectory() as directory:
            found = parts[name](Path(directory))
        print(name, json.dumps(found, indent=1))
        result[name] = {**circumstances(before), **found}
        write_text(file, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
