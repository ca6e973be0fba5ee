"""What logging costs a training step: the row made and written to metrics.jsonl, and W&B offline beside it.

    python -m bench.tracking [--rounds 8]

The step is 50 ms of small matrix products that take and give back the interpreter's lock as a training
step does. Blocks of steps with nothing, with metrics.jsonl, and with both alternate, so that a slow
stretch of the machine falls on all three. Figures, each as a share of a step of 50 ms:

- `calls`: time spent making the row (readings, shares, throughput) and inside the logging calls, as the loop
  sees it: median, mean, and the mean without the time that the thread was ready and the kernel had given its
  processor to another process (run-queue wait of /proc/thread-self/schedstat): waits that logging causes, for
  a lock, a disk or a thread of ours, stay in it;
- `processor`: processor time of everything logging set off, wandb's thread and service included. This is
  what logging can cost at most, where every core is busy;
- `wall`: the median step with logging against the median step of the neighbouring block without.

The limit is 1 % for `calls` and 2 % for `processor`; `wall` is as noisy as the machine and is reported with
its spread.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from harness.config.schema import TrackerConfig, TrackerName
from harness.measure.meter import meter_of
from harness.measure.series import PassCost, StepCosts
from harness.measure.throughput import StepClock
from harness.measure.work import Work
from harness.records.provenance import collect_provenance
from harness.records.record import MetricsLog, Record, RunStatus, utc_now
from harness.tracking import Tracker, open_tracker

STEP_SECONDS = 0.050
TARGET_SHARES = {"calls": 0.01, "processor": 0.02}

_PRODUCTS_PER_STEP = 25
_STEPS_PER_BLOCK = 40
_CLEAR_STEPS = 3  # first steps of a block, not counted
_SPACED_ROWS = 200

RESULTS = Path(__file__).parent / "results" / "tracking.json"


@dataclass(slots=True)
class Block:
    """Seconds of each step of one kind of logging, over all rounds."""

    steps: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    own_calls: list[float] = field(default_factory=list)
    """Without waits for a processor."""
    medians: list[float] = field(default_factory=list)
    """Median step of each round."""


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each kind")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), rounds)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(
        json.dumps(
            {
                key: result[key]
                for key in ("step_ms", "load_average_before", "opening", "share", "micro")
            },
            indent=2,
        )
    )
    print(f"written to {RESULTS}")


def measure(directory: Path, rounds: int) -> dict[str, Any]:
    """Return what logging costs, over so many blocks of each kind; `directory` gets the files."""
    torch.set_num_threads(1)  # the step's length is then steady; `processor` covers busy neighbours
    load = psutil.getloadavg()[0]  # above the number of cores, the figures are upper bounds
    opening, tracker = _open(directory)
    log = MetricsLog(directory / "metrics.jsonl")
    work = _calibrated_work()
    step = 0

    rows = RowMaker()

    def jsonl() -> None:
        log.log(step, rows.row(step))

    def both() -> None:
        row = rows.row(step)
        log.log(step, row)
        tracker.log(step, row)

    blocks = {"nothing": Block(), "jsonl": Block(), "jsonl_and_wandb_offline": Block()}
    loggers: dict[str, Callable[[], None]] = dict(
        zip(blocks, (lambda: None, jsonl, both), strict=True)
    )
    for _ in range(rounds):
        for name, block in blocks.items():
            seconds = []
            for _ in range(_STEPS_PER_BLOCK):
                step += 1
                began = time.perf_counter()
                work()
                waited, called, busy = _run_queue_seconds(), time.perf_counter(), time.thread_time()
                loggers[name]()
                ended, busy = time.perf_counter(), time.thread_time() - busy
                seconds.append(ended - began)
                block.calls.append(ended - called)
                waited = _run_queue_seconds() - waited
                block.own_calls.append(max(busy, ended - called - waited))
            block.steps += seconds[_CLEAR_STEPS:]
            block.medians.append(statistics.median(seconds[_CLEAR_STEPS:]))
    micro = _micro(log, tracker, step)
    log.close()
    began = time.perf_counter()
    problems = tracker.finish(Record(run_id="bench", status=RunStatus.completed, config={}), [])
    assert problems == [], problems
    opening["finish_seconds"] = time.perf_counter() - began
    return {
        "measured_at": utc_now(),
        "provenance": collect_provenance(
            arguments=["python", "-m", "bench.tracking", "--rounds", str(rounds)]
        ).as_tree(),
        "torch_threads": torch.get_num_threads(),
        "load_average_before": load,
        "rounds": rounds,
        "steps_per_block": _STEPS_PER_BLOCK,
        "step_ms": 1e3 * statistics.median(blocks["nothing"].steps),
        "target_shares": TARGET_SHARES,
        "opening": opening,
        "share": {
            name: _shares(block, blocks["nothing"], micro[f"{name}_processor_ms"])
            for name, block in blocks.items()
            if name != "nothing"
        },
        "micro": micro,
    }


class RowMaker:
    """Makes a row as the training loop does: the meter read after the pass, the step's costs, the rest."""

    def __init__(self) -> None:
        self._meter = meter_of(torch.device("cpu"))
        self._costs, self._clock = StepCosts(), StepClock()
        self._work = Work(per_input_token=1e6, per_loss_token=1e4, peak_per_second=None)

    def row(self, step: int) -> dict[str, float]:
        """Return as many values as a training step logs."""
        cost = PassCost(
            runs=8,
            input_tokens=8192,
            reading=self._meter.now(),
            saved_bytes=10_000_000_000,
            joules=None,
        )
        self._costs.add(cost, 1024)
        self._clock.add(STEP_SECONDS + 1e-8 * step, 1024, 512)
        return {
            "train/loss": 4 / (step + 1),
            "train/grad_norm": 0.731 + step * 1e-3,
            "train/learning_rate": 2e-4,
            "train/epoch": step / 977,
            **self._costs.end_step(self._clock, 5_012_345_678, self._work),
        }


