"""`python -m bench.report [RUNS [POINTS]]`: a report over 10,000 records with 200 history points each.

Makes the records in a temporary directory, then measures in processes of their own: reading the records, the
tables, all series of all runs (their columns, and a tenth of them from JSON lines), and the whole `harness
report` with every figure.
Writes bench/results/report.json and prints a table.
"""

import copy
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.compose import compose_run, config_tree
from harness.records.columns import make_columns
from harness.records.provenance import collect_provenance
from harness.records.record import Estimate, MeasuredIn, Record, RunStatus, write_record
from harness.sweeping.state import (
    ConfirmedLine,
    RunLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    TrialLine,
    write_state,
)

RUNS, POINTS = 10_000, 200
SWEEP = "many"
FORMATS = ("none", "nf4", "nf4_dq", "int4", "int4_asym")
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
SEEDS = tuple(range(10))
CONFIRMATION_SEEDS = tuple(range(100, 110))
CONFIRMED_CELLS = 5
HISTORIES = 64
"""Different histories; each is that of many runs, which no reader knows."""

_STAGES = {
    "read the records": "from analysis.sources import load_sweep; load_sweep(out, name)",
    "and build the tables": (
        "from analysis.sources import load_sweep\n"
        "from analysis.specs import specs_for\n"
        "from analysis.tables import build_table\n"
        "from analysis.render import csv, html, latex, markdown\n"
        "sweep = load_sweep(out, name)\n"
        "for spec in specs_for(sweep):\n"
        "    table = build_table(spec, sweep.rows)\n"
        "    markdown(table), latex(table), csv(table), html(table), table.sources()"
    ),
    "all series of all runs": (
        "from analysis.histories import read_histories\n"
        "from harness.records.metrics import SERIES\n"
        "runs = [path.name for path in (out / 'runs').iterdir()]\n"
        "assert len(read_histories(out, runs, SERIES)) == len(runs)"
    ),
    "all series of a tenth of them, from JSON lines": (
        "from harness.records.columns import make_columns\n"
        "for path in sorted((out / 'runs').iterdir())[::10]:\n"
        "    make_columns(path / 'metrics.jsonl', keep=False)"
    ),
    "the whole report": "from analysis.report import report_sweep; report_sweep(out, name)",
}

_MEASURED = """
import json, resource, sys, time
started = time.perf_counter()
from pathlib import Path
out, name = Path(sys.argv[1]), sys.argv[2]
{code}
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
heavy = sorted({{"torch", "transformers", "wandb"}} & set(sys.modules))
print(json.dumps({{"seconds": seconds, "peak_bytes": peak, "heavy": heavy}}))
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the made-up grid."""

    format: str
    rank: int
    lr: float

    @property
    def point(self) -> dict[str, str]:
        return {"quant": self.format, "lora.rank": str(self.rank), "optim.lr": repr(self.lr)}

    @property
    def loss(self) -> float:
        return 1 + 1 / self.rank + math.log10(self.lr / 5e-3) ** 2


def main(runs: int, points: int) -> None:
    """Measure, print and write the result."""
    with tempfile.TemporaryDirectory() as directory:
        tree = measure(Path(directory), runs, points)
    path = Path("bench/results/report.json")
    path.write_text(json.dumps(tree, indent=1) + "\n")
    print(f"| {tree['runs']} records, {points} history points each | seconds | peak memory |")
    print("| --- | ---: | ---: |")
    for stage, result in tree["stages"].items():
        print(f"| {stage} | {result['seconds']:.1f} | {result['peak_bytes'] / 2**20:.0f} MiB |")


def measure(out: Path, runs: int, points: int) -> dict[str, Any]:
    """Make the records under `out` and return the seconds and the peak memory of each stage."""
    made = make_sweep(out, runs, points)
    results = {stage: _measure(code, out) for stage, code in _STAGES.items()}
    for stage, result in results.items():
        assert not result.pop("heavy"), stage
    return {"runs": made, "history_points": points, "stages": results}


def make_sweep(out: Path, runs: int, points: int) -> int:
    """Write a finished sweep with so many records; return how many there are."""
    base = config_tree(compose_run(["tracker=none", f"paths.out={out}"]))
    provenance = collect_provenance().as_tree()
    histories = [_history(random.Random(seed), points) for seed in range(HISTORIES)]
    num_cells = (runs - CONFIRMED_CELLS * len(CONFIRMATION_SEEDS)) // len(SEEDS)
    cells = list(
        itertools.islice(_cells(math.ceil(num_cells / len(FORMATS) / len(RANKS))), num_cells)
    )
    trials, lines, confirmed = [], [], []
    draw = random.Random(0)

    def write(cell: Cell, seed: int, role: str, trial: int) -> str:
        record = _record(base, provenance, cell, seed, role, trial, draw)
        directory = out / "runs" / record.run_id
        directory.mkdir(parents=True)
        write_record(directory / "run.json", record)
        metrics = directory / "metrics.jsonl"
        metrics.write_text(histories[len(lines) % HISTORIES])
        make_columns(metrics, keep=True)  # as a run does that ends
        lines.append(_run_line(record, role, seed, points))
        return record.run_id

    for number, cell in enumerate(cells):
        run_ids = [write(cell, seed, "search", number) for seed in SEEDS]
        trials.append(_trial_line(number, cell, run_ids))
    best = sorted(range(num_cells), key=lambda number: cells[number].loss)[:CONFIRMED_CELLS]
    for number in best:
        run_ids = [
            write(cells[number], seed, "confirmation", number) for seed in CONFIRMATION_SEEDS
        ]
        values = {"eval/loss": [cells[number].loss] * len(CONFIRMATION_SEEDS)}
        confirmed.append(
            ConfirmedLine(point=cells[number].point, trial=number, runs=run_ids, values=values)
        )
    _write_sweep(out, trials, lines, confirmed)
    return len(lines)


