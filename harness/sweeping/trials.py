"""The trials of a sweep: asked of the study, trained as cells of runs, told, and in the end confirmed.

Knows nothing of workers. What it holds can be lost at any moment: the study and the records on disk say all
of it again. What is trained is this driver's own (`tenancy.Alone`), or leased to one of several members, of
which each asks, claims, trains and tells (`tenancy.Leased`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import assert_never

from harness.errors import RequestError
from harness.question.check_space import check_space
from harness.question.points import Point
from harness.question.question import Question
from harness.question.rate_law import transfer_count
from harness.question.settings import Method, PrunerName, Transfer
from harness.records.record import Record, RecordError, RunStatus, read_record, rewrite_with_costs
from harness.records.run_directory import RunDirectory
from harness.request import Request
from harness.study.study import Study, Trial, TrialStatus
from harness.sweeping.ledger import Cell, Ledger, Run, RunState
from harness.sweeping.messages import Role
from harness.sweeping.outcome import (
    Chosen,
    Outcome,
    chosen_for_confirmation,
    confirmation_seeds,
    cost_metrics,
    outcome_of,
)
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import DeviceLine
from harness.sweeping.tenancy import (
    Holder,
    Tenancy,
    in_training,
    item_of_cell,
    item_of_run,
    refuse_another_run,
)

AHEAD = 64
"""Runs that may wait for whoever is free, where several members work: each look reads them all."""
RECENT_SECONDS = 1.0
"""Age in seconds that others' reports may have when a pruner judges."""
TURN_SECONDS = 0.2
"""Seconds that a member takes up what others have asked before it lets them write."""


