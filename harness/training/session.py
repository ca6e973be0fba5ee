"""The training loop: a cohort of runs on one frozen base, slots refilled as their runs end.

`train` reads top to bottom: admit, give up what was pruned, advance by one packed micro-step, and for each
slot whose optimizer step is complete look at its numbers, move it, evaluate, keep, end. It yields what
happened as it happens, so that whoever called it can draw progress, prune or stop.
"""

import math
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from harness.adapters.shared import SharedBase, rewrites_base
from harness.errors import RunFailed
from harness.evals.evaluate import evaluate_model
from harness.measure.memory import is_out_of_memory
from harness.record import Estimate, Record, RunStatus
from harness.training.entry import RunEntry
from harness.training.heap import keep_freed_memory
from harness.training.job import Job
from harness.training.packing import Packing
from harness.training.passes import Outcome, advance
from harness.training.stop import StopRequest


@dataclass(frozen=True, slots=True)
class RunStarted:
    """One run has its slot, and the untouched base its evaluation where the run asks for one."""

    entry: RunEntry


@dataclass(frozen=True, slots=True)
class StepDone:
    """One run has made one optimizer step; `values` went into its metrics."""

    entry: RunEntry
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunEnded:
    """One run has ended; its record is on disk."""

    entry: RunEntry
    record: Record


Event = RunStarted | StepDone | RunEnded


class Desk(Protocol):
    """Where a session gets its work from and hears what to give up."""

    def take(self) -> Job | None:
        """Return the next run, None where there is none at the moment; asked after every micro-step."""
        ...

    def pruned(self, run_id: str) -> str | None:
        """Return why this run is to end as `pruned`, or None; asked between its optimizer steps."""
        ...


class Queue:
    """A fixed list of jobs, none of which is given up."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        """`jobs` may be a generator: each job is made when a slot is free for it."""
        self._jobs = iter(jobs)

    def take(self) -> Job | None:
        """Return the next job of the list."""
        return next(self._jobs, None)

    def pruned(self, run_id: str) -> str | None:
        """Give up nothing."""
        return None


@dataclass(slots=True)
class _Session:
    """What the loop keeps between steps."""

    shared: SharedBase
    desk: Desk
    packing: Packing
    stop: StopRequest
    entries: list[RunEntry] = field(default_factory=list)
    """In the order of their admission."""


def train(
    shared: SharedBase, desk: Desk, *, packing: Packing, stop: StopRequest
) -> Iterator[Event]:
    """Train what `desk` gives, as many side by side as `packing` finds good.

    Ends when no run is left and the desk has none, or, with a checkpoint of each, when `stop` is asked for.
    """
    session = _Session(shared, desk, packing, stop)
    if shared.base.device.type == "cpu":
        keep_freed_memory()
    try:
        while True:
            yield from _admit(session)
            yield from _give_up(session)
            if not session.entries:
                return
            if stop.signal is not None:
                yield from _interrupt(session, stop.signal.name)
                return
            for group in packing.groups(session.entries):
                for entry, outcome in advance(shared, packing, group):
                    yield from _after_micro_step(session, entry, outcome)
    finally:  # whoever consumes us has gone, or a second Ctrl-C: say so on disk, save nothing more
        for entry in list(session.entries):
            _end(session, entry, RunStatus.interrupted, "stopped at once")


def _admit(session: _Session) -> Iterator[Event]:
    """Fill free slots. A run that fails to start ends there; the others are not touched."""
    while len(session.entries) < session.packing.slots and not session.stop:
        job = session.desk.take()
        if job is None:
            return
        entry = RunEntry(job, session.shared)
        session.entries.append(entry)
        if len(session.entries) > 1:
            for each in session.entries:
                each.shared_process = True
        try:
            entry.start()
            _evaluate_before(session, entry)
        except Exception as error:
            yield _fail(session, entry, error)
        else:
            yield RunStarted(entry)


def _give_up(session: _Session) -> Iterator[Event]:
    """End the runs that are not worth going on with; a step that has begun is finished first."""
    for entry in list(session.entries):
        if entry.slot.step_is_complete:
            reason = session.desk.pruned(entry.job.run_id)
            if reason is not None:
                entry.note(f"pruned after step {entry.slot.progress.step}: {reason}")
                yield _end(session, entry, RunStatus.pruned, None)


def _interrupt(session: _Session, signal_name: str) -> Iterator[Event]:
    """Keep a checkpoint of every run and end it."""
    for entry in list(session.entries):
        entry.save_checkpoint()
        yield _end(session, entry, RunStatus.interrupted, f"stopped by {signal_name}")


def _evaluate_before(session: _Session, entry: RunEntry) -> None:
    """Evaluate the untouched base, once for all runs that ask for the same."""
    config, job = entry.job.config, entry.job
    if not config.eval.before or entry.before is not None:
        return
    if rewrites_base(config.lora):
        entry.before = _evaluate(session, entry, loss_only=False)
        return
    known = session.shared.untouched_results
    key = f"{job.data.fingerprint} {config.data} {config.eval}"
    if key not in known:
        known[key] = _evaluate(session, entry, loss_only=False, adapted=False)
    entry.before = known[key]


def _after_micro_step(session: _Session, entry: RunEntry, outcome: Outcome) -> Iterator[Event]:
    """Move, evaluate, log, keep or end one run. What goes wrong here is this run's alone."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        if not entry.slot.step_is_complete:
            return
        values = entry.step_values()
        if not (math.isfinite(entry.loss) and math.isfinite(entry.grad_norm)):
            entry.log(entry.slot.progress.step + 1, values)
            raise Diverged(
                f"step {entry.slot.progress.step + 1}: loss {entry.loss}, gradient norm "
                f"{entry.grad_norm}"
            )
        entry.slot.update()
        if entry.evaluation_is_due():
            values |= _evaluate_now(session, entry)
        entry.log(entry.slot.progress.step, values)
        if entry.slot.finished:
            _evaluate_after(session, entry)
            yield StepDone(entry, values)
            yield _end(session, entry, RunStatus.completed, None)
            return
        if entry.checkpoint_is_due():
            entry.save_checkpoint()
        yield StepDone(entry, values)
    except Diverged as error:
        yield _end(session, entry, RunStatus.diverged, str(error))
    except Exception as error:
        yield _fail(session, entry, error)


