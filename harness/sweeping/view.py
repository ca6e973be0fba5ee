"""A sweep as a `SweepState`, for the terminal and for `state.json`.

The runs follow from the study's trials, so that a sweep which was interrupted, extended or shared shows the
same as one that was not; the driver's own memory adds how far its runs are.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path

from harness.records.record import RecordError, RunStatus, read_record
from harness.records.run_directory import RunDirectory
from harness.study.study import Trial, TrialStatus
from harness.sweeping.confirmation import most_confirmed
from harness.sweeping.driver import Driver
from harness.sweeping.ledger import Run, RunState
from harness.sweeping.messages import Role
from harness.sweeping.outcome import measure
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
