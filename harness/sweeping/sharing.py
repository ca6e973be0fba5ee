"""The trials of a sweep on which several members work: each asks, claims, trains and tells.

Whoever writes into the study waits for its turn and reads first what the others wrote: all search as one.
What a member trains is leased to it; one that gives no sign of life loses that, and is refused afterwards.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.question.question import Question
from harness.records.record import Record, RunStatus
from harness.study.leases import Lease, Leases, LeaseState, host_of
from harness.study.study import Study, Trial, TrialStatus
from harness.sweeping.artifacts import RunArtifacts
from harness.sweeping.items import in_training, item_of_cell, item_of_run, refuse_another_run
from harness.sweeping.ledger import Cell, Run, RunState
from harness.sweeping.messages import Role
from harness.sweeping.outcome import Outcome
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import DeviceLine
from harness.sweeping.trials import Trials, told_before

AHEAD = 64
"""Runs that may wait for whoever is free, where results do not steer the search: each look reads them all."""
RECENT_SECONDS = 1.0
"""Age in seconds that others' reports may have when a pruner judges."""
TURN_SECONDS = 0.2
"""Seconds that a member takes up what others have asked before it lets them write."""
LOOKS = 4
"""Times in a heartbeat that a member says that it lives, and looks at what others do."""


class SharedTrials(Trials):
    """One member's view of the trials of all."""

    def __init__(
        self,
        question: Question,
        study: Study,
        maker: RequestMaker,
        leases: Leases,
        say: Callable[[str], None],
    ) -> None:
        """`say` is told what happens between members, a line each."""
        super().__init__(question, study, maker)
        place = question.study.artifacts
        self._artifacts = None if place is None else RunArtifacts(study, place)
        self._leases = leases
        self._say = say
        self._mine: set[str] = set()
        self._lost: dict[str, str] = {}
        """Items that were leased to us and that our workers still train: run id -> item."""
        self._look_at = 0.0
        self._devices_elsewhere: list[DeviceLine] = []

    @property
    def asks_ahead(self) -> bool:
        waiting = sum(run.state is RunState.waiting for run in self.ledger.runs.values())
        return self.has_more and waiting < AHEAD

    @property
    def in_flight(self) -> int:
        return sum(trial.status is TrialStatus.running for trial in self.study.trials)

    @property
    def in_flight_here(self) -> int:
        return sum(
            any(run.state in (RunState.waiting, RunState.assigned) for run in cell.everything)
            for cell in self.ledger.cells.values()
        )

    @property
    def devices_elsewhere(self) -> list[DeviceLine]:
        return self._devices_elsewhere

    def ask(self) -> None:
        with self.study.turn():  # knowing every cell that others have asked for: it may come again
            self._take_up_new()
            super().ask()

    # Claiming ------------------------------------------------------------------------------------

    def claim(self, run: Run) -> bool:
        cell = self._cell_of(run)
        if cell is None and run.role is not Role.confirmation:  # another has told it meanwhile
            run.end(self._record_from_elsewhere(run))
            return False
        item = item_of_run(run) if cell is None else item_of_cell(cell)
        if item in self._mine:
            return True
        if self._leases.take(item):
            self._mine.add(item)
            return True
        for each in [run] if cell is None else cell.everything:
            if each.state is RunState.waiting:
                each.state = RunState.elsewhere
        return False

    def _cell_of(self, run: Run) -> Cell | None:
        """Return the cell in flight that needs a run; of several that need a probe, one of ours if any."""
        if run.role is Role.confirmation:
            return None
        cells = [
            each for each in self.ledger.cells.values() if each.trials and run in each.everything
        ]
        return max(cells, key=lambda cell: item_of_cell(cell) in self._mine, default=None)

    # Living together -----------------------------------------------------------------------------

    def resume(self) -> None:
        known = next((trial for trial in self.study.trials if "runs" in trial.notes), None)
        if known is not None:
            refuse_another_run(known, [r.identity.run_id for r in self._requests(known.point)])
        self.keep_up([])

    def keep_up(self, devices: Sequence[DeviceLine]) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self._leases.heartbeat_seconds / LOOKS
        kept = self._leases.renew([asdict(line) for line in devices])
        for item in sorted(self._mine - kept):
            self._say(f"the lease on {item} ran out before it was renewed")
            self._lost.update(in_training(item, self.ledger.cells.values(), self.confirmed))
        self._mine &= kept
        for item, member in self._leases.free_what_is_over():
            self._say(f"{member} gives no sign of life: {item} waits for another member")
        self._devices_elsewhere = [
            DeviceLine(**{**line, "name": f"{host_of(member)} {line['name']}"})
            for member, lines in self._leases.other_members().items()
            for line in lines
        ]
        self._follow()

    def _follow(self) -> None:
        """Take in what others have asked, claimed, told and lost."""
        self.study.refresh()
        if self._new_trials():
            with self.study.turn():
                self._take_up_new(TURN_SECONDS)
        self._sort(self._leases.all())

    def _new_trials(self) -> list[Trial]:
        known = {number for cell in self.ledger.cells.values() for number in cell.trials}
        return [
            trial
            for trial in self.study.trials
            if trial.status is TrialStatus.running and trial.number not in known
        ]

    def _take_up_new(self, seconds: float = math.inf) -> None:
        """Take up what others have asked; after `seconds` the rest is left for the next look."""
        give_up = time.monotonic() + seconds
        for trial in self._new_trials():
            self._take_up(trial)
            if time.monotonic() > give_up:
                self._look_at = 0.0
                break

    def _note(self, number: int, cell: Cell) -> None:
        refuse_another_run(self.study.trials[number], [r.identity.run_id for r in cell.requests])
        super()._note(number, cell)

    def _sort(self, leases: dict[str, Lease]) -> None:
        """Let runs wait here exactly if they are needed and nobody else has them."""
        open_here: dict[str, bool] = {}
        for cell in self.ledger.cells.values():
            cell.trials = self._untold(cell)
            if not cell.trials:
                continue
            is_open = not self._is_with_others(leases.get(item_of_cell(cell)))
            if is_open and self._repeat_what_was_told(cell):
                continue
            for run in cell.everything:
                open_here[run.run_id] = open_here.get(run.run_id, False) or is_open
            if is_open and all(run.state is RunState.ended for run in cell.everything):
                self._settle(cell)  # who had it has gone before telling
        for run in self.ledger.runs.values():
            if run.role is Role.confirmation:
                self._sort_confirmation(run, leases.get(item_of_run(run)))
            elif run.run_id in open_here:
                self._move(run, RunState.waiting if open_here[run.run_id] else RunState.elsewhere)
            elif run.state in (RunState.waiting, RunState.elsewhere):
                run.end(self._record_from_elsewhere(run))

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

    def _untold(self, cell: Cell) -> list[int]:
        trials = self.study.trials
        return [n for n in cell.trials if trials[n].status is TrialStatus.running]

    def _record_from_elsewhere(self, run: Run) -> Record | None:
        """Return the record of a run that another member has trained, if it can be had here."""
        if self._artifacts is not None and run.role is Role.confirmation:
            self._artifacts.fetch(run.request.directory)
        return self.ledger.record_on_disk(run.request)

    def collect(self, runs: Path) -> None:
        if self._artifacts is not None:
            self._artifacts.fetch_all(runs)

    def _sort_confirmation(self, run: Run, lease: Lease | None) -> None:
        if lease is not None and lease.state is LeaseState.done:
            if run.state in (RunState.waiting, RunState.elsewhere):
                run.end(self._record_from_elsewhere(run))
                if run.record is None:
                    self._say(
                        f"{run.run_id} was trained by {lease.member}, whose runs are not here: let all "
                        "members have one paths.out, or give study.artifacts"
                    )
        else:
            others = self._is_with_others(lease)
            self._move(run, RunState.elsewhere if others else RunState.waiting)

    @staticmethod
    def _move(run: Run, state: RunState) -> None:
        if run.state in (RunState.waiting, RunState.elsewhere):
            run.state = state

    def _is_with_others(self, lease: Lease | None) -> bool:
        if lease is None or lease.state is not LeaseState.held:
            return False
        return lease.member != self._leases.member

    def leave(self) -> None:
        self._leases.give_back()
        self._mine.clear()

    # Telling -------------------------------------------------------------------------------------

    def ended(self, run: Run, record: Record) -> None:
        item = self._lost.pop(run.run_id, None)
        if item is None or self._retake(item):
            super().ended(run, record)
        else:
            run.end(record)
            self._say(f"the late result of {item} ({record.status.value}) is refused")

    def _retake(self, item: str) -> bool:
        """Take back what was lost, if nobody else has taken it since."""
        if self._leases.take(item):
            self._mine.add(item)
        return item in self._mine

    def evaluated(
        self, run: Run, step: int, total_steps: int, values: dict[str, float]
    ) -> str | None:
        cell = self.ledger.cells.get(run.request.identity.cell_id)
        if not self._races or cell is None or not cell.trials:
            return None
        self.study.refresh(RECENT_SECONDS)  # the pruner compares with what others have reported
        is_running = self.study.trials[cell.trials[0]].status is TrialStatus.running
        if not is_running or item_of_cell(cell) not in self._mine:
            return None  # it has been lost, and is another's to prune
        return super().evaluated(run, step, total_steps, values)

    def _tell_all(self, cell: Cell, outcome: Outcome) -> None:
        item = item_of_cell(cell)
        if not self._retake(item):
            return
        self._push(cell.everything)
        with self.study.turn(), self._leases.ending(item) as is_ours:
            if is_ours:
                cell.trials = self._untold(cell)  # others may have told some
                super()._tell_all(cell, outcome)
            else:
                self._say(f"the late result of {item} ({outcome.status.value}) is refused")
        self._mine.discard(item)

    def _confirmation_ended(self, run: Run) -> None:
        self._push([run])
        failed = run.record is None or run.record.status is RunStatus.failed
        state = LeaseState.free if failed else LeaseState.done  # others try once more
        with self._leases.ending(item_of_run(run), state) as is_ours:
            if not is_ours:
                self._say(f"the late result of {item_of_run(run)} is refused")
        self._mine.discard(item_of_run(run))

    def _push(self, runs: Sequence[Run]) -> None:
        """Leave runs where members without our disk find them; a store that fails costs nothing else."""
        if self._artifacts is None:
            return
        for run in runs:
            try:
                self._artifacts.push(run.request.directory)
            except Exception as error:  # each kind of store has errors of its own
                self._say(f"{run.run_id} was not left in {self.question.study.artifacts}: {error}")
            self._leases.renew([])  # a large one takes its time
