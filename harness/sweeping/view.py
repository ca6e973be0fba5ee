"""The driver's memory as a `SweepState`, for the terminal and for `state.json`."""

import math
import time

from harness.records.record import RunStatus
from harness.study.study import Trial, TrialStatus
from harness.sweeping.driver import Driver
from harness.sweeping.ledger import Run, RunState
from harness.sweeping.outcome import measure
from harness.sweeping.state import (
    ConfirmedLine,
    RunLine,
    SweepState,
    TrialLine,
)


class View:
    """Draws up the state of one driver again and again."""

    def __init__(self, driver: Driver) -> None:
        question = driver.trials.question
        self._driver = driver
        self._began = time.monotonic()
        self._done_before: float | None = None
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
        state.devices = [*driver.device_lines(), *driver.trials.tenancy.devices_elsewhere]
        state.trials = [_trial_line(trial) for trial in driver.trials.study.trials]
        state.runs = [_run_line(run) for run in driver.trials.ledger.runs.values()]
        state.confirmed = [
            ConfirmedLine(
                point=trial.point,
                trial=trial.number,
                runs=[run.run_id for run in runs],
                values={metric: _values(runs, metric) for metric in state.objectives},
            )
            for trial, runs in driver.trials.confirmed
        ]
        state.complaint = driver.complaint
        self._progress(state)
        return state

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
            total += per_trial * (len(confirming) or confirm.top * len(confirm.seeds))
            done += per_trial * sum(run.share_done for run in confirming)
        if self._done_before is None:
            self._done_before = done
        made = done - self._done_before
        state.share_done = min(1.0, done / total)
        seconds = time.monotonic() - self._began
        state.seconds_left = (total - done) * seconds / made if made > 0 else None


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
