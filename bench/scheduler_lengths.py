"""How long the parts of a run take: recorded from the worker of a real sweep, for the simulated devices.

`record` runs a small grid with the harness's own driver and one CPU worker that trains one run at a time, and
takes the time of every message. What runs gain from sharing a pass comes from `bench/results/cohort.json`.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import psutil
import yaml

from harness.question.question import load_question
from harness.records.provenance import collect_provenance
from harness.records.record import read_record, utc_now
from harness.records.run_directory import RunDirectory
from harness.study.study import Study
from harness.sweeping.driver import Driver
from harness.sweeping.messages import Busy, Ended, News, Ready, Stepped
from harness.sweeping.pool import Died, Pool, WorkerProcess, devices_for
from harness.sweeping.requests import RequestMaker
from harness.sweeping.trials import Trials
from harness.training.stop import StopRequest

LENGTHS = Path(__file__).parent / "results" / "run_lengths.json"
COHORT = Path(__file__).parent / "results" / "cohort.json"
COHORT_TOKENS = "256"
"""The batch in `cohort.json` nearest to the recorded runs' (some 430 positions per run and step)."""
STEPS, EVERY = 120, 20
BASE = ("model=embedded", "data=rule", "tracker=none", "eval=loss", "eval.before=false")
RANKS = (2, 8)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One real run, trained alone in a warm worker."""

    rank: int
    learning_rate: float
    steps: int
    step_seconds: float
    """Median, as its record says."""
    losses: dict[int, float]
    """Step -> eval/loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLengths:
    """What a simulated device needs to know about time, in seconds."""

    start_seconds: float
    """From the start of the process until it is ready: the libraries' imports."""
    base_seconds: float
    """To load a base that the worker does not hold."""
    begin_seconds: float
    """From the end of one run to the first step of the next."""
    evaluation_seconds: float
    """One evaluation of one run."""
    end_seconds: float
    """From a run's last evaluation until its record and adapter are written."""
    runs: tuple[RecordedRun, ...]
    shares: tuple[tuple[int, float], ...]
    """(runs in a pass, seconds of the pass per run over one run's alone), the first one is (1, 1.0)."""

    def step_seconds(self, rank: int) -> float:
        """Return what one step takes alone: the mean over the recorded runs of the nearest rank."""
        return statistics.fmean(run.step_seconds for run in self._of_rank(rank))

    def pass_share(self, runs: int) -> float:
        """Return a run's share of a pass of so many runs, over a pass of one; linear between sizes."""
        sizes, shares = zip(*self.shares, strict=True)
        return float(numpy.interp(runs, sizes, shares))

    def loss(self, rank: int, learning_rate: float, share_done: float) -> float:
        """Return the evaluation loss of a run, between those of the recorded runs of the nearest rank."""
        found = sorted(self._of_rank(rank), key=lambda run: run.learning_rate)
        at_share = [
            numpy.interp(
                share_done, [step / run.steps for step in run.losses], list(run.losses.values())
            )
            for run in found
        ]
        rates = numpy.log([run.learning_rate for run in found])
        return float(numpy.interp(numpy.log(learning_rate), rates, at_share))

    def stretched(self, times: float) -> "RunLengths":
        """Return the same with steps and evaluations that take so many times as long."""
        runs = tuple(replace(run, step_seconds=times * run.step_seconds) for run in self.runs)
        return replace(self, runs=runs, evaluation_seconds=times * self.evaluation_seconds)

    def _of_rank(self, rank: int) -> list[RecordedRun]:
        nearest = min((run.rank for run in self.runs), key=lambda known: abs(known - rank))
        return [run for run in self.runs if run.rank == nearest]


def load_lengths() -> RunLengths:
    """Read what was recorded, and from the cohort bench what sharing a pass gains."""
    tree = json.loads(LENGTHS.read_text())
    runs = tuple(
        RecordedRun(**run | {"losses": {int(step): loss for step, loss in run["losses"].items()}})
        for run in tree["runs"]
    )
    seconds = {key: value for key, value in tree.items() if key.endswith("_seconds")}
    return RunLengths(**seconds, runs=runs, shares=_shares())


def _shares() -> tuple[tuple[int, float], ...]:
    measured = json.loads(COHORT.read_text())["tokens"][COHORT_TOKENS]
    times = {
        int(name.removesuffix(" stacked")): row["over_alone"]["wall"]["median"]
        for name, row in measured.items()
        if name.endswith(" stacked")
    }
    return tuple(sorted(times.items()))


