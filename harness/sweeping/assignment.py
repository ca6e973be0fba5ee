"""Which worker gets which run next. Must not import torch."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from harness.sweeping.ledger import Ledger, Run
from harness.sweeping.pool import WorkerProcess


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerView:
    """One worker as the driver sees it."""

    worker: WorkerProcess
    runs: dict[str, Run] = field(default_factory=dict)
    slots: int = 1
    """Number of runs that the worker says it can use now."""
    doing: str = "starting"
    packing: str = ""
    began_at: float | None = None
    """When it was given its first run (monotonic seconds)."""
    waited_seconds: float = 0.0
    """Seconds since then in which it had nothing to do."""

    @property
    def cohorts(self) -> Counter[str]:
        """How many runs of each cohort it has."""
        return Counter(run.cohort for run in self.runs.values())


class Assignment:
    """The runs that wait at one moment, and whose they are to be.

    Workers on the same cohort share what is left of it evenly, however many slots each of them offers: one
    that takes all it has room for would train on when the others have nothing left.
    """

    def __init__(self, ledger: Ledger, views: Sequence[WorkerView], *, ahead: bool) -> None:
        """`ahead`: let one run wait at a busy worker, so that it begins without a pause."""
        self._ledger = ledger
        self._num_views = len(views)
        self._ahead = ahead
        cohorts = [view.cohorts for view in views]
        self._busy = sum(cohorts, Counter[str]())
        self._workers_on = Counter(cohort for each in cohorts for cohort in each)
        self._idle = sum(not each for each in cohorts)
        self.look_again()

    def look_again(self) -> None:
        """Look up what waits now."""
        self._waiting = Waiting(self._ledger)

    def next_for(self, view: WorkerView) -> Run | None:
        """Return the run that a worker should have next; None if it has enough, or nothing waits for it."""
        if len(view.runs) >= view.slots + self._ahead:
            return None
        mine = view.cohorts
        if not mine:
            return self._waiting.best(self._busy, None)
        # What waits at a worker cannot go to another one that has nothing: none does, near the end.
        ahead = int(self._ahead and self._waiting.count > self._num_views)
        others = self._busy - mine
        if len(mine) == 1 and len(view.runs) < view.slots + ahead and not self.has_its_share(view):
            run = self._waiting.best(others, tuple(mine))
            if run is not None:
                return run
        return self._waiting.best(others, None) if len(view.runs) <= ahead else None

    def has_its_share(self, view: WorkerView) -> bool:
        """Say whether what waits of a worker's cohort is for others, which are on it or have nothing."""
        mine = view.cohorts
        if len(mine) != 1:
            return False
        (cohort,) = mine
        waiting = self._waiting.count_of(cohort)
        share = (waiting + self._busy[cohort]) / (self._workers_on[cohort] + self._idle)
        return waiting > 0 and len(view.runs) >= share

    def waits_for_anybody(self) -> bool:
        """Say whether there is a run that a worker without any could begin."""
        return self._waiting.count > 0

    def take(self, view: WorkerView, run: Run) -> None:
        """Let a run wait no more, just before a worker gets it."""
        self._waiting.take(run)
        self._busy[run.cohort] += 1
        self._workers_on[run.cohort] += run.cohort not in view.cohorts
        self._idle -= not view.runs


class Waiting:
    """The runs that wait at one moment, the longest of each cohort first; looked up when first asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @cached_property
    def _runs(self) -> dict[str, deque[Run]]:
        by_cohort: dict[str, list[Run]] = {}
        for run in self._ledger.waiting():
            by_cohort.setdefault(run.cohort, []).append(run)
        return {
            cohort: deque(sorted(runs, key=lambda run: -run.cost))
            for cohort, runs in by_cohort.items()
        }

    @cached_property
    def _left(self) -> dict[str, int]:
        """Rows that each cohort has left to train."""
        return {cohort: sum(map(_weight, runs)) for cohort, runs in self._runs.items()}

    @property
    def count(self) -> int:
        """How many runs wait."""
        return sum(map(len, self._runs.values()))

    def count_of(self, cohort: str) -> int:
        """Return how many runs of a cohort wait."""
        return len(self._runs.get(cohort, ()))

    def best(self, busy: Counter[str], among: Sequence[str] | None) -> Run | None:
        """Return the run that a worker should take next, the longest first.

        `busy` counts the runs of each cohort that other workers train now; `among`: only runs of these
        cohorts. A new cohort is the one with the most left to do for each worker that would then be on it.
        """
        there = [
            cohort
            for cohort, runs in self._runs.items()
            if runs and (among is None or cohort in among)
        ]
        if not there:
            return None
        chosen = max(there, key=lambda cohort: self._left[cohort] / (1 + busy[cohort]))
        return self._runs[chosen][0]

    def take(self, run: Run) -> None:
        """Let the best run of its cohort wait no more."""
        first = self._runs[run.cohort].popleft()
        assert first is run, (first.run_id, run.run_id)
        self._left[run.cohort] -= _weight(run)


def _weight(run: Run) -> int:
    return 1 + int(run.cost)
