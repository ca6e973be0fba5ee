"""`python -m bench.all`: how the harness compares with what its users would otherwise do, in one run.

    python -m bench.all [--parts run sweep …] [--threads 2] [--devices cpu:2] [--model MODEL TRAIN VALIDATION]

Installs the peers into bench/.peers at first. Parts, each of which can be repeated alone:

- `run`: one run on the embedded base against transformers.Trainer and TRL: tokens/s, command to first step,
  peak memory;
- `run_model`: the same on a model and Alpaca-style data of yours, where `--model` gives three paths;
- `sweep`: 16 runs as one sweep against shell loops of TRL's and of the Trainer's processes, and Hydra's
  multirun;
- `search`: a search with pruning against a grid of 64 cells in a shell loop, to the same confirmed best;
- `tracking`: what logging costs a step of 50 ms; `report`: a report over 10,000 records.

Results go to bench/results/peers.json as each part ends; the table over all parts in it ends the output.
All arms get the same number of threads. `--quick` only shows that all works.
"""

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bench.peers.arms import Setting
from bench.peers.environment import ready_python, versions
from bench.peers.table import lines_of, markdown
from harness.records.provenance import collect_provenance
from harness.records.run_directory import utc_now, write_text

RESULTS = Path(__file__).parent / "results" / "peers.json"
QUICK_RESULTS = Path(__file__).parent / ".work" / "peers_quick.json"


def _run(setting: Setting) -> dict[str, Any]:
    from bench.peers.single import EMBEDDED, measure

    return measure(setting, EMBEDDED)


def _sweep(setting: Setting) -> dict[str, Any]:
    from bench.peers.sweeps import sixteen

    return sixteen(setting)


def _search(setting: Setting) -> dict[str, Any]:
    from bench.peers.search import sixty_four

    return sixty_four(setting)


def _tracking(setting: Setting) -> dict[str, Any]:
    from bench.tracking import measure

    return measure(setting.directory, 1 if setting.quick else 4)


def _report(setting: Setting) -> dict[str, Any]:
    from bench.report import POINTS, RUNS, measure

    return measure(setting.directory, 200 if setting.quick else RUNS, POINTS)


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "run": _run,
    "sweep": _sweep,
    "search": _search,
    "tracking": _tracking,
    "report": _report,
}


def main() -> int:
    """Measure the parts asked for, keep each as it ends, print the table; 1 if a part has failed."""
    options = _options()
    parts = {"run": PARTS["run"]}
    if options.model is not None:
        from bench.peers.single import measure, model_plan

        plan = model_plan(*options.model)
        parts["run_model"] = lambda setting: measure(setting, plan)
    parts |= PARTS
    python = ready_python()
    path = QUICK_RESULTS if options.quick else RESULTS
    results: dict[str, Any] = {"parts": {}}
    if path.exists() and not options.quick:
        results = json.loads(path.read_text())
    results["peers"] = versions(python)
    failed = []
    for name in options.parts or parts:
        if name not in parts:
            print(f"{name}: left out; give --model MODEL TRAIN VALIDATION")
            continue
        print(f"{utc_now()}  {name}", flush=True)
        try:
            results["parts"][name] = _measured(parts[name], python, options)
        except Exception:  # the other parts are still worth having
            traceback.print_exc()
            failed.append(name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(results, indent=1) + "\n")
    print(f"\n{markdown(lines_of(results['parts']), results)}")
    for name in failed:
        print(f"{name} FAILED; what the table shows of it is from an earlier run, if anything")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "run_model"])
    parser.add_argument("--threads", type=int, default=2, help="threads of every arm")
    parser.add_argument(
        "--devices", default="auto", help="workers of our sweeps: auto, cpu (one), cpu:2"
    )
    parser.add_argument("--model", nargs=3, metavar=("MODEL", "TRAIN", "VALIDATION"))
    parser.add_argument("--quick", action="store_true", help="few steps; the numbers mean nothing")
    return parser.parse_args()


def _measured(
    part: Callable[[Setting], dict[str, Any]], python: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Run one part in a directory of its own; returns its result with when and where it was measured."""
    load, began = psutil.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(
            peers_python=python,
            threads=options.threads,
            devices=options.devices,
            directory=Path(directory),
            quick=options.quick,
        )
        result = part(setting)
    return result | {
        "measured_at": utc_now(),
        "took_seconds": time.monotonic() - began,
        "threads": options.threads,
        "devices": options.devices,
        "load_average_before": load,
        "machine": collect_provenance().as_tree(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
