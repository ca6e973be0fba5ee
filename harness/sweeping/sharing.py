"""The trials of a sweep on which several members work: each asks, claims, trains and tells.

The study is one PostgreSQL database. Whoever writes into it waits for its turn and reads first what the
others wrote, so that they all search as one: with one budget of trials, and every cell trained once. What a
member trains is leased to it; a member that gives no sign of life loses its leases, and what it tells
afterwards is refused.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.record import Record
from harness.search.leases import Lease, Leases, LeaseState, host_of
from harness.search.question import Question
from harness.search.study import Study, Trial, TrialStatus
from harness.sweeping.artifacts import RunArtifacts
from harness.sweeping.ledger import Cell, Run, RunState
from harness.sweeping.messages import Role
from harness.sweeping.outcome import Outcome
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import DeviceLine
from harness.sweeping.trials import Trials

AHEAD = 64
"""Runs that may wait for whoever is free, where results do not steer the search: each look reads them all."""
RECENT_SECONDS = 1.0
"""How old what others have reported may be when a pruner judges."""
TURN_SECONDS = 0.2
"""How long a member takes up what others have asked before it lets them write."""
LOOKS = 4
"""How often in a heartbeat a member says that it lives, and looks at what others do."""


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
        """What our workers still train of what was leased to us: run id -> item."""
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

    # Claiming ------------------------------------------------------------------------------------

    def claim(self, run: Run) -> bool:
        cell = self._cell_of(run)
        item = _item(run) if cell is None else _item_of_cell(cell)
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
        return max(cells, key=lambda cell: _item_of_cell(cell) in self._mine)

    # Living together -----------------------------------------------------------------------------

    def resume(self) -> None:
        self.keep_up([])

    def keep_up(self, devices: Sequence[DeviceLine]) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self._leases.heartbeat_seconds / LOOKS
        kept = self._leases.renew([asdict(line) for line in devices])
        for item in sorted(self._mine - kept):
            self._say(f"the lease on {item} ran out before it was renewed")
            self._lost.update(self._in_training(item))
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
        known = {number for cell in self.ledger.cells.values() for number in cell.trials}
        if any(self._is_new(trial, known) for trial in self.study.trials):
            give_up = time.monotonic() + TURN_SECONDS
            with self.study.turn():
                for trial in self.study.trials:
                    if self._is_new(trial, known):
                        self._take_up(trial)
                    if time.monotonic() > give_up:  # the rest when the others have had their turns
                        self._look_at = 0.0
                        break
        self._sort(self._leases.all())

    @staticmethod
    def _is_new(trial: Trial, known: set[int]) -> bool:
        return trial.status is TrialStatus.running and trial.number not in known

    def _sort(self, leases: dict[str, Lease]) -> None:
        """Let runs wait here exactly if they are needed and nobody else has them."""
        open_here: dict[str, bool] = {}
        for cell in self.ledger.cells.values():
            told = [
                n for n in cell.trials if self.study.trials[n].status is not TrialStatus.running
            ]
            cell.trials = [n for n in cell.trials if n not in told]
            if not cell.trials:
                continue
            is_open = not self._is_with_others(leases.get(_item_of_cell(cell)))
            for run in cell.everything:
                open_here[run.run_id] = open_here.get(run.run_id, False) or is_open
            if is_open and all(run.state is RunState.ended for run in cell.everything):
                self._settle(cell)  # who had it has gone before telling
        for run in self.ledger.runs.values():
            if run.role is Role.confirmation:
                self._sort_confirmation(run, leases.get(_item(run)))
            elif run.run_id in open_here:
                self._move(run, RunState.waiting if open_here[run.run_id] else RunState.elsewhere)
            elif run.state in (RunState.waiting, RunState.elsewhere):
                run.end(self._record_from_elsewhere(run))

    def _record_from_elsewhere(self, run: Run) -> Record | None:
        """Return the record of a run that another member has trained, if it can be had here."""
        if self._artifacts is not None and run.role is Role.confirmation:
            self._artifacts.fetch(run.request.directory)
        return self.ledger.record_on_disk(run.request)

    def collect(self) -> None:
        if self._artifacts is not None:
            out = Path(self._maker.config(next(iter(self.study.trials)).point).paths.out)
            self._artifacts.fetch_all(out / "runs")

    def _sort_confirmation(self, run: Run, lease: Lease | None) -> None:
        if lease is not None and lease.state is LeaseState.done:
            if run.state in (RunState.waiting, RunState.elsewhere):
                run.end(self._record_from_elsewhere(run))
                if run.record is None:
                    self._say(
                        f"{run.run_id} was confirmed by {lease.member}, whose runs are not here: let all "
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
            if self._artifacts is not None:
                self._artifacts.push(run.request.directory)
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
        if not is_running or _item_of_cell(cell) not in self._mine:
            return None  # it has been lost, and is another's to prune
        return super().evaluated(run, step, total_steps, values)

    def _tell_all(self, cell: Cell, outcome: Outcome) -> None:
        item = _item_of_cell(cell)
        if not self._retake(item):
            return
        with self.study.turn(), self._leases.ending(item) as is_ours:
            if is_ours:
                super()._tell_all(cell, outcome)
            else:
                self._say(f"the late result of {item} ({outcome.status.value}) is refused")
        self._mine.discard(item)

    def _confirmation_ended(self, run: Run) -> None:
        with self._leases.ending(_item(run)) as is_ours:
            if not is_ours:
                self._say(f"the late result of {_item(run)} is refused")
        self._mine.discard(_item(run))

    def _in_training(self, item: str) -> dict[str, str]:
        """Return the runs that our workers train for an item."""
        cells = [c for c in self.ledger.cells.values() if c.trials and _item_of_cell(c) == item]
        runs = [run for cell in cells for run in cell.everything]
        runs += [
            run for _, confirming in self.confirmed for run in confirming if _item(run) == item
        ]
        return {run.run_id: item for run in runs if run.state is RunState.assigned}


def _item_of_cell(cell: Cell) -> str:
    """Return what is leased of a cell: the first of its trials that nobody has told."""
    return f"trial {min(cell.trials)}"


def _item(run: Run) -> str:
    """Return what is leased of a confirmation."""
    return f"run {run.run_id}"