# Recording ---------------------------------------------------------------------------------------


class ListeningPool(Pool):
    """The harness's pool, which also keeps what was heard and when (seconds)."""

    def __init__(self, logs: Path) -> None:
        super().__init__(logs, hang_seconds=600.0)
        self.heard: list[tuple[float, News | Died]] = []

    def hear(self, seconds: float) -> Iterator[tuple[WorkerProcess, News | Died]]:
        """Yield what workers say, with a note of the time."""
        for worker, news in super().hear(seconds):
            self.heard.append((time.perf_counter(), news))
            yield worker, news


def record(directory: Path) -> None:
    """Run the grid in `directory` and write what was seen."""
    load = psutil.getloadavg()[0]
    file = directory / "lengths.yaml"
    steps = (f"optim.steps={STEPS}", f"eval.every_steps={EVERY}")
    grid = {
        "lora.rank": f"choice({','.join(map(str, RANKS))})",
        "optim.lr": f"choice({','.join(map(str, RATES))})",
    }
    tree = {
        "question": "How long is a run?",
        "base": [*BASE, *steps, f"paths.out={directory / 'out'}"],
        "space": grid,
        "search": {"method": "grid"},
        "resources": {"cohort": 1, "devices": "cpu"},
    }
    file.write_text(yaml.safe_dump(tree))
    question = load_question(str(file), [])
    url = f"sqlite:///{directory / 'study.db'}"
    study = Study.open(question, url, eval_every_steps=EVERY, total_steps=STEPS)
    pool = ListeningPool(directory / "workers")
    began = time.perf_counter()
    try:
        pool.start(devices_for("cpu", lambda: 1)[0])
        for _ in Driver(
            Trials(question, study, RequestMaker(question)), pool, StopRequest()
        ).drive():
            pass
    finally:
        pool.kill()
        study.close()
    found = _seconds(began, pool.heard, directory / "out" / "runs")
    provenance = collect_provenance(arguments=["python", "-m", "bench.scheduler", "--record"])
    result = {"measured_at": utc_now(), "provenance": provenance.as_tree()}
    result |= {"load_average_before": load, **found}
    LENGTHS.write_text(json.dumps(result, indent=1) + "\n")


def _seconds(began: float, heard: list[tuple[float, News | Died]], runs: Path) -> dict[str, Any]:
    """Take the times of messages apart into the parts of a run."""
    ready = next(at for at, news in heard if isinstance(news, Ready))
    loading = next(at for at, news in heard if isinstance(news, Busy))
    begins, ends, evaluations, recorded = [], [], [], []
    first_begin = last_end = 0.0
    for run_id in [news.run_id for _, news in heard if isinstance(news, Ended)]:
        said = [(at, n) for at, n in heard if isinstance(n, Stepped) and n.run_id == run_id]
        evaluated = [(at, n) for at, n in said if n.evaluated is not None]
        ended = next(at for at, n in heard if isinstance(n, Ended) and n.run_id == run_id)
        if recorded:
            begins.append(said[0][0] - last_end)
        else:
            first_begin = said[0][0]
        recorded.append(run := _recorded(runs / run_id, evaluated))
        between = pairwise(evaluated)
        evaluations += [
            b - a - (two.step - one.step) * run.step_seconds for (a, one), (b, two) in between
        ]
        ends.append(ended - evaluated[-1][0])
        last_end = ended
    begin = statistics.median(begins)
    return {
        "start_seconds": ready - began,
        "base_seconds": max(0.0, first_begin - loading - begin),
        "begin_seconds": begin,
        "evaluation_seconds": max(0.0, statistics.median(evaluations)),
        "end_seconds": statistics.median(ends),
        "runs": [asdict(run) for run in recorded],
    }


def _recorded(directory: Path, evaluated: list[tuple[float, Stepped]]) -> RecordedRun:
    left = read_record(RunDirectory(directory).record)
    step_ms = left.metrics["throughput/step_ms"]
    assert step_ms is not None, "every run measures its steps"
    return RecordedRun(
        rank=left.config["lora"]["rank"],
        learning_rate=left.config["optim"]["lr"],
        steps=left.config["optim"]["steps"],
        step_seconds=step_ms / 1000,
        losses={news.step: (news.evaluated or {})["eval/loss"] for _, news in evaluated},
    )
