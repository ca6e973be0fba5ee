"""The time left of a sweep that is played on a clock of its own, against the time it then takes."""

import heapq
import random
from typing import Any

import pytest

from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.records.record import Estimate, Record, RunStatus
from harness.study.study import TrialStatus
from harness.sweeping import view
from harness.sweeping.driver import Driver
from harness.sweeping.ledger import Run, RunState
from harness.sweeping.member import open_study
from harness.sweeping.messages import Role
from harness.sweeping.pool import Pool
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import SweepDirectory
from harness.sweeping.tenancy import Alone
from harness.sweeping.trials import Trials
from harness.sweeping.view import View
from harness.training.stop import StopRequest

SEATS, TRIALS, REPORTS = 3, 30, 4
"""Runs side by side, trials of the sweep, and evaluations of a run, its last one included."""


class Played:
    """A sweep whose runs take the seconds that they are said to take, and no others."""

    def __init__(self, question: Any, directory: SweepDirectory, *, start: float, spread: float):
        directory.path.mkdir(parents=True)
        self.study = open_study(question, check_space(question), directory, None)
        self.trials = Trials(question, self.study, RequestMaker(question), Alone())
        driver = Driver(self.trials, Pool(directory.workers, 60.0), StopRequest())
        self.view = View(driver, directory.path.parent.parent / "runs")
        self.now, self._begins = 0.0, start
        self._chance, self._spread = random.Random(0), spread
        self._queue: list[tuple[float, int, Run, int]] = []

    def _seconds(self, run: Run) -> float:
        """Return what a quarter of a run takes: runs differ by up to `spread`, and all slow down a little."""
        chance = random.Random(run.run_id)
        return 10 * self._spread ** chance.random() * (1 + 0.3 * self.now / 3000)

    def _fill(self) -> None:
        while len(self._queue) < SEATS:
            waiting = [r for r in self.trials.ledger.runs.values() if r.state is RunState.waiting]
            if not waiting and self.trials.has_more:
                self.trials.ask()
                continue
            if not waiting:
                return
            run = waiting[0]
            run.state, run.total_steps = RunState.assigned, REPORTS
            begins = max(self.now, self._begins)
            seconds = 5.0 if run.role is Role.probe else self._seconds(run)
            heapq.heappush(self._queue, (begins + seconds, id(run), run, 1))

    def play(self) -> tuple[float, float]:
        """Return the seconds in all, and those foretold in all once ten trials were told."""
        foretold = None
        while not self.trials.is_done():
            self._fill()
            self.now, _, run, report = heapq.heappop(self._queue)
            run.started, run.step = True, report
            last = run.role is Role.probe or report == REPORTS
            loss = self._chance.random() / report
            if last:
                self._end(run, RunStatus.completed, loss)
            elif self.trials.evaluated(run, report, REPORTS, {"eval/loss": loss}) is not None:
                self._end(run, RunStatus.pruned, loss)
            else:
                entry = (self.now + self._seconds(run), id(run), run, report + 1)
                heapq.heappush(self._queue, entry)
            state = self.view.state()
            told = sum(t.status is not TrialStatus.running for t in self.study.trials)
            if foretold is None and told >= 10 and state.seconds_left is not None:
                foretold = self.now + state.seconds_left, self.now
        self.study.close()
        assert foretold is not None
        return self.now - foretold[1], foretold[0] - foretold[1]

    def _end(self, run: Run, status: RunStatus, loss: float) -> None:
        record = Record(run_id=run.run_id, status=status, config={}, wall_seconds=5.0)
        record.evals["after"] = {"eval/loss": Estimate(value=loss, standard_error=None, n=8)}
        self.trials.ended(run, record)


CONFIRMED = {"top": 3, "seeds": [7, 8, 9]}
QUICK, SLOW = (2.0, 1.0), (300.0, 8.0)
"""Seconds of a worker's start, and how many times as long as the shortest run the longest takes."""


@pytest.mark.parametrize(
    ("times", "pruner", "confirm", "probe"),
    [  # each pair of values at least once
        (QUICK, "none", None, False),
        (QUICK, "asha", CONFIRMED, True),
        (SLOW, "none", CONFIRMED, True),
        (SLOW, "asha", None, True),
        (SLOW, "asha", CONFIRMED, False),
        (SLOW, "none", CONFIRMED, False),
    ],
)
def test_after_ten_trials_the_time_left_is_right_within_a_factor_of_two(
    ask, tmp_path, monkeypatch, times, pruner, confirm, probe
):
    space = {"optim.lr": "tag(log, interval(1e-4, 1e-2))", "lora.rank": "choice(1, 2, 4)"}
    search = {"method": "random", "trials": TRIALS, "pruner": pruner, "probe": probe}
    every = ("eval.every_steps=2", f"optim.steps={2 * REPORTS}")
    question = load_question(str(ask(space=space, search=search, base=every, confirm=confirm)), [])
    directory = SweepDirectory(tmp_path / "out", question.name)
    played = Played(question, directory, start=times[0], spread=times[1])
    monkeypatch.setattr(view.time, "monotonic", lambda: played.now)
    took, foretold = played.play()
    assert took / 2 <= foretold <= 2 * took
