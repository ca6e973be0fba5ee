"""The training loop: a cohort of runs on one frozen base, slots refilled as their runs end.

`train` reads top to bottom: admit, give up what was pruned, advance by one packed micro-step, and for each
slot whose optimizer step is complete look at its numbers, move it, evaluate, keep, end. It yields what
happened as it happens, so that whoever called it can draw progress, prune or stop.
"""

import contextlib
import math
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.engine.shared_base import SharedBase
from harness.errors import DiskTrouble, RunFailed, disk_refusal, first_line
from harness.evals.evaluate import LOSS_METRICS
from harness.measure.memory import is_out_of_memory
from harness.measure.meter import meter_of
from harness.records.record import Record, RunStatus
from harness.training.entry import RunEntry
from harness.training.evaluation import evaluate_together, evaluate_untouched
from harness.training.job import Job
from harness.training.pass_size import PassSizer
from harness.training.passes import ALONE, Outcome, Ranks, advance, check_size
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


class JobSource(Protocol):
    """Supplies a session with jobs and decides which runs to prune."""

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
    jobs: JobSource
    sizer: PassSizer
    stop: StopRequest
    ranks: Ranks
    may_share: bool
    """Whether runs may train side by side: then no run's costs are its own, even of one that is alone."""
    entries: list[RunEntry] = field(default_factory=list)
    """Runs in the order of their admission."""
    postponed: deque[Job] = field(default_factory=deque)
    """Runs for which there was no memory beside the others; they are the next."""


def train(
    shared: SharedBase,
    jobs: JobSource,
    *,
    sizer: PassSizer,
    stop: StopRequest,
    ranks: Ranks = ALONE,
) -> Iterator[Event]:
    """Train what `jobs` gives, as many side by side as `sizer` finds good.

    Ends when no run is left and `jobs` has none, or, with a checkpoint of each, when `stop` is asked for.
    """
    session = _Session(shared, jobs, sizer, stop, ranks, may_share=sizer.max_slots > 1)
    meter_of(shared.base.device).keep_freed()
    try:
        # What a run costs is told by probes and by runs alone: they keep nothing decoded.
        shared.backend.keep_decoded(session.may_share)
        while True:
            yield from _admit(session)
            yield from _give_up(session)
            if not session.entries:
                return
            if stop.signal is not None:
                yield from _interrupt(session, stop.signal.name)
                return
            for group in sizer.groups(session.entries):
                yield from _after_pass(session, advance(shared, sizer, group, ranks))
    finally:  # whoever consumes us has gone, or a second Ctrl-C: say so on disk, save nothing more
        for entry in list(session.entries):
            with contextlib.suppress(OSError):  # a full disk, which has been said
                _end(session, entry, RunStatus.interrupted, "stopped at once")


def _admit(session: _Session) -> Iterator[Event]:
    """Fill free slots. A run that fails to start ends there; the others are not touched."""
    while len(session.entries) < session.sizer.slots and not session.stop:
        job = session.postponed.popleft() if session.postponed else session.jobs.take()
        if job is None:
            return
        entry = RunEntry(job, session.shared)
        entry.shared_process = session.may_share
        entry.num_processes = session.ranks.size
        session.entries.append(entry)
        try:
            check_size(job.config.resources.data_parallel, session.ranks.size)
            entry.start()
            if job.config.eval.before and "before" not in entry.evals:  # of a checkpoint
                entry.keep_results("before", evaluate_untouched(session.shared, entry))
        except Exception as error:
            if is_out_of_memory(error) and len(session.entries) > 1:
                _postpone(session, entry)
            else:
                yield _fail(session, entry, error)
        else:
            yield RunStarted(entry)
            if entry.slot.finished:  # optim.steps=0, or a checkpoint of the last step
                yield _evaluate_at_once(session, entry)


def _evaluate_at_once(session: _Session, entry: RunEntry) -> RunEnded:
    """Evaluate a run that has no step left to make, and end it."""
    ((_, results),) = evaluate_together(session.shared, [entry], loss_only=False)
    if isinstance(results, Exception):
        return _fail(session, entry, results)
    entry.keep_results("after", results)
    return _end(session, entry, RunStatus.completed, None)


def _postpone(session: _Session, entry: RunEntry) -> None:
    """Let a run wait until another has ended: beside the others there is no memory for it."""
    session.entries.remove(entry)
    session.sizer.allow_slots(len(session.entries))
    entry.note(f"out of memory beside {len(session.entries)} runs; waited for one to end")
    entry.finish(RunStatus.interrupted, "waits for memory")
    session.postponed.append(entry.job)


def _give_up(session: _Session) -> Iterator[Event]:
    """End the runs that are not worth going on with; a step that has begun is finished first."""
    for entry in list(session.entries):
        if entry.slot.step_is_complete:
            reason = session.jobs.pruned(entry.job.run_id)
            if reason is not None:
                entry.note(f"pruned after step {entry.slot.progress.step}: {reason}")
                yield _end(session, entry, RunStatus.pruned, None)


