"""Whose the runs of a sweep are: this driver's alone, or leased to one of several members.

Whoever writes into the study waits for its turn and reads first what the others wrote: all search as one.
What a member trains is leased to it; one that gives no sign of life loses that, and is refused afterwards.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from harness.errors import RequestError
from harness.study.leases import Leases, LeaseState, host_of
from harness.study.study import Trial
from harness.sweeping.artifacts import RunArtifacts
from harness.sweeping.ledger import Cell, Run, RunState
from harness.sweeping.state import DeviceLine

LOOKS = 4
"""Times in a heartbeat that a member says that it lives, and looks at what others do."""


class Holder(Enum):
    """Who has an item, as this member sees it."""

    nobody = "nobody"
    """Or this member itself."""
    other = "other"
    done = "done"


class Alone:
    """Everything is this driver's own. What the methods are for is said here, for both."""

    has_others = False
    """Whether several members may work on the sweep."""

    def __init__(self) -> None:
        self.devices_elsewhere: list[DeviceLine] = []
        """Lines of other members' workers."""

    def take(self, item: str) -> bool:
        """Take an item, if nobody else has it; returns whether it is this member's."""
        return True

    def retake(self, item: str) -> bool:
        """Take back an item that may have been lost, if nobody else has taken it since."""
        return True

    def holds(self, item: str) -> bool:
        """Whether an item is this member's."""
        return True

    def look(self, devices: Sequence[DeviceLine]) -> None:
        """Say that we live and what our devices do; return what was this member's and is no more.

        A few times in a heartbeat; None at other times.
        """
        return

    def look_soon(self) -> None:
        """Look the next time without waiting."""

    def holders(self) -> Mapping[str, Holder]:
        """Return who has which item; one that nobody has ever taken is missing."""
        return {}

    def ending(self, item: str, *, frees: bool = False) -> AbstractContextManager[bool]:
        """Say whether this member holds the item, keep it so inside, and give it up: done, or free again."""
        return nullcontext(True)

    def push(self, runs: Sequence[Run]) -> None:
        """Leave runs where members without our disk find them."""

    def fetch(self, run: Run) -> None:
        """Bring a run that another member has left."""

    def collect(self, runs: Path) -> None:
        """Bring all runs of other members to `runs` on this machine, where that needs to be done."""

    def leave(self) -> None:
        """Give back what has not ended, for others to take up; called when our workers have stopped."""

    def say(self, text: str) -> None:
        """Tell the user what has happened between members."""
        raise AssertionError(f"alone, and between members: {text}")


class Leased:
    """What is leased to this member, one of several."""

    has_others = True

    def __init__(
        self, leases: Leases, artifacts: RunArtifacts | None, say: Callable[[str], None]
    ) -> None:
        """`say` is told what happens between members, a line each."""
        self.devices_elsewhere: list[DeviceLine] = []
        self._leases = leases
        self._artifacts = artifacts
        self._say = say
        self._mine: set[str] = set()
        self._look_at = 0.0

    def take(self, item: str) -> bool:
        return item in self._mine or self.retake(item)

    def retake(self, item: str) -> bool:
        if self._leases.take(item):
            self._mine.add(item)
        return item in self._mine

    def holds(self, item: str) -> bool:
        return item in self._mine

    def look(self, devices: Sequence[DeviceLine]) -> Sequence[str] | None:
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + self._leases.heartbeat_seconds / LOOKS
        kept = self._leases.renew([asdict(line) for line in devices])
        lost = sorted(self._mine - kept)
        for item in lost:
            self.say(f"the lease on {item} ran out before it was renewed")
        self._mine &= kept
        for item, member in self._leases.free_what_is_over():
            self.say(f"{member} gives no sign of life: {item} waits for another member")
        self.devices_elsewhere = [
            DeviceLine(**{**line, "name": f"{host_of(member)} {line['name']}"})
            for member, lines in self._leases.other_members().items()
            for line in lines
        ]
        return lost

    def look_soon(self) -> None:
        self._look_at = 0.0

    def holders(self) -> Mapping[str, Holder]:
        def of(member: str, state: LeaseState) -> Holder:
            if state is LeaseState.done:
                return Holder.done
            is_other = state is LeaseState.held and member != self._leases.member
            return Holder.other if is_other else Holder.nobody

        return {item: of(each.member, each.state) for item, each in self._leases.all().items()}

    @contextmanager
    def ending(self, item: str, *, frees: bool = False) -> Iterator[bool]:
        state = LeaseState.free if frees else LeaseState.done
        with self._leases.ending(item, state) as is_ours:
            yield is_ours
        self._mine.discard(item)

    def push(self, runs: Sequence[Run]) -> None:
        if self._artifacts is None:
            return
        for run in runs:
            try:
                self._artifacts.push(run.request.directory)
            except (
                Exception
            ) as error:  # each kind of store has errors of its own; it costs nothing else
                self.say(f"{run.run_id} was not left in {self._artifacts.place}: {error}")
            self._leases.renew([])  # a large one takes its time

    def fetch(self, run: Run) -> None:
        if self._artifacts is not None:
            self._artifacts.fetch(run.request.directory)

    def collect(self, runs: Path) -> None:
        if self._artifacts is not None:
            self._artifacts.fetch_all(runs)

    def leave(self) -> None:
        self._leases.give_back()
        self._mine.clear()

    def say(self, text: str) -> None:
        self._say(text)


Tenancy = Alone | Leased
"""What a driver may train, and what others do."""

# What is leased, by name: the cells of the search, and each run of the confirmation


def item_of_cell(cell: Cell) -> str:
    """Return what is leased of a cell: the first of its trials that nobody has told."""
    return f"trial {min(cell.trials)}"


def item_of_run(run: Run) -> str:
    """Return what is leased of a confirmation."""
    return f"run {run.run_id}"


def in_training(
    item: str, cells: Iterable[Cell], confirmed: Iterable[tuple[object, list[Run]]]
) -> dict[str, str]:
    """Return the runs that our workers train for an item, each with the item."""
    runs = [r for c in cells if c.trials and item_of_cell(c) == item for r in c.everything]
    runs += [run for _, confirming in confirmed for run in confirming if item_of_run(run) == item]
    return {run.run_id: item for run in runs if run.state is RunState.assigned}


def refuse_another_run(trial: Trial, runs: Sequence[str]) -> None:
    """Raise RequestError where a trial's runs are others here than for the member that asked for it."""
    others = trial.notes.get("runs", list(runs))
    if others != list(runs):
        raise RequestError(
            f"trial {trial.number} is {', '.join(others)} for the other members, and {', '.join(runs)} "
            "here: model, data or the harness's version differ on this machine; give it what the others "
            "have, or begin another sweep with name=OTHER"
        )
