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
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import report, tracking
from bench.measured import BENCH, load
from bench.peers.arms import Setting
from bench.peers.search import sixty_four
from bench.peers.single import EMBEDDED, measure, model_plan
from bench.peers.sweeps import sixteen
from bench.peers.table import lines_of, markdown
from harness.records.provenance import collect_provenance
from harness.records.run_directory import utc_now, write_text

RESULTS = BENCH / "results" / "peers.json"
QUICK_RESULTS = BENCH / ".work" / "peers_quick.json"
PEERS = BENCH / ".peers"
"""The peers' own environment, made from `requirements.txt` with pip."""
REQUIREMENTS = BENCH / "peers" / "requirements.txt"
_VERSIONS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({n: m.version(n) for n in "
    "('torch', 'transformers', 'peft', 'bitsandbytes', 'trl', 'accelerate', 'datasets', 'hydra-core')}))"
)
PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "run": lambda setting: measure(setting, EMBEDDED),
    "sweep": sixteen,
    "search": sixty_four,
    "tracking": lambda setting: tracking.measure(setting.directory, 1 if setting.quick else 4),
    "report": lambda setting: report.measure(
        setting.directory, 200 if setting.quick else report.RUNS, report.POINTS
    ),
}


def ready_python() -> Path:
    """Return the peers' interpreter; makes the environment where it is not there or not of these pins."""
    python, stamp = PEERS / "bin" / "python", PEERS / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {PEERS}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS], check=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    pins = ["-c", str(BENCH.parent / "constraints.txt"), "-r", str(REQUIREMENTS)]
    subprocess.run([python, "-m", "pip", "install", *quiet, *pins], check=True)
    (PEERS / ".gitignore").write_text("*\n")
    stamp.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return what is installed there."""
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    """Measure the parts asked for, keep each as it ends, print the table; 1 if a part has failed."""
    options = _options()
    parts = {"run": PARTS["run"]}
    if options.model is not None:
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
    before, began = load(), time.monotonic()
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
        "load_average_before": before,
        "machine": collect_provenance().as_tree(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
