"""The trials of a sweep: asked of the study, trained as cells of runs, told, and in the end confirmed.

Knows nothing of workers. What it holds can be lost at any moment: the study and the records on disk say all
of it again. Here everything is this driver's own; `harness.sweeping.members` has the trials of a sweep that
several members work on.
"""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import assert_never

from harness.errors import RequestError
from harness.question.check_space import check_space
from harness.question.points import Point
from harness.question.question import Question
from harness.question.settings import Method, PrunerName
from harness.records.record import Record
from harness.request import Request
from harness.study.study import Study, Trial, TrialStatus
from harness.sweeping.confirmation import chosen_for_confirmation
from harness.sweeping.ledger import Cell, Ledger, Run, RunState
from harness.sweeping.messages import Role
from harness.sweeping.outcome import Outcome, cost_metrics, outcome_of
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import DeviceLine


class Trials:
    """Everything that is to be trained, and what the study knows of it."""

    def __init__(self, question: Question, study: Study, maker: RequestMaker) -> None:
        self.question = question
        self.study = study
        self.ledger = Ledger(question.name)
        self.confirmed: list[tuple[Trial, list[Run]]] = []
        self.seconds_asking = 0.0
        """Time spent on asking and telling."""
        self._maker = maker
        self._races = question.search.pruner is not PrunerName.none

    # What there is -------------------------------------------------------------------------------

    @property
    def requested(self) -> int:
        """How many trials the sweep is to have in the end."""
        search = self.question.search
        if search.method is not Method.grid:
            assert search.trials is not None, "refused when the question is read"
            return search.trials
        points = self.question.space.num_points
        assert points is not None, "a grid without end is refused when the question is read"
        return points if search.trials is None else min(points, search.trials)

    @property
    def has_more(self) -> bool:
        """Whether more trials are to be asked for."""
        return len(self.study.trials) < self.requested

    @property
    def asks_ahead(self) -> bool:
        """Whether to ask before a worker is free, in a search that results do not steer."""
        return self.has_more

    @property
    def in_flight(self) -> int:
        """How many cells have been asked for and not ended."""
        return sum(not cell.is_ended for cell in self.ledger.cells.values())

    @property
    def in_flight_here(self) -> int:
        """How many of them are not in the hands of another member."""
        return self.in_flight

    def is_done(self) -> bool:
        """Whether all trials are told and all confirmation runs have ended; begins the confirmation."""
        if self.has_more or self.in_flight:
            return False
        if self.question.confirm is not None and not self.confirmed:
            self._begin_confirmation()
        return all(run.state is RunState.ended for _, runs in self.confirmed for run in runs)

    # Of several members, this one ------------------------------------------------------------------

    def claim(self, run: Run) -> bool:
        """Make sure that nobody else trains a run; False where somebody does."""
        return True

    def keep_up(self, devices: Sequence[DeviceLine]) -> None:
        """Tell the others that we live and what our devices do, and hear it of them."""

    @property
    def devices_elsewhere(self) -> list[DeviceLine]:
        """What the workers of other members do."""
        return []

    def leave(self) -> None:
        """Give back what has not ended, for others to take up; called when our workers have stopped."""

    def collect(self, runs: Path) -> None:
        """Bring the runs of other members to `runs` on this machine, where that needs to be done."""

    # Asking ---------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up the trials that were asked and not told."""
        for trial in self.study.trials:
            if trial.status is TrialStatus.running:
                self._take_up(trial)

    def ask(self) -> None:
        """Ask for one more trial, if there is to be one, and let its runs wait for a worker."""
        started = time.perf_counter()
        with self.study.turn():
            if self.has_more:
                self._take_up(self.study.ask())
        self.seconds_asking += time.perf_counter() - started

    def _take_up(self, trial: Trial) -> None:
        """Find or make the cell of a trial; a cell whose result is known is told at once."""
        try:
            requests = self._requests(trial.point)
        except RequestError as error:  # a point between those that were checked
            # Raises where this machine is at fault, not the point.
            self._requests(self._sound_point)
            self.study.fail(trial.number, str(error))
            return
        cell_id = requests[0].identity.cell_id
        known = told_before(self.study, cell_id, trial.number)
        if known is not None:
            self._repeat(known, trial.number)
            return
        cell = self.ledger.cells.setdefault(
            cell_id, Cell(point=trial.point, requests=tuple(requests))
        )
        cell.trials.append(trial.number)
        self._note(trial.number, cell)
        if all(run.state is RunState.ended and run.record is None for run in cell.runs):
            self._enlist(cell, trial.number)
        self._settle(cell)

    def _requests(self, point: Point) -> list[Request]:
        """Return the requests of a point, one per seed. Raises RequestError for what is refused."""
        return [
            self._maker.request(point, [f"seed={seed}"], Role.search)
            for seed in self.question.search.seeds
        ]

    @cached_property
    def _sound_point(self) -> Point:
        """A point that was checked before anything was trained."""
        return check_space(self.question)[0][0]

    def _note(self, number: int, cell: Cell) -> None:
        """Write into the study which runs answer a trial."""
        notes = self.study.trials[number].notes
        if "runs" not in notes:
            self.study.note(number, "cell", cell.cell_id)
            self.study.note(number, "runs", [r.identity.run_id for r in cell.requests])

    def _enlist(self, cell: Cell, trial: int) -> None:
        """Let a cell's runs wait for a worker: all seeds, or the first, which races."""
        count = 1 if self._races else len(cell.requests)
        cell.runs = [self.ledger.add(r, Role.search, trial) for r in cell.requests[:count]]
        if cost_metrics(self.question):
            probe = self._maker.probe(cell.requests[0].config)
            cell.probe = self.ledger.add(probe, Role.probe, trial)

    # Hearing of runs and telling ------------------------------------------------------------------

    def evaluated(
        self, run: Run, step: int, total_steps: int, values: dict[str, float]
    ) -> str | None:
        """Report an evaluation in the middle of a run; returns why the run should be given up, or None."""
        if not self._races or run.role is not Role.search or step >= total_steps:
            return None
        cell = self.ledger.cells[run.request.identity.cell_id]
        value = values.get(self.question.objectives[0].metric)
        if run is not cell.runs[0] or value is None:
            return None
        number = cell.trials[0]
        started = time.perf_counter()
        prune = self.study.report(number, step, value)
        self.seconds_asking += time.perf_counter() - started
        pruner = self.question.search.pruner.value
        return f"{pruner} of sweep {self.question.name}" if prune else None

    def ended(self, run: Run, record: Record) -> None:
        """Keep a run's record and tell of every cell that it belongs to: a probe serves several."""
        run.end(record)
        if run.role is Role.confirmation:
            self._confirmation_ended(run)
        own = self.ledger.cells.get(run.request.identity.cell_id)
        known = self.ledger.cells.values() if run.role is Role.probe else [own] if own else []
        for cell in known:
            if cell.trials and run in cell.everything:
                self._settle(cell)

    def _settle(self, cell: Cell) -> None:
        """Tell the study of a cell that has ended; let the other seeds follow one that has survived."""
        if any(run.state is not RunState.ended for run in cell.runs):
            return
        if len(cell.runs) < len(cell.requests) and cell.survived:
            trial = cell.runs[0].trial
            cell.runs += [
                self.ledger.add(r, Role.search, trial) for r in cell.requests[len(cell.runs) :]
            ]
        if not cell.is_ended:
            return
        started = time.perf_counter()
        runs = [run.record for run in cell.runs if run.record is not None]
        probe = cell.probe.record if cell.probe is not None else None
        self._tell_all(cell, outcome_of(self.question, runs, probe))
        self.seconds_asking += time.perf_counter() - started

    def _tell_all(self, cell: Cell, outcome: Outcome) -> None:
        """Tell the study how a cell has ended."""
        for number in cell.trials:
            self._tell(number, outcome)
        cell.trials.clear()

    def _confirmation_ended(self, run: Run) -> None:
        """Take note of the end of a run that no trial waits for."""

    def _tell(self, number: int, outcome: Outcome) -> None:
        match outcome.status:
            case TrialStatus.completed:
                if outcome.reason is not None:
                    self.study.note(number, "reason", outcome.reason)
                self.study.complete(number, outcome.values, outcome.violations)
            case TrialStatus.pruned:
                self.study.prune(number)
            case TrialStatus.failed:
                self.study.fail(number, outcome.reason or "")
            case TrialStatus.running:
                raise AssertionError("an outcome is an end")
            case unknown:
                assert_never(unknown)

    def _repeat(self, known: Trial, number: int) -> None:
        """Tell a trial what another one of the same cell has found, at once.

        Reports on the way are not repeated: a pruner would count the same run as several that went so far,
        and stop others by it.
        """
        for key in ("cell", "runs"):
            self.study.note(number, key, known.notes[key])
        self._tell(
            number,
            Outcome(
                status=known.status,
                values=known.values or (),
                violations=tuple(known.violations),
                reason=known.notes.get("reason"),
            ),
        )

    def _begin_confirmation(self) -> None:
        """Let the best cells be trained again on fresh seeds and scored on the split of the confirmation."""
        confirm = self.question.confirm
        assert confirm is not None
        for trial in chosen_for_confirmation(self.study, confirm.top):
            requests = [
                self._maker.request(
                    trial.point,
                    [f"seed={seed}", f"eval.split={confirm.split.value}"],
                    Role.confirmation,
                )
                for seed in confirm.seeds
            ]
            runs = [self.ledger.add(r, Role.confirmation, trial.number) for r in requests]
            self.confirmed.append((trial, runs))


def told_before(study: Study, cell_id: str, number: int) -> Trial | None:
    """Return an earlier trial of the same cell that has been told, and did not fail."""
    for trial in study.trials:
        same = trial.number != number and trial.notes.get("cell") == cell_id
        if same and trial.status in (TrialStatus.completed, TrialStatus.pruned):
            return trial
    return None