def _cells(num_rates: int) -> Iterator[Cell]:
    rates = [float(f"{1e-4 * 1000 ** (i / max(1, num_rates - 1)):.4g}") for i in range(num_rates)]
    return (Cell(f, r, lr) for lr in rates for f in FORMATS for r in RANKS)


def _record(
    base: dict[str, Any],
    provenance: dict[str, Any],
    cell: Cell,
    seed: int,
    role: str,
    trial: int,
    draw: random.Random,
) -> Record:
    loss = cell.loss + draw.gauss(0, 0.02)
    adapter = 58_368 * cell.rank
    scores = {
        "eval/loss": loss,
        "eval/perplexity": math.exp(loss),
        "eval/exact_match": math.exp(-loss),
    }
    evals = {k: Estimate(value=v, standard_error=0.01, n=200) for k, v in scores.items()}
    return Record(
        run_id=f"{cell.format}-r{cell.rank}-lr{cell.lr}-s{seed}",
        status=RunStatus.diverged if draw.random() < 0.01 else RunStatus.completed,
        config=_config(base, cell, seed, role),
        metrics={
            "memory/base_bytes": 5_000_000 if cell.format == "none" else 1_120_896,
            "memory/quant_constants_bytes": 20_000,
            "memory/adapter_bytes": adapter,
            "memory/gradient_bytes": adapter,
            "memory/optimizer_bytes": 2 * adapter,
            "memory/activation_bytes": 45_000_000,
            "memory/peak_bytes": 46_000_000 + 4 * adapter,
            "throughput/step_ms": 50 + draw.random(),
            "adapter/trainable_params": adapter // 4,
            "base/bits_per_param": 4.5,
            "train/loss": loss,
        },
        evals={
            "before": {"eval/loss": Estimate(value=8.6, standard_error=0.1, n=200)},
            "after": evals,
        },
        measured_in=MeasuredIn.solo,
        provenance=provenance | {"sweep": {"name": SWEEP, "role": role, "trial": trial}},
        wall_seconds=10.0,
    )


def _config(base: dict[str, Any], cell: Cell, seed: int, role: str) -> dict[str, Any]:
    config = copy.deepcopy(base)
    config["quant"] |= {"format": cell.format.removesuffix("_dq")}
    config["quant"] |= {"double_quant": cell.format.endswith("_dq")}
    config["lora"] |= {"rank": cell.rank}
    config["optim"] |= {"lr": cell.lr}
    config["eval"] |= {"split": "test" if role == "confirmation" else "validation"}
    config["seed"] = seed
    return config


def _history(draw: random.Random, points: int) -> str:
    lines = []
    for step in range(1, points + 1):
        row = {
            "step": step,
            "train/loss": 8 / math.sqrt(step) + draw.random(),
            "train/grad_norm": 1 + draw.random(),
            "train/learning_rate": 5e-3 * (1 - step / points),
            "train/epoch": step * 0.008,
            "throughput/step_ms": 50 + draw.random(),
            "throughput/input_tokens_per_second": 20480 * (1 + draw.random() / 50),
            "throughput/loss_tokens_per_second": 10240 * (1 + draw.random() / 50),
            "memory/allocated_bytes": 5_012_345_678,
            "memory/peak_bytes": 15_012_345_678,
            "memory/resident_bytes": 2_012_345_678 + 4096 * step,
            "cohort/runs": 8,
            "cohort/token_share": 0.1 + draw.random() / 20,
        }
        if step % 20 == 0:
            row["eval/loss"] = 8 / math.sqrt(step)
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def _trial_line(number: int, cell: Cell, run_ids: list[str]) -> TrialLine:
    return TrialLine(
        number=number,
        point=cell.point,
        status="completed",
        values=[cell.loss],
        feasible=True,
        runs=run_ids,
        reason=None,
    )


def _run_line(record: Record, role: str, seed: int, steps: int) -> RunLine:
    return RunLine(
        run_id=record.run_id,
        role=role,
        seed=seed,
        status=record.status.value,
        step=steps,
        total_steps=steps,
        was_there=False,
        error=None,
    )


def _write_sweep(
    out: Path, trials: list[TrialLine], lines: list[RunLine], confirmed: list[ConfirmedLine]
) -> None:
    directory = SweepDirectory(out, SWEEP)
    directory.path.mkdir(parents=True)
    space = {
        "quant": f"choice({','.join(FORMATS)})",
        "lora.rank": "choice()",
        "optim.lr": "choice()",
    }
    directory.question.write_text(json.dumps({"name": SWEEP, "base": [], "space": space}))
    state = SweepState(
        name=SWEEP,
        question="How long does a report take?",
        expect="Less than ten seconds.",
        method="grid",
        objectives={"eval/loss": "minimize"},
        trials_requested=len(trials),
        status=SweepStatus.finished,
        trials=trials,
        runs=lines,
        confirmed=confirmed,
    )
    write_state(directory, state)


def _measure(code: str, out: Path) -> dict[str, Any]:
    """Run code in a process of its own; return its seconds, imports included, and its peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED.format(code=code), str(out), SWEEP],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main(*([int(word) for word in sys.argv[1:]] + [RUNS, POINTS][len(sys.argv) - 1 :]))
