"""A sweep as a `SweepState`, for the terminal and for `state.json`.

The runs follow from the study's trials, so that a sweep which was interrupted, extended or shared shows the
same as one that was not; the driver's own memory adds how far its runs are.
"""

import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from harness.records.record import RecordError, RunStatus, read_record
from harness.records.run_directory import RunDirectory
from harness.study.study import Trial, TrialStatus
from harness.sweeping.driver import Driver
from harness.sweeping.ledger import Run, RunState
from harness.sweeping.messages import Role
from harness.sweeping.outcome import measure, most_confirmed
from harness.sweeping.state import (
    ConfirmedLine,
    RunLine,
    SweepState,
    TrialLine,
)


class View:
    """Draws up the state of one driver again and again."""

    def __init__(self, driver: Driver, runs: Path) -> None:
        """`runs`: the directory of all runs, for those that ended before this driver began."""
        question = driver.trials.question
        self._runs = runs
        self._ended_before: dict[str, RunLine] = {}
        self._driver = driver
        self._pace = Pace()
        self._told_before: set[int] | None = None
        self._probe_of: dict[str, Path] = {}
        self._state = SweepState(
            name=question.name,
            question=question.question,
            expect=question.expect,
            method=question.search.method.value,
            objectives={o.metric: o.direction.value for o in question.objectives},
            trials_requested=driver.trials.requested,
        )

    def state(self) -> SweepState:
        """Return the state as it is now."""
        driver, state = self._driver, self._state
        state.trials_requested = driver.trials.requested
        state.devices = [*driver.device_lines(), *driver.trials.tenancy.devices_elsewhere]
        state.trials = [_trial_line(trial) for trial in driver.trials.study.trials]
        state.runs = list(self._run_lines())
        state.confirmed = [
            ConfirmedLine(
                point=chosen.trial.point,
                trial=chosen.trial.number,
                compared=chosen.compared,
                runs=[run.run_id for run in runs],
                values={metric: _values(runs, metric) for metric in state.objectives},
            )
            for chosen, runs in driver.trials.confirmed
        ]
        state.complaint = driver.complaint
        self._progress(state)
        return state

    def _run_lines(self) -> Iterator[RunLine]:
        """Yield every run once: those of the trials in their order, then those of the confirmation."""
        ledger, seen = self._driver.trials.ledger.runs, set[str]()
        for trial in self._driver.trials.study.trials:
            seeds = self._driver.trials.question.search.seeds
            asked = list(
                zip(trial.notes.get("runs", ()), seeds, [Role.search] * len(seeds), strict=False)
            )
            if (probe := trial.notes.get("probe")) is not None:
                asked.append((probe, seeds[0], Role.probe))
            for run_id, seed, role in asked:
                if run_id in seen:
                    continue
                seen.add(run_id)
                if run_id in ledger:
                    yield _run_line(ledger[run_id])
                elif (line := self._line_before(trial, run_id, seed, role)) is not None:
                    yield line
        for run_id, run in ledger.items():
            if run_id not in seen:
                yield _run_line(run)

    def _line_before(self, trial: Trial, run_id: str, seed: int, role: Role) -> RunLine | None:
        """Return the line of a run that this driver has not had: from its record, read once.

        None where a trial is not told yet, or was given up before that run began.
        """
        if trial.status is TrialStatus.running:
            return None
        if run_id in self._ended_before:
            return self._ended_before[run_id]
        status, error = "ended elsewhere", None
        try:
            record = read_record(RunDirectory(self._runs / run_id).record)
        except RecordError:
            if trial.status is not TrialStatus.completed:
                return None
        else:
            status, error = record.status.value, record.error
        line = RunLine(
            run_id=run_id,
            role=role.value,
            seed=seed,
            status=status,
            step=0,
            total_steps=None,
            was_there=True,
            error=error,
        )
        if status != "ended elsewhere":  # whose record may still come
            self._ended_before[run_id] = line
        return line

    def _progress(self, state: SweepState) -> None:
        """Measure what is done in trials, and how long the rest takes at the pace of this driver."""
        driver = self._driver
        told = sum(trial.status is not TrialStatus.running for trial in driver.trials.study.trials)
        cells = [cell for cell in driver.trials.ledger.cells.values() if cell.trials]
        begun = sum(
            sum(run.share_done for run in cell.runs) / len(cell.requests) * len(cell.trials)
            for cell in cells
        )
        total, done = float(state.trials_requested), told + begun
        confirm = driver.trials.question.confirm
        if confirm is not None:
            per_trial = 1 / len(driver.trials.question.search.seeds)
            confirming = [run for _, runs in driver.trials.confirmed for run in runs]
            total += per_trial * (
                len(confirming) or most_confirmed(driver.trials.question) * len(confirm.seeds)
            )
            done += per_trial * sum(run.share_done for run in confirming)
        state.share_done = min(1.0, done / total)
        made, left = self._work()
        self._pace.saw(time.monotonic(), made)
        state.seconds_left = self._pace.seconds_for(left)
        if state.seconds_left is not None:
            state.seconds_left += self._seconds_of_probes()

    def _work(self) -> tuple[float, float]:
        """Return the rows trained on since this driver began, by all members, and those still to come.

        What a trial takes is the mean over those told: with a pruner it is less than its runs in full, which
        a confirmation takes.
        """
        trials, runs = self._driver.trials, self._driver.trials.ledger.runs
        question, full = trials.question, _mean_cost(runs.values())

        def work_of(trial: Trial) -> float | None:
            """What was seen here of a trial's training; None where another member did it."""
            known = [runs[run_id] for run_id in trial.notes.get("runs", ()) if run_id in runs]
            seen = any(run.was_there or run.total_steps for run in known)
            return sum(map(_work, known)) if seen else None

        told = [t for t in trials.study.trials if t.status is not TrialStatus.running]
        if self._told_before is None:
            self._told_before = {trial.number for trial in told}
        worked = [work_of(trial) for trial in told if trial.number not in self._told_before]
        here = [work for work in worked if work is not None]
        each = sum(here) / len(here) if here else full * len(question.search.seeds)
        made = sum(map(_work, runs.values())) + each * (len(worked) - len(here))
        left = each * (trials.requested - len(trials.study.trials))
        for trial in trials.study.trials:
            if trial.status is TrialStatus.running:
                left += max(0.0, each - (work_of(trial) or 0.0))
        confirming = [run for _, runs in trials.confirmed for run in runs]
        if confirming:
            left += sum(run.cost for run in confirming if run.state is not RunState.ended)
            left -= sum(_work(run) for run in confirming if run.state is not RunState.ended)
        elif question.confirm is not None:
            left += full * most_confirmed(question) * len(question.confirm.seeds)
        return made, max(0.0, left)

    def _seconds_of_probes(self) -> float:
        """Return what the probes take that are still to come, each as long as those before it."""
        trials = self._driver.trials
        if not trials.question.search.probe:
            return 0.0
        ended = [run for run in trials.probes if run.state is RunState.ended]
        took = [run.record.wall_seconds for run in ended if run.record and run.record.wall_seconds]
        seconds = sum(took) / len(took) if took else PROBE_SECONDS
        new = (r for r in trials.ledger.runs.values() if r.run_id not in self._probe_of)
        for run in list(islice((r for r in new if r.role is Role.search), _NEW_AT_A_TIME)):
            probe = trials.probe_of(run)
            assert probe is not None, "this question probes"
            self._probe_of[run.run_id] = probe.path
        expected = len(trials.probes) or len(set(self._probe_of.values()))
        return (expected - len(ended)) * seconds / max(1, len(self._driver.views))


