"""Which runs a sweep has, in which state: the driver's memory. Must not import torch.

A cell (a configuration without its seed) is trained once, however often Optuna asks for it. With a pruner its
first seed races, and the others are trained only when that one has survived.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from harness.question.points import Point
from harness.records.record import Record, RecordError, RunStatus, read_record
from harness.records.run_directory import set_aside
from harness.request import Request
from harness.sweeping.messages import Role, cohort_of

_ENDED_FOR_ALL = (RunStatus.completed, RunStatus.diverged)
_ENDED_FOR_ITS_SWEEP = (RunStatus.pruned, RunStatus.out_of_memory)


class RunState(Enum):
    """Where a run of this sweep stands."""

    waiting = "waiting"
    assigned = "assigned"
    elsewhere = "elsewhere"
    """Another member of the sweep trains it."""
    ended = "ended"


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """One run of the sweep."""

    request: Request
    role: Role
    trial: int | None
    """The trial that first asked for it; None for a confirmation."""
    cohort: str
    cost: float
    """Rows to train on, over all steps: what "longest first" goes by."""
    state: RunState = RunState.waiting
    record: Record | None = None
    """Once it has ended; None where that is not on this machine's disk."""
    was_there: bool = False
    """Whether its record was on disk before this driver began."""
    not_before: float = 0.0
    """When to try again, where another process holds its directory (monotonic seconds)."""
    deaths: int = 0
    """Workers that died while they trained it."""
    started: bool = False
    step: int = 0
    total_steps: int | None = None

    @property
    def run_id(self) -> str:
        """The run's identity and the name of its directory."""
        return self.request.identity.run_id

    @property
    def share_done(self) -> float:
        """The share of its steps that has been made, 0 to 1."""
        if self.state is RunState.ended:
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0

    def end(self, record: Record | None) -> None:
        """Keep the record that the run has left, if it is here."""
        self.state, self.record = RunState.ended, record


@dataclass(slots=True, kw_only=True, eq=False)
class Cell:
    """A configuration without its seed, and the runs that measure it."""

    point: Point
    requests: tuple[Request, ...]
    """Requests, one per seed."""
    runs: list[Run] = field(default_factory=list)
    """The requests that are to be trained, or have been; the rest wait for the first one's survival."""
    probe: Run | None = None
    trials: list[int] = field(default_factory=list)
    """The trials that asked for it and have not been told."""

    @property
    def cell_id(self) -> str:
        """The identity that its runs share."""
        return self.requests[0].identity.cell_id

    @property
    def everything(self) -> list[Run]:
        """The runs and the probe."""
        return [*self.runs, *([self.probe] if self.probe is not None else [])]

    @property
    def is_ended(self) -> bool:
        """Whether nothing of it is to be trained any more."""
        if any(run.state is not RunState.ended for run in self.everything):
            return False
        return len(self.runs) == len(self.requests) or not self.survived

    @property
    def survived(self) -> bool:
        """Whether all runs so far were completed."""
        return all(
            run.record is not None and run.record.status is RunStatus.completed for run in self.runs
        )


class Ledger:
    """All runs and cells of a sweep, and which of them wait."""

    def __init__(self, sweep: str) -> None:
        self.sweep = sweep
        self.runs: dict[str, Run] = {}
        self.damaged: list[str] = []
        """Records that were there and could not be read: their runs are trained again."""
        self.cells: dict[str, Cell] = {}
        """Cells by id; the confirmation's are apart, since its runs are not the search's."""

    def add(self, request: Request, role: Role, trial: int | None) -> Run:
        """Return the run of a request: the known one, or a new one that waits or has its record on disk."""
        run_id = request.identity.run_id
        if run_id not in self.runs:
            optim = request.config.optim
            amount = optim.steps if optim.steps is not None else 1000.0 * (optim.epochs or 0.0)
            run = Run(
                request=request,
                role=role,
                trial=trial,
                cohort=cohort_of(request, alone=role is Role.probe),
                cost=amount * optim.batch_size,
            )
            record = self.record_on_disk(request)
            if record is not None:
                run.end(record)
                run.was_there = True
            self.runs[run_id] = run
        known = self.runs[run_id]
        if known.state is RunState.ended and known.record is None:  # and that is needed now
            known.state = RunState.waiting
        return known

    def record_on_disk(self, request: Request) -> Record | None:
        """Return a record that settles the run for this sweep; another's pruning or memory does not."""
        file = request.directory.record
        try:
            record = read_record(file)
        except RecordError as error:
            if file.exists():
                self.damaged.append(f"{error}; set aside as {set_aside(file).name}")
            return None
        if record.status in _ENDED_FOR_ALL:
            return record
        ours = (record.provenance.get("sweep") or {}).get("name") == self.sweep
        return record if ours and record.status in _ENDED_FOR_ITS_SWEEP else None

    def waiting(self) -> Iterator[Run]:
        """Yield the runs that no worker has, and that may be tried now."""
        now = time.monotonic()
        return (
            run
            for run in self.runs.values()
            if run.state is RunState.waiting and run.not_before <= now
        )

    def send_alone(self, run: Run) -> None:
        """Let a run wait for a worker to itself: with it in the process a worker has died."""
        run.cohort = cohort_of(run.request, alone=True)
        run.state, run.started = RunState.waiting, False
