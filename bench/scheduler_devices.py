"""What a simulated device does with the runs that it is given, and how long that takes.

It keeps to the order of `harness.sweeping.worker` and `harness.training.session`: admit, give up, one pass
for all, evaluate what is due, end. It differs in that it knows from the start how many runs share a pass (no
passes are timed), keeps all bases, and never fails.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.scheduler_lengths import RunLengths
from harness.config.compose import config_tree
from harness.records.provenance import collect_provenance
from harness.records.record import Estimate, Record, RunStatus, write_record
from harness.sweeping.messages import (
    Busy,
    Ended,
    News,
    Order,
    Prune,
    Ready,
    Slots,
    Stepped,
    Train,
    Waited,
)
from harness.sweeping.worker import REPORT_SECONDS

NEVER = math.inf


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedRun:
    """A run that has a slot."""

    task: Train
    began: float
    reported: float
    step: int = 0

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return self.task.request.identity.run_id

    @property
    def steps(self) -> int:
        """How many steps it is to make."""
        steps = self.task.request.config.optim.steps
        assert steps is not None, "the simulated questions count steps"
        return steps

    def is_due(self) -> bool:
        """Whether it is evaluated after this step."""
        every = self.task.request.config.eval.every_steps
        return self.step == self.steps or (every is not None and self.step % every == 0)


@dataclass(slots=True, eq=False)
class SimulatedDevice:
    """One worker's side of the pipe. `at` is when it does something next; never, while it waits for work."""

    lengths: RunLengths
    at: float
    """When its process is started, at first."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """Spans in which it loaded, trained, evaluated or wrote."""
    trained: list[tuple[float, float]] = field(default_factory=list)
    """The span of every run in its slot."""
    runs: list[SimulatedRun] = field(default_factory=list)
    slots: int = 0
    """Runs that may share a pass now; 0 before the first."""
    _is_ready: bool = False
    _mail: deque[tuple[float, Train]] = field(default_factory=deque)
    _pruned: dict[str, float] = field(default_factory=dict)
    _cohort: str | None = None
    _bases: set[str] = field(default_factory=set)
    _idle_since: float | None = None
    _waited: float = 0.0

    def held(self, now: float) -> list[tuple[float, float]]:
        """Return the spans in which slots had runs, those that still train included."""
        return [*self.trained, *((run.began, now) for run in self.runs)]

    def receive(self, order: Order, moment: float) -> bool:
        """Take an order; returns whether that has woken the device."""
        match order:
            case Train():
                self._mail.append((moment, order))
                if self._is_ready and self.at == NEVER:
                    self.at = moment
                    return True
            case Prune():
                self._pruned[order.run_id] = moment
            case _:
                raise AssertionError(f"a simulated sweep is not {order}")
        return False

    def act(self) -> Iterator[tuple[float, News]]:
        """Do the next thing; yields what is said and when, and moves `at`."""
        began = self.at
        if not self._is_ready:
            self.at += self.lengths.start_seconds
            self._is_ready = True
            yield self.at, Ready(pid=0, device="cpu")
            return
        yield from self._admit()
        yield from self._give_up()
        if self.runs:
            yield from self._pass()
        if self.at > began:
            self._was_busy(began, self.at)
        elif not self.runs:
            self._idle_since = self.at
            self.at = max(self.at, self._mail[0][0]) if self._mail else NEVER

    def _admit(self) -> Iterator[tuple[float, News]]:
        while (task := self._next()) is not None:
            if not self.runs:
                yield from self._open(task)
            self.at += self.lengths.begin_seconds
            run = SimulatedRun(task=task, began=self.at, reported=self.at)
            self.runs.append(run)
            yield self.at, _stepped(run)
            if self.slots != task.max_slots:
                self.slots = task.max_slots
                yield self.at, Slots(count=self.slots, packing="simulated")

    def _next(self) -> Train | None:
        """Return the first task that is there and may begin now."""
        for index, (arrived, task) in enumerate(self._mail):
            if arrived > self.at:
                return None
            if not self.runs or (task.cohort == self._cohort and len(self.runs) < task.max_slots):
                del self._mail[index]
                return task
        return None

    def _open(self, task: Train) -> Iterator[tuple[float, News]]:
        """Begin a cohort, loading its base where that is needed."""
        self._cohort = task.cohort
        if self._idle_since is not None and self._bases:
            self._waited += self.at - self._idle_since
            yield self.at, Waited(seconds=self._waited)
        self._idle_since = None
        yield self.at, Busy(doing="loading the base")
        base = repr(
            (task.request.fingerprint, task.request.config.model, task.request.config.quant)
        )
        if base not in self._bases:
            self._bases.add(base)
            self.at += self.lengths.base_seconds

    def _give_up(self) -> Iterator[tuple[float, News]]:
        for run in list(self.runs):
            if self._pruned.get(run.run_id, NEVER) <= self.at:
                yield self._end(run, RunStatus.pruned)

    def _pass(self) -> Iterator[tuple[float, News]]:
        """Make one step of every run, evaluate what is due, and end what is finished."""
        alone = sum(self.lengths.step_seconds(_rank(run)) for run in self.runs)
        self.at += alone * self.lengths.pass_share(len(self.runs))
        for run in self.runs:
            run.step += 1
        due = [run for run in self.runs if run.is_due()]
        self.at += self.lengths.evaluation_seconds * len(due)
        for run in list(self.runs):
            is_due = run in due
            if is_due or self.at - run.reported >= REPORT_SECONDS:
                run.reported = self.at
                yield self.at, _stepped(run, self._loss(run) if is_due else None)
            if run.step == run.steps:
                yield self._end(run, RunStatus.completed)

    def _end(self, run: SimulatedRun, status: RunStatus) -> tuple[float, News]:
        self.at += self.lengths.end_seconds
        self.runs.remove(run)
        self._pruned.pop(run.run_id, None)
        self.trained.append((run.began, self.at))
        _write(run, status, self._loss(run))
        return self.at, Ended(run_id=run.run_id, status=status, error=None)

    def _loss(self, run: SimulatedRun) -> float:
        rate = run.task.request.config.optim.lr
        return self.lengths.loss(_rank(run), rate, run.step / run.steps)

    def _was_busy(self, began: float, ended: float) -> None:
        if self.busy and self.busy[-1][1] == began:
            began = self.busy.pop()[0]
        self.busy.append((began, ended))


def _rank(run: SimulatedRun) -> int:
    return run.task.request.config.lora.rank


def _stepped(run: SimulatedRun, loss: float | None = None) -> Stepped:
    return Stepped(
        run_id=run.run_id,
        step=run.step,
        total_steps=run.steps,
        loss=math.nan,
        evaluated=None if loss is None else {"eval/loss": loss},
    )


def _write(run: SimulatedRun, status: RunStatus, loss: float) -> None:
    """Leave a record for the driver to read, as long as a real one."""
    task = run.task
    record = Record(
        run_id=run.run_id,
        status=status,
        config=config_tree(task.request.config),
        evals={"after": {"eval/loss": Estimate(value=loss, standard_error=None, n=1)}},
        provenance=collect_provenance().as_tree()
        | {"sweep": {"name": task.sweep, "role": task.role.value, "trial": task.trial}},
    )
    task.request.directory.path.mkdir(parents=True, exist_ok=True)
    write_record(task.request.directory.record, record)