def _interrupt(session: _Session, signal_name: str) -> Iterator[Event]:
    """Keep a checkpoint of every run and end it."""
    for entry in list(session.entries):
        try:
            entry.save_checkpoint()
        except Exception as error:
            yield _fail(session, entry, error)
        else:
            yield _end(session, entry, RunStatus.interrupted, f"stopped by {signal_name}")


def _after_pass(session: _Session, outcomes: Sequence[tuple[RunEntry, Outcome]]) -> Iterator[Event]:
    """Move, evaluate, log, keep or end the runs of one pass. What goes wrong in one is that run's alone."""
    values: dict[RunEntry, dict[str, float]] = {}
    faults: dict[RunEntry, Exception] = {}
    lasting = sum(entry.lasting_bytes for entry in session.entries)
    for entry, outcome in outcomes:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if entry.slot.step_is_complete:
                values[entry] = _move(entry, lasting)
        except Exception as error:
            faults[entry] = error
    faults |= _evaluate_where_due(session.shared, values)
    for entry, _ in outcomes:
        try:
            if entry in faults:
                raise faults[entry]
            if entry in values:
                yield from _after_step(session, entry, values[entry])
        except Diverged as error:
            yield _end(session, entry, RunStatus.diverged, str(error))
        except Exception as error:
            yield _fail(session, entry, error)


def _move(entry: RunEntry, lasting_bytes: int) -> dict[str, float]:
    """Move one run by its step; return the step's metrics. `lasting_bytes`: of all runs in the process."""
    values, step = entry.step_values(lasting_bytes), entry.slot.progress.step + 1
    scale = entry.slot.progress.loss_scale
    if scale is not None and math.isfinite(entry.loss) and not math.isfinite(entry.grad_norm):
        entry.slot.skip_update(scale)
        if not scale.is_exhausted:  # else it is the run's own numbers that overflow
            return values
    if not (math.isfinite(entry.loss) and math.isfinite(entry.grad_norm)):
        entry.log(step, values)
        raise Diverged(f"step {step}: loss {entry.loss}, gradient norm {entry.grad_norm}")
    entry.slot.update()
    return values


class Diverged(RunFailed):
    """Loss or gradient is no longer a finite number."""


def _evaluate_where_due(
    shared: SharedBase, values: dict[RunEntry, dict[str, float]]
) -> dict[RunEntry, Exception]:
    """Evaluate the runs that have come to it, adding to their `values`; return what went wrong, by run.

    What is kept at the end, the last adapter or the best, is evaluated in full: no loss twice.
    """
    faults: dict[RunEntry, Exception] = {}
    due = [entry for entry in values if entry.evaluation_is_due()]
    passing = [e for e in due if not e.slot.finished or e.job.config.eval.keep_best]
    for entry, results in evaluate_together(shared, passing, loss_only=True):
        if isinstance(results, Exception):
            faults[entry] = results
            continue
        values[entry] |= {name: result.value for name, result in results.items()}
        entry.slot.take_loss(results["eval/loss"].value)
        if entry.slot.stopped_early:
            entry.note_early_stop()
    last = [entry for entry in values if entry.slot.finished and entry not in faults]
    for entry in last:
        if entry.slot.best_adapter is not None:
            entry.slot.load_tensors(entry.slot.best_adapter)
    for entry, results in evaluate_together(shared, last, loss_only=False):
        if isinstance(results, Exception):
            faults[entry] = results
            continue
        entry.keep_results("after", results)
        if entry in due and entry not in passing:
            measured = [name for name in LOSS_METRICS if name in results]
            values[entry] |= {name: results[name].value for name in measured}
    return faults


def _after_step(session: _Session, entry: RunEntry, values: dict[str, float]) -> Iterator[Event]:
    """Log, keep or end one run whose step is made."""
    entry.log(entry.slot.progress.step, values | entry.final_values(values))
    if entry.checkpoint_is_due() and not entry.slot.finished:
        entry.save_checkpoint()
    yield StepDone(entry, values)
    if entry.slot.finished:
        yield _end(session, entry, RunStatus.completed, None)


def _end(session: _Session, entry: RunEntry, status: RunStatus, error: str | None) -> RunEnded:
    if entry in session.entries:  # else its first end was refused by the disk
        session.entries.remove(entry)
    return RunEnded(entry, entry.finish(status, error))


def _fail(session: _Session, entry: RunEntry, error: Exception) -> RunEnded:
    if is_out_of_memory(error):
        return _end(session, entry, RunStatus.out_of_memory, first_line(error))
    refused = disk_refusal(error)
    if refused is not None:  # every other run would meet it too
        with contextlib.suppress(OSError):
            _end(session, entry, RunStatus.interrupted, refused)
        raise DiskTrouble(refused) from error
    entry.job.directory.append_log("".join(traceback.format_exception(error)))
    return _end(session, entry, RunStatus.failed, f"{type(error).__name__}: {first_line(error)}")