_NEW_AT_A_TIME = 20
"""Runs that are asked for their probe while a sweep is drawn: each costs milliseconds."""
PROBE_SECONDS = 3.0
"""What a probe is taken to last before one has: a base is loaded, and some steps are made."""


class Pace:
    """How fast work is done, by when it was: without the time before the first, as libraries are imported."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []

    def saw(self, now: float, made: float) -> None:
        """Note how much work this process has seen done in all."""
        if self._seen and made <= self._seen[-1][1]:
            if len(self._seen) == 1:
                self._seen[0] = (now, made)
            return
        self._seen.append((now, made))
        if len(self._seen) > _MOST_SEEN:
            self._seen = [self._seen[0], *self._seen[1:-1:2], self._seen[-1]]

    def seconds_for(self, left: float) -> float | None:
        """Return how long the rest takes at the pace of the later half; None before anything is done."""
        first, last = self._seen[0], self._seen[-1]
        half = (first[1] + last[1]) / 2
        since = max((each for each in self._seen if each[1] <= half), default=first)
        made = last[1] - since[1]
        return left * (last[0] - since[0]) / made if made > 0 else None


_MOST_SEEN = 1000


def _work(run: Run) -> float:
    """Return the rows that a run was trained on since this driver began, as far as it knows."""
    if run.was_there or run.role is Role.probe or not run.total_steps:
        return 0.0
    return run.cost * min(1.0, run.step / run.total_steps)


def _mean_cost(runs: Iterable[Run]) -> float:
    costs = [run.cost for run in runs if run.role is Role.search]
    return sum(costs) / len(costs) if costs else 0.0


def _trial_line(trial: Trial) -> TrialLine:
    told = trial.status is TrialStatus.completed
    return TrialLine(
        number=trial.number,
        point=trial.point,
        status=trial.status.value,
        values=list(trial.values) if trial.values is not None else None,
        feasible=told and all(violation <= 0 for violation in trial.violations),
        runs=list(trial.notes.get("runs", ())),
        reason=trial.notes.get("reason"),
        probe=trial.notes.get("probe"),
    )


def _run_line(run: Run) -> RunLine:
    if run.record is not None:
        status = run.record.status.value
    elif run.state is RunState.ended:
        status = "ended elsewhere"
    elif run.state is RunState.elsewhere:
        status = "elsewhere"
    else:
        status = "training" if run.state is RunState.assigned and run.started else "waiting"
    return RunLine(
        run_id=run.run_id,
        role=run.role.value,
        seed=run.request.config.seed,
        status=status,
        step=run.step,
        total_steps=run.total_steps,
        was_there=run.was_there,
        error=run.record.error if run.record is not None else None,
    )


def _values(runs: list[Run], metric: str) -> list[float]:
    found = [
        measure(run.record, metric)
        for run in runs
        if run.record is not None and run.record.status is RunStatus.completed
    ]
    return [value for value in found if value is not None and math.isfinite(value)]