class Diverged(RunFailed):
    """Loss or gradient is no longer a finite number."""


def _evaluate_now(session: _Session, entry: RunEntry) -> dict[str, float]:
    """Evaluate the loss in the middle of training."""
    results = _evaluate(session, entry, loss_only=True)
    if entry.job.config.eval.keep_best:
        entry.slot.keep_if_best(results["eval/loss"].value)
    return {name: result.value for name, result in results.items()}


def _evaluate_after(session: _Session, entry: RunEntry) -> None:
    """Evaluate what will be kept: the best adapter, or the last."""
    if entry.slot.best_adapter is not None:
        entry.slot.load_tensors(entry.slot.best_adapter)
    entry.after = _evaluate(session, entry, loss_only=False)


def _evaluate(
    session: _Session, entry: RunEntry, *, loss_only: bool, adapted: bool = True
) -> dict[str, Estimate]:
    """Evaluate a run's adapter, or the base below it."""
    shared, config = session.shared, entry.job.config
    with shared.only(entry.slot.adapter if adapted else None), entry.phase_peak():
        return evaluate_model(
            shared.model,
            shared.base.tokenizer,
            entry.job.data,
            config.eval,
            config.data,
            loss_only=loss_only,
        )


def _end(session: _Session, entry: RunEntry, status: RunStatus, error: str | None) -> RunEnded:
    session.entries.remove(entry)
    return RunEnded(entry, entry.finish(status, error))


def _fail(session: _Session, entry: RunEntry, error: Exception) -> RunEnded:
    if is_out_of_memory(error):
        return _end(session, entry, RunStatus.out_of_memory, _first_line(error))
    entry.job.directory.append_log("".join(traceback.format_exception(error)))
    return _end(session, entry, RunStatus.failed, f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
