"""How busy one driver keeps 1 to 1000 devices, and how much of a processor that takes: a simulation.

    python -m bench.scheduler [--devices 1 8 64] [--methods grid asha] [--stretch 1 30] [--record]

The driver is the real one: its loop, trials, ledger, Optuna study in SQLite, composed and identified
requests, pipes, run records read from disk, `state.json` every second. Its work takes the processor time that
it takes here. The devices are simulated (bench.scheduler_devices) with the parts' times of real runs on the
embedded base and a CPU worker (results/run_lengths.json, `--record` measures them again) and with the gain of
shared passes (results/cohort.json). `--stretch 30` lets steps and evaluations take 30 times as long.

- `grid`: four lengths of run, 30 to 120 steps, on two bases.
- `asha`: TPE, runs of 120 steps of which successive halving ends most early, on two bases.

Every slot of every device gets `--rounds` trials on average. An arm that takes more than `--seconds` of
processor time is cut, and told as far as it came. Busy shares are given for all of the arm, start of the
workers included, and for its middle: from the first run's end until no run waits any more.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import psutil
import yaml

from bench.scheduler_arm import HEADING, Arm, Case, Shares, line
from bench.scheduler_lengths import BASE, EVERY, STEPS, RunLengths, load_lengths, record
from bench.scheduler_pool import SimulatedPool, SkippingClock
from harness.commands.drive import DRAW_SECONDS, STATE_SECONDS
from harness.question.question import load_question
from harness.records.provenance import collect_provenance
from harness.records.record import utc_now
from harness.study.study import Study, TrialStatus
from harness.sweeping.display import progress_text
from harness.sweeping.driver import Driver
from harness.sweeping.pool import Device
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import SweepDirectory, write_state
from harness.sweeping.trials import Trials
from harness.sweeping.view import View
from harness.training.stop import StopRequest

RESULTS = Path(__file__).parent / "results" / "scheduler.json"
DEVICES = (1, 2, 4, 8, 16, 64, 256, 1000)
METHODS = ("grid", "asha")
STRETCHES = (1.0, 30.0)
GRID_STEPS = (30, 60, 90, 120)
FORMATS, RANKS = ("nf4_dq", "int4"), (2, 4, 8, 16)
LEAST_TRIALS = 32
LEAST_RATE, MOST_RATE = 1e-3, 3e-2


def write_question(file: Path, case: Case) -> None:
    """Write the sweep that is simulated, as a user would."""
    space = {
        "quant": f"choice({','.join(FORMATS)})",
        "lora.rank": f"choice({','.join(map(str, RANKS))})",
    }
    search: dict[str, object] = {"trials": case.trials}
    fixed = []
    if case.method == "grid":
        space["optim.steps"] = f"choice({','.join(map(str, GRID_STEPS))})"
        cells = len(FORMATS) * len(RANKS) * len(GRID_STEPS)
        rates = numpy.geomspace(LEAST_RATE, MOST_RATE, max(2, -(-case.trials // cells)))
        space["optim.lr"] = f"choice({','.join(f'{rate:.7f}' for rate in rates)})"
        search["method"] = "grid"
    else:
        space["optim.lr"] = f"tag(log, interval({LEAST_RATE},{MOST_RATE}))"
        search |= {"method": "tpe", "pruner": "asha"}
        fixed = [f"optim.steps={STEPS}"]
    out = f"paths.out={file.parent / 'out'}"
    tree = {
        "question": "How busy are the devices?",
        "base": [*BASE, f"eval.every_steps={EVERY}", out, *fixed],
        "space": space,
        "search": search,
        "objective": {"eval/loss": "minimize"},
        "resources": {"cohort": case.cohort, "devices": "cpu"},
    }
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


def simulate(directory: Path, case: Case, lengths: RunLengths, most_seconds: float) -> Arm:
    """Run one sweep over simulated devices, for so many processor seconds at most."""
    file = directory / "simulated.yaml"
    write_question(file, case)
    question = load_question(str(file), [])
    sweep = SweepDirectory(directory / "out", question.name)
    sweep.path.mkdir(parents=True)
    steps = None if case.method == "grid" else STEPS
    study = Study.open(question, sweep.storage, eval_every_steps=EVERY, total_steps=steps)
    clock = SkippingClock()
    pool = SimulatedPool(directory, clock, lengths.stretched(case.stretch))
    for index in range(case.devices):
        pool.start(Device(name=f"simulated:{index}", environment={}))
    driver = Driver(Trials(question, study, RequestMaker(question)), pool, StopRequest())
    began, really_began = clock.now(), time.process_time()
    try:
        _drive(driver, sweep, clock, until=really_began + most_seconds)
        ended = clock.now()
        statuses = Counter(trial.status for trial in study.trials)
    finally:
        pool.kill()
        study.close()
    worked = clock.worked()
    return Arm(
        case=case,
        told=statuses.total() - statuses[TrialStatus.running],
        pruned=statuses[TrialStatus.pruned],
        finished=driver.is_finished,
        seconds=ended - began,
        devices_busy=_shares(pool, [w.station.busy for w in pool.all], 1, began, ended),
        slots_busy=_shares(
            pool, [w.station.held(ended) for w in pool.all], case.cohort, began, ended
        ),
        driver_load=worked / (ended - began),
        driver_seconds=worked,
        messages_per_second=len(pool.delays) / (ended - began),
        delay_seconds=_quantile(pool.delays, 0.5),
        late_delay_seconds=_quantile(pool.delays, 0.95),
        processor_seconds=time.process_time() - really_began,
    )


def _drive(driver: Driver, sweep: SweepDirectory, clock: SkippingClock, until: float) -> None:
    """Do what `harness sweep` does without a terminal, until this process has worked for so long."""
    view, drawn_at, written_at = View(driver), clock.now(), clock.now()
    for _ in driver.drive():
        if clock.now() - drawn_at >= DRAW_SECONDS:
            state = view.state()
            progress_text(state)
            drawn_at = clock.now()
            if clock.now() - written_at >= STATE_SECONDS:
                write_state(sweep, state)
                written_at = clock.now()
        if time.process_time() > until:
            return


Span = tuple[float, float]


def _shares(
    pool: SimulatedPool, spans: Sequence[Sequence[Span]], places: int, began: float, ended: float
) -> Shares:
    """Return the share of the time that spans cover, `places` of which a device has side by side."""
    held = [span for worker in pool.all for span in worker.station.held(ended)]
    first_end = min(
        (end for worker in pool.all for _, end in worker.station.trained), default=ended
    )
    last_begin = min(ended, max((begin for begin, _ in held), default=began))
    whole = _covered(spans, began, ended) / places
    if last_begin <= first_end:
        return Shares(whole=whole, middle=None)
    return Shares(whole=whole, middle=_covered(spans, first_end, last_begin) / places)


def _covered(spans: Sequence[Sequence[Span]], began: float, ended: float) -> float:
    covered = sum(
        max(0.0, min(end, ended) - max(begin, began)) for device in spans for begin, end in device
    )
    return covered / (len(spans) * (ended - began))


def _quantile(seconds: Sequence[float], share: float) -> float | None:
    return float(numpy.quantile(seconds, share)) if seconds else None


# The command -------------------------------------------------------------------------------------


def main() -> None:
    """Simulate what is asked for, print and write it; other results are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--stretch", nargs="+", type=float, default=list(STRETCHES))
    parser.add_argument("--cohort", type=int, default=4, help="slots of a device")
    parser.add_argument("--rounds", type=int, default=4, help="trials per slot")
    parser.add_argument("--seconds", type=float, default=10.0, help="of work per arm at most")
    parser.add_argument(
        "--record", action="store_true", help="first train the runs that are recorded"
    )
    asked = parser.parse_args()
    if asked.record:
        with tempfile.TemporaryDirectory() as directory:
            record(Path(directory))
    lengths, load = load_lengths(), psutil.getloadavg()[0]
    arms = []
    for method, stretch in product(asked.methods, asked.stretch):
        print(f"\n{method}, lengths x {stretch:g}\n{HEADING}")
        for devices in asked.devices:
            trials = max(LEAST_TRIALS, asked.rounds * devices * asked.cohort)
            case = Case(
                method=method, stretch=stretch, devices=devices, cohort=asked.cohort, trials=trials
            )
            with tempfile.TemporaryDirectory() as directory:
                arms.append(simulate(Path(directory), case, lengths, asked.seconds))
            print(line(arms[-1]), flush=True)
    _write(arms, load, asked)


def _write(arms: Sequence[Arm], load: float, asked: argparse.Namespace) -> None:
    """Keep the results of the other cases that the file has."""
    known = json.loads(RESULTS.read_text())["arms"] if RESULTS.exists() else []
    new = {_key(asdict(arm)): asdict(arm) for arm in arms}
    kept = {_key(arm): arm for arm in known} | new
    words = [
        f"--{key} {' '.join(map(str, value))}"
        for key, value in vars(asked).items()
        if isinstance(value, list)
    ]
    command = ["python", "-m", "bench.scheduler", *" ".join(words).split()]
    result = {
        "measured_at": utc_now(),
        "provenance": collect_provenance(arguments=command).as_tree(),
        "load_average_before": load,
        "arms": [kept[key] for key in sorted(kept)],
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {RESULTS.name}")


def _key(arm: dict[str, Any]) -> tuple[str, float, int, int]:
    case = arm["case"]
    return case["method"], case["stretch"], case["devices"], case["cohort"]


if __name__ == "__main__":
    main()