def _run_queue_seconds() -> float:
    """Return how long this thread has been ready and waiting for a processor; 0 where nothing tells."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


def _open(directory: Path) -> tuple[dict[str, float], Tracker]:
    """Open W&B offline; return what the caller waits and how long it takes until a file is there."""
    config = TrackerConfig(name=TrackerName.wandb_offline)
    began = time.perf_counter()
    tracker = open_tracker(config, run_id="bench", directory=directory, config_tree={"seed": 0})
    caller_waits = time.perf_counter() - began
    while not list(directory.rglob("*.wandb")):
        time.sleep(0.001)
    return {"caller_seconds": caller_waits, "ready_seconds": time.perf_counter() - began}, tracker


def _calibrated_work() -> Callable[[], None]:
    """Return a function that takes about STEP_SECONDS in matrix products of some 2 ms each."""
    size = 64

    def work() -> None:
        for _ in range(_PRODUCTS_PER_STEP):
            torch.mm(left, right, out=product)

    while True:
        left, right = torch.randn(size, size), torch.randn(size, size)
        product = torch.empty(size, size)
        if (
            min(_seconds(work) for _ in range(5)) >= STEP_SECONDS
        ):  # the least: others may be running
            return work
        size += 16


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _shares(block: Block, nothing: Block, processor_ms: float) -> dict[str, float]:
    ratios = [
        with_logging / without - 1
        for with_logging, without in zip(block.medians, nothing.medians, strict=True)
    ]
    return {
        "calls": statistics.median(block.calls) / STEP_SECONDS,
        "calls_mean": statistics.fmean(block.calls) / STEP_SECONDS,
        "calls_mean_own": statistics.fmean(block.own_calls) / STEP_SECONDS,
        "processor": processor_ms / 1e3 / STEP_SECONDS,
        "wall": statistics.median(ratios),
        "wall_standard_deviation": statistics.stdev(ratios) if len(ratios) > 1 else 0.0,
    }


def _micro(log: MetricsLog, tracker: Tracker, step: int) -> dict[str, float]:
    """Measure single rows, one per STEP_SECONDS with nothing between: milliseconds per row, or per sync.

    Sleeping costs no processor time, so what the processor does is the logging's; what wandb's service
    does without any rows is subtracted.
    """

    def per_row(call: Callable[[int], object]) -> tuple[float, float]:
        nonlocal step
        busy, waited = _processor_seconds(), 0.0
        for _ in range(_SPACED_ROWS):
            step += 1
            began = time.perf_counter()
            call(step)
            waited += time.perf_counter() - began
            time.sleep(STEP_SECONDS)
        return 1e3 * waited / _SPACED_ROWS, 1e3 * (_processor_seconds() - busy) / _SPACED_ROWS

    rows = RowMaker()
    _, idle_ms = per_row(lambda at: None)
    jsonl_ms, jsonl_processor_ms = per_row(lambda at: log.log(at, rows.row(at)))
    wandb_ms, _ = per_row(lambda at: tracker.log(at, rows.row(at)))

    def both(at: int) -> None:
        row = rows.row(at)
        log.log(at, row)
        tracker.log(at, row)

    _, both_processor_ms = per_row(both)
    syncs = []
    for _ in range(20):
        step += 1
        log.log(step, rows.row(step))
        syncs.append(1e3 * _seconds(log.sync))
    return {
        "idle_processor_ms": idle_ms,
        "jsonl_row_ms": jsonl_ms,
        "jsonl_processor_ms": jsonl_processor_ms - idle_ms,
        "wandb_row_ms": wandb_ms,
        "jsonl_and_wandb_offline_processor_ms": both_processor_ms - idle_ms,
        "sync_ms": statistics.median(syncs),
    }


def _processor_seconds() -> float:
    """Return processor time of this process, its threads and its children (wandb's service) so far."""
    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children]
    return time.process_time() + sum(spent.user + spent.system for spent in times)


if __name__ == "__main__":
    main()
