"""lm-evaluation-harness's command line beside `harness evaluate`, and adapters in one pass beside one by one.

    python -m bench.lm_eval [--adapters 4] [--rows 24] [--rounds 3] [--batch-size 8]

Trains short runs of cycling ranks on the embedded model, unquantized in float32. Then, on tasks of each kind
(`bench.lm_eval_tasks`), `lm_eval run --model hf --model_args pretrained=…,peft=…` scores the first run's
adapter, and `harness evaluate` all of them: both are printed with all their digits. Last, the same requests
are answered for all adapters in one pass and for each alone, in turn, in this process; the ratio is a
median over rounds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.lm_eval_tasks import write_tasks
from bench.measured import keep, load
from harness.commands.saved import find_saved, place_of
from harness.config.schema import EvalConfig
from harness.evals.evaluate import Results
from harness.records.record import read_record
from harness.training.evaluation import score_side_by_side
from harness.training.launch import attach_saved, open_base

RANKS = (2, 4, 8, 16)
_MODEL = Path(__file__).parent.parent / "harness" / "embedded" / "model"

Scores = dict[str, tuple[float, float | None]]
"""Value and standard error by our name of a metric."""


def train_runs(out: Path, count: int) -> list[str]:
    """Train short runs and return their ids."""
    for number in range(count):
        words = ["quant=none", "optim.steps=20", "optim.lr=0.003", "eval=loss", "tracker=none"]
        own = [f"lora.rank={RANKS[number % len(RANKS)]}", f"seed={number}", f"paths.out={out}"]
        _call([sys.executable, "-m", "harness", "run", *words, *own])
    records = [read_record(file) for file in (out / "runs").glob("*/run.json")]
    return [each.run_id for each in sorted(records, key=lambda each: each.started_at)]


def by_lm_eval(adapter: Path, tasks: Path, batch_size: int, out: Path) -> Scores:
    """Return what its command line finds."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    model = f"pretrained={_MODEL},peft={adapter},dtype=float32"
    command += ["--model_args", model, "--tasks", str(tasks), "--batch_size", str(batch_size)]
    _call([*command, "--output_path", str(out)])
    (file,) = out.rglob("results_*.json")
    found: Scores = {}
    for task, values in json.loads(file.read_text())["results"].items():
        for key, value in values.items():
            metric, comma, chosen_by = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = values[f"{metric}_stderr,{chosen_by}"]
                words = ["eval", task, metric, *([chosen_by] if chosen_by != "none" else [])]
                found["/".join(words)] = (value, None if error == "N/A" else error)
    return found


def by_harness(out: Path, runs: Sequence[str], tasks: Path, batch_size: int) -> list[Scores]:
    """Return what our command line finds of each run."""
    asked = [f"eval.tasks=[{tasks}]", f"eval.batch_size={batch_size}", "eval.before=false"]
    command = [sys.executable, "-m", "harness", "evaluate", *runs, *asked]
    told = json.loads(_call([*command, f"paths.out={out}", "--json"]))
    return [
        {
            name: (each["value"], each["standard_error"])
            for name, each in of_run["evals"]["after"].items()
        }
        for of_run in told
    ]


def compare_passes(
    out: Path, runs: Sequence[str], tasks: Path, batch_size: int, rounds: int
) -> dict[str, Any]:
    """Return seconds of one pass and of one by one, in turn, and how far apart what they find lies."""
    place = place_of([f"paths.out={out}"])
    saved = [find_saved(run, place) for run in runs]
    shared = open_base(saved[0].config, saved[0].source, saved[0].fingerprint)
    adapters = [attach_saved(shared, each) for each in saved]
    asked = EvalConfig(tasks=[str(tasks)], batch_size=batch_size)
    seconds: dict[str, list[float]] = {"together": [], "one by one": []}
    apart = 0.0
    for turn in range(rounds + 1):
        began = time.perf_counter()
        together = score_side_by_side(shared, adapters, asked)
        between = time.perf_counter()
        alone = [score_side_by_side(shared, [each], asked)[0] for each in adapters]
        ended = time.perf_counter()
        apart = max(
            apart, *(largest_difference(*pair) for pair in zip(together, alone, strict=True))
        )
        if turn:  # the first warms up
            seconds["together"].append(between - began)
            seconds["one by one"].append(ended - between)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "seconds": seconds,
        "one_by_one_over_together": statistics.median(ratios),
        "largest_relative_difference": apart,
    }


def largest_difference(ours: Results, theirs: Results) -> float:
    """Return the largest difference of a value, as a share of it; infinite where they name other metrics."""
    if ours.keys() != theirs.keys():
        return math.inf
    pairs = [(ours[name].value, theirs[name].value) for name in ours]
    return max(abs(a - b) / max(abs(b), sys.float_info.min) for a, b in pairs)


def _call(command: Sequence[str]) -> str:
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


def print_scores(theirs: Scores, ours: Scores) -> bool:
    """Print both beside each other with all digits; return whether they are equal."""
    print("| metric | lm_eval | harness evaluate | equal |\n| --- | ---: | ---: | --- |")
    for name in sorted(theirs.keys() | ours.keys()):
        cells = [_spelled(scores.get(name)) for scores in (theirs, ours)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {'yes' if cells[0] == cells[1] else 'NO'} |")
    return theirs == ours


def _spelled(score: tuple[float, float | None] | None) -> str:
    if score is None:
        return "—"
    value, error = score
    return repr(value) if error is None else f"{value!r} ± {error!r}"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adapters", type=int, default=4, help="runs that are scored")
    parser.add_argument("--rows", type=int, default=24, help="documents of each task")
    parser.add_argument("--rounds", type=int, default=3, help="of passes, in turn")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of one forward pass")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = load()
    with tempfile.TemporaryDirectory() as directory:
        out, tasks = Path(directory, "out"), Path(directory, "tasks")
        write_tasks(tasks, options.rows)
        runs = train_runs(out, options.adapters)
        adapter = out / "runs" / runs[0] / "adapter"
        theirs = by_lm_eval(adapter, tasks, options.batch_size, Path(directory, "theirs"))
        ours = by_harness(out, runs, tasks, options.batch_size)[0]
        equal = print_scores(theirs, ours)
        passes = compare_passes(out, runs, tasks, options.batch_size, options.rounds)
    print(
        f"\n{options.adapters} adapters one by one over one pass: "
        f"{passes['one_by_one_over_together']:.2f} of {passes['seconds']}; "
        f"the largest relative difference of a value: {passes['largest_relative_difference']:.0e}"
    )
    result = {
        "options": vars(options),
        "lm_eval": theirs,
        "harness": ours,
        "equal": equal,
        "passes": passes,
    }
    keep("lm_eval", result, before)


if __name__ == "__main__":
    main()