class Trials:
    """Everything that is to be trained, and what the study knows of it."""

    def __init__(
        self, question: Question, study: Study, maker: RequestMaker, tenancy: Tenancy
    ) -> None:
        self.tenancy = tenancy
        self.study = study
        self.ledger = Ledger(question.name)
        self.confirmed: list[tuple[Chosen, list[Run]]] = []
        self.probes: list[Run] = []
        """Those of the sweep's end, one for each distinct cost; a question about costs has its own before."""
        self.clones: dict[str, Run] = {}
        """Runs that users have asked for beside the search."""
        self._maker = maker
        self._again: list[Run] = []
        """Runs of trials that were told, whose records could not be read."""
        self._lost: dict[str, str] = {}
        """Runs in training whose lease has run out: run id -> item."""
        self._races = question.search.pruner is not PrunerName.none
        self._followed = study.question

    # What there is -------------------------------------------------------------------------------

    @property
    def question(self) -> Question:
        """What is answered; while it goes on more may be asked for."""
        return self.study.question

    @property
    def requested(self) -> int:
        """How many trials the sweep is to have in the end."""
        search = self.question.search
        if search.method is not Method.grid:
            assert search.trials is not None, "refused when the question is read"
            return search.trials
        if search.transfer is Transfer.none:
            points = self.question.space.num_points
        else:
            points = transfer_count(self.question.space)
        assert points is not None, "a grid without end is refused when the question is read"
        return points if search.trials is None else min(points, search.trials)

    @property
    def has_more(self) -> bool:
        """Whether more trials are to be asked for."""
        return len(self.study.trials) < self.requested

    @property
    def may_ask(self) -> bool:
        """Whether there is a trial to ask for now; the next one may follow from results that are awaited."""
        return self.has_more and not self.study.awaits_results

    @property
    def asks_ahead(self) -> bool:
        """Whether to ask before a worker is free, in a search that results do not steer."""
        if not self.may_ask:
            return False
        if not self.tenancy.has_others:
            return self.has_more
        waiting = sum(run.state is RunState.waiting for run in self.ledger.runs.values())
        return self.has_more and waiting < AHEAD

    @property
    def in_flight(self) -> int:
        """How many trials have been asked for and not told, those that wait for one cell counted once."""
        running = {t.number for t in self.study.trials if t.status is TrialStatus.running}
        of_cells = [running.intersection(cell.trials) for cell in self.ledger.cells.values()]
        return sum(map(bool, of_cells)) + len(running) - sum(map(len, of_cells))

    @property
    def in_flight_here(self) -> int:
        """How many cells are not in the hands of another member."""
        return sum(
            any(run.state in (RunState.waiting, RunState.assigned) for run in cell.everything)
            for cell in self.ledger.cells.values()
        )

    def is_done(self) -> bool:
        """Whether all trials are told, and the probes and then the confirmation have ended; begins these."""
        if self.has_more or self.in_flight:
            return False
        if self.question.search.probe and not self.probes:
            self._begin_probes()
        if any(run.state is not RunState.ended for run in self.probes):
            return False  # a probe is alone, and what it finds stands in the records of the confirmation
        if self.question.confirm is not None and not self.confirmed:
            self._begin_confirmation()
        confirming = [run for _, runs in self.confirmed for run in runs]
        late = (*confirming, *self._again, *self.clones.values())
        if any(run.state is not RunState.ended for run in late):
            return False
        self._share_costs()
        return True

    def _is_late(self, run: Run) -> bool:
        """Whether no trial waits for a run: it belongs to the sweep's end."""
        return run.role in (Role.confirmation, Role.clone) or run in self.probes

    def _untold(self, cell: Cell) -> list[int]:
        trials = self.study.trials
        return [n for n in cell.trials if trials[n].status is TrialStatus.running]

    def _new_trials(self) -> list[Trial]:
        """Return the trials in flight that have not been taken up: others asked, or an earlier driver."""
        known = {number for cell in self.ledger.cells.values() for number in cell.trials}
        return [
            trial
            for trial in self.study.trials
            if trial.status is TrialStatus.running and trial.number not in known
        ]

    # More than was asked for at first --------------------------------------------------------------

    def extend(self, change: Callable[[Question], Question]) -> None:
        """Go on with more trials or a wider space; `change` raises RequestError for what cannot be."""
        self.study.extend(change)
        if self.question is not self._followed:
            self._choose_again()

    def _choose_again(self) -> None:
        """Leave open what is confirmed and probed in the end: it was chosen among fewer trials."""
        self._followed = self.question
        for run in [*self.probes, *(run for _, runs in self.confirmed for run in runs)]:
            if run.state in (RunState.waiting, RunState.elsewhere):
                self.ledger.runs.pop(run.run_id, None)
        self.probes.clear()
        self.confirmed.clear()

    def clone(self, point: Point, overrides: Sequence[str]) -> None:
        """Let a run wait that a user has asked for beside the search.

        Raises RequestError for what is refused.
        """
        self.question.space.check_point(point)
        run = self.ledger.add(self._maker.request(point, overrides, Role.clone), Role.clone, None)
        self.clones.setdefault(run.run_id, run)

    # Asking ---------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up the trials that were asked and not told."""
        if not self.tenancy.has_others:
            self._take_up_new()
            self._take_up_damaged()
            return
        known = next((trial for trial in self.study.trials if "runs" in trial.notes), None)
        if known is not None:
            refuse_another_run(known, [r.identity.run_id for r in self._requests(known.point)])
        self.keep_up([])

    def _take_up_damaged(self) -> None:
        """Train again what was told and has lost its record since: the report reads records."""
        told = [t for t in self.study.trials if t.status is TrialStatus.completed]
        runs = self._requests(self._sound_point)[0].directory.path.parent
        for trial in told:
            if not any(_is_damaged(runs / run_id) for run_id in trial.notes.get("runs", ())):
                continue
            for request in self._requests(trial.point):
                if _is_damaged(request.directory.path):
                    self._again.append(self.ledger.add(request, Role.search, trial.number))

    def ask(self) -> None:
        """Ask for one more trial, if there is to be one, and let its runs wait for a worker."""
        with self.study.turn():
            if self.tenancy.has_others:  # their cells may be asked for again
                self._take_up_new()
            if self.may_ask:
                self._take_up(self.study.ask())

    def _take_up_new(self, seconds: float = math.inf) -> None:
        """Take up what was asked by others; after `seconds` the rest is left for the next look."""
        give_up = time.monotonic() + seconds
        for trial in self._new_trials():
            self._take_up(trial)
            if time.monotonic() > give_up:
                self.tenancy.look_soon()
                break

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
        if self.tenancy.has_others:
            refuse_another_run(
                self.study.trials[number], [r.identity.run_id for r in cell.requests]
            )
        notes = self.study.trials[number].notes
        if "runs" not in notes:
            self.study.note(number, "cell", cell.cell_id)
            self.study.note(number, "runs", [r.identity.run_id for r in cell.requests])
            if cost_metrics(self.question):
                probe = self._maker.probe(cell.requests[0].config)
                self.study.note(number, "probe", probe.identity.run_id)

    def _enlist(self, cell: Cell, trial: int) -> None:
        """Let a cell's runs wait for a worker: all seeds, or the first, which races."""
        count = 1 if self._races else len(cell.requests)
        cell.runs = [self.ledger.add(r, Role.search, trial) for r in cell.requests[:count]]
        if cost_metrics(self.question):
            probe = self._maker.probe(cell.requests[0].config)
            cell.probe = self.ledger.add(probe, Role.probe, trial)

    # What is whose ---------------------------------------------------------------------------------

    def claim(self, run: Run) -> bool:
        """Make sure that nobody else trains a run; False where somebody does."""
        if not self.tenancy.has_others:
            return True
        cell = self._cell_of(run)
        if cell is None and not self._is_late(run):  # another has told it meanwhile
            run.end(self._record_from_elsewhere(run))
            return False
        if self.tenancy.take(item_of_run(run) if cell is None else item_of_cell(cell)):
            return True
        for each in [run] if cell is None else cell.everything:
            if each.state is RunState.waiting:
                each.state = RunState.elsewhere
        return False

    def _cell_of(self, run: Run) -> Cell | None:
        """Return the cell in flight that needs a run; of several that need a probe, one of ours if any."""
        if self._is_late(run):
            return None
        cells = [
            each for each in self.ledger.cells.values() if each.trials and run in each.everything
        ]
        return max(cells, key=lambda cell: self.tenancy.holds(item_of_cell(cell)), default=None)

    def keep_up(self, devices: Sequence[DeviceLine]) -> None:
        """Tell others what our devices do, and take in what they have asked, claimed, told and lost."""
        lost = self.tenancy.look(devices)
        if lost is None:
            return
        for item in lost:
            late = [*self.confirmed, (None, [*self.probes, *self.clones.values()])]
            self._lost.update(in_training(item, self.ledger.cells.values(), late))
        self.study.refresh()
        if self.question is not self._followed:
            self._choose_again()
        if self._new_trials():
            with self.study.turn():
                self._take_up_new(TURN_SECONDS)
        self._sort(self.tenancy.holders())

    def _sort(self, holders: Mapping[str, Holder]) -> None:
        """Let runs wait here exactly if they are needed and nobody else has them."""
        open_here: dict[str, bool] = {}
        for cell in self.ledger.cells.values():
            cell.trials = self._untold(cell)
            if not cell.trials:
                continue
            is_open = holders.get(item_of_cell(cell), Holder.nobody) is not Holder.other
            if is_open and self._repeat_what_was_told(cell):
                continue
            for run in cell.everything:
                open_here[run.run_id] = open_here.get(run.run_id, False) or is_open
            if is_open and all(run.state is RunState.ended for run in cell.everything):
                self._settle(cell)  # who had it has gone before telling
        for run in self.ledger.runs.values():
            if run.state not in (RunState.waiting, RunState.elsewhere):
                continue
            if self._is_late(run):
                self._sort_late(run, holders.get(item_of_run(run), Holder.nobody))
            elif run.run_id in open_here:
                run.state = RunState.waiting if open_here[run.run_id] else RunState.elsewhere
            else:
                run.end(self._record_from_elsewhere(run))

    def _sort_late(self, run: Run, holder: Holder) -> None:
        match holder:
            case Holder.done:
                run.end(self._record_from_elsewhere(run))
                if run.record is None:
                    self.tenancy.say(
                        f"{run.run_id} was trained by another member, whose runs are not here: let all "
                        "members have one paths.out, or give study.artifacts"
                    )
            case Holder.other:
                run.state = RunState.elsewhere
            case Holder.nobody:
                run.state = RunState.waiting
            case unknown:
                assert_never(unknown)

    def _repeat_what_was_told(self, cell: Cell) -> bool:
        """Tell trials that asked for a cell while another member was telling it; False if none did."""
        known = told_before(self.study, cell.cell_id, cell.trials[0])
        if known is None:
            return False
        with self.study.turn():
            for number in self._untold(cell):
                self._repeat(known, number)
        cell.trials.clear()
        return True

    def _record_from_elsewhere(self, run: Run) -> Record | None:
        """Return the record of a run that another member has trained, if it can be had here."""
        if self._is_late(run):
            self.tenancy.fetch(run)
        return self.ledger.record_on_disk(run.request)

    # Hearing of runs and telling ------------------------------------------------------------------

    def evaluated(
        self, run: Run, step: int, total_steps: int, values: dict[str, float]
    ) -> str | None:
        """Report an evaluation in the middle of a run; returns why the run should be given up, or None."""
        if not self._races or run.role is not Role.search or step >= total_steps:
            return None
        cell = self.ledger.cells[run.request.identity.cell_id]
        value = values.get(self.question.objectives[0].metric)
        if run is not cell.runs[0] or value is None or not cell.trials:
            return None
        number = cell.trials[0]
        if self.tenancy.has_others:
            self.study.refresh(RECENT_SECONDS)  # the pruner compares with what others have reported
            is_running = self.study.trials[number].status is TrialStatus.running
            if not is_running or not self.tenancy.holds(item_of_cell(cell)):
                return None  # it has been lost, and is another's to prune
        prune = self.study.report(number, step, value)
        pruner = self.question.search.pruner.value
        return f"{pruner} of sweep {self.question.name}" if prune else None

    def ended(self, run: Run, record: Record) -> None:
        """Keep a run's record and tell of every cell that it belongs to: a probe serves several."""
        run.end(record)
        item = self._lost.pop(run.run_id, None)
        if item is not None and not self.tenancy.retake(item):
            self.tenancy.say(f"the late result of {item} ({record.status.value}) is refused")
            return
        if self._is_late(run):
            self._late_ended(run)
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
        runs = [run.record for run in cell.runs if run.record is not None]
        probe = cell.probe.record if cell.probe is not None else None
        self._tell_all(cell, outcome_of(self.question, runs, probe))

    def _tell_all(self, cell: Cell, outcome: Outcome) -> None:
        """Tell the study how a cell has ended."""
        item = item_of_cell(cell)
        if not self.tenancy.retake(item):
            return
        self.tenancy.push(cell.everything)
        with self.study.turn(), self.tenancy.ending(item) as is_ours:
            if is_ours:
                for number in self._untold(cell):  # others may have told some
                    self._tell(number, outcome)
                cell.trials.clear()
            else:
                self.tenancy.say(f"the late result of {item} ({outcome.status.value}) is refused")

    def _late_ended(self, run: Run) -> None:
        """Take note of the end of a run that no trial waits for."""
        self.tenancy.push([run])
        failed = run.record is None or run.record.status is RunStatus.failed
        with self.tenancy.ending(item_of_run(run), frees=failed) as is_ours:  # others try once more
            if not is_ours:
                self.tenancy.say(f"the late result of {item_of_run(run)} is refused")

    def _tell(self, number: int, outcome: Outcome) -> None:
        match outcome.status:
            case TrialStatus.completed:
                if outcome.reason is not None:
                    self.study.note(number, "reason", outcome.reason)
                if outcome.deviation is not None:
                    self.study.note(number, "deviation", outcome.deviation)
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
        for key in ("cell", "runs", "probe"):
            if key in known.notes:
                self.study.note(number, key, known.notes[key])
        self._tell(
            number,
            Outcome(
                status=known.status,
                values=known.values or (),
                violations=tuple(known.violations),
                reason=known.notes.get("reason"),
                deviation=known.notes.get("deviation"),
            ),
        )

    def _begin_probes(self) -> None:
        """Let each distinct cost be measured by a few steps alone, those of one base one after the other."""
        requests = {
            probe.identity.run_id: (probe, trial.number)
            for trial in reversed(self.study.trials)
            if (probe := self._probe_of(trial)) is not None
        }
        self.probes = [
            self.ledger.add(probe, Role.probe, number)
            for probe, number in sorted(
                requests.values(), key=lambda each: repr(each[0].config.quant)
            )
        ]

    def _probe_of(self, trial: Trial) -> Request | None:
        """Return the probe of a trial's configuration; None for one that never had a run."""
        if "runs" not in trial.notes:
            return None
        return self._maker.probe(self._maker.config(trial.point))

    def _share_costs(self) -> None:
        """Write what the probes measured into the records of the runs here that lack it."""
        confirmed = {
            chosen.trial.number: [r.run_id for r in runs] for chosen, runs in self.confirmed
        }
        for trial in self.study.trials:
            probe = self._probe_of(trial) if self.question.search.probe else None
            if probe is None:
                continue
            runs = probe.directory.path.parent
            for run_id in (*trial.notes["runs"], *confirmed.get(trial.number, ())):
                rewrite_with_costs(RunDirectory(runs / run_id), probe.directory)

    def probe_of(self, run: Run) -> RunDirectory | None:
        """Return where the probe of a run's configuration is, or will be; None where there is none."""
        if run.role is Role.probe or not self.question.search.probe:
            return None
        return self._maker.probe(run.request.config).directory

    def _begin_confirmation(self) -> None:
        """Let the chosen cells be trained again on fresh seeds, and scored on the confirmation's split."""
        confirm = self.question.confirm
        assert confirm is not None
        chosen = chosen_for_confirmation(self.study, self.question)
        seeds = confirmation_seeds(self.question, chosen)
        for each in chosen:
            trial = each.trial
            requests = [
                self._maker.request(
                    trial.point,
                    [f"seed={seed}", f"eval.split={confirm.split.value}"],
                    Role.confirmation,
                )
                for seed in seeds
            ]
            runs = [self.ledger.add(r, Role.confirmation, trial.number) for r in requests]
            self.confirmed.append((each, runs))


def _is_damaged(run: Path) -> bool:
    """Whether a run has a record that cannot be read."""
    file = RunDirectory(run).record
    try:
        read_record(file)
    except RecordError:
        return file.exists()
    return False


def told_before(study: Study, cell_id: str, number: int) -> Trial | None:
    """Return an earlier trial of the same cell that has been told, and did not fail."""
    for trial in study.trials:
        same = trial.number != number and trial.notes.get("cell") == cell_id
        if same and trial.status in (TrialStatus.completed, TrialStatus.pruned):
            return trial
    return None
