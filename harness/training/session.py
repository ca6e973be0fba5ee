"""The training loop: a cohort of runs on one frozen base, slots refilled as their runs end.

`train` reads top to bottom: admit, advance by one packed micro-step, and for each slot whose optimizer
step is complete look at its numbers, move it, evaluate, keep, end. It yields what happened, so that
whoever called it can draw progress, prune or stop.
"""

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from harness.adapters.shared import SharedBase, rewrites_base
from harness.errors import RunFailed
from harness.evals.evaluate import evaluate_model
from harness.measure.memory import SavedBytes, is_out_of_memory
from harness.record import Estimate, Record, RunStatus
from harness.training.cohort import Gradient, packed_gradients
from harness.training.entry import RunEntry
from harness.training.job import Job
from harness.training.stop import StopRequest


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


Event = StepDone | RunEnded


@dataclass(slots=True)
class _Session:
    """What the loop keeps between steps."""

    shared: SharedBase
    entries: list[RunEntry] = field(default_factory=list)
    group_size: int | None = None
    """Runs per forward pass at most, once a larger group has run out of memory."""
    before: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Evaluations of the untouched base, by what was evaluated."""


def train(
    shared: SharedBase, jobs: Iterator[Job], *, capacity: int, stop: StopRequest
) -> Iterator[Event]:
    """Train `jobs`, at most `capacity` at a time, until none is left or `stop` is asked for."""
    session = _Session(shared)
    try:
        while True:
            yield from _admit(session, jobs, capacity, stop)
            if not session.entries:
                return
            if stop.signal is not None:
                for entry in list(session.entries):
                    entry.save_checkpoint()
                    yield _end(
                        session, entry, RunStatus.interrupted, f"stopped by {stop.signal.name}"
                    )
                return
            for entry, outcome in _advance(session):
                yield from _after_micro_step(session, entry, outcome)
    finally:  # whoever consumes us has gone, or a second Ctrl-C: say so on disk, save nothing more
        for entry in list(session.entries):
            _end(session, entry, RunStatus.interrupted, "stopped at once")


def _admit(
    session: _Session, jobs: Iterator[Job], capacity: int, stop: StopRequest
) -> Iterator[Event]:
    """Fill free slots. A run that fails to start ends there; the others are not touched."""
    while len(session.entries) < capacity and not stop:
        job = next(jobs, None)
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


def _evaluate_before(session: _Session, entry: RunEntry) -> None:
    """Evaluate the untouched base, once for all runs that ask for the same."""
    config, job = entry.job.config, entry.job
    if not config.eval.before or entry.before is not None:
        return
    own = rewrites_base(config.lora)
    key = f"{job.run_id if own else ''} {job.data.fingerprint} {config.data} {config.eval}"
    if key not in session.before:
        with session.shared.only(entry.slot.adapter if own else None), entry.phase_peak():
            session.before[key] = evaluate_model(
                session.shared.model,
                session.shared.base.tokenizer,
                job.data,
                config.eval,
                config.data,
            )
    entry.before = session.before[key]


Outcome = Gradient | Exception


def _advance(session: _Session) -> list[tuple[RunEntry, Outcome]]:
    """Run one packed micro-step for all slots and give each its gradient, or what went wrong in it."""
    started = time.perf_counter()
    outcomes: list[tuple[RunEntry, Outcome]] = []
    size = session.group_size or len(session.entries)
    groups = [session.entries[i : i + size] for i in range(0, len(session.entries), size)]
    for group in groups:
        outcomes += _group_gradients(session, group)
    for entry, outcome in outcomes:
        if isinstance(outcome, Gradient):
            entry.slot.receive(outcome)
    _read_numbers([e for e, o in outcomes if isinstance(o, Gradient) and e.slot.step_is_complete])
    seconds = time.perf_counter() - started
    for entry, _ in outcomes:
        entry.slot.spend(seconds)
    return outcomes


def _group_gradients(session: _Session, group: list[RunEntry]) -> list[tuple[RunEntry, Outcome]]:
    """Return the gradients of one forward pass; where it fails, find out whose fault it was.

    Nothing has been changed when a pass fails, so it can be repeated: out of memory in halves (and from
    then on in groups of that size), anything else one run at a time.
    """
    try:
        work = [entry.slot.next_work() for entry in group]
        if len(session.entries) == 1 and group[0].slot.activation_bytes is None:
            saved = SavedBytes(session.shared.model)
            with saved.counting():
                gradients = packed_gradients(session.shared, work)
            group[0].slot.activation_bytes = saved.total
        else:
            gradients = packed_gradients(session.shared, work)
        return list(zip(group, gradients, strict=True))
    except Exception as error:
        if len(group) == 1:
            return [(group[0], error)]
        parts = [[entry] for entry in group]
        if is_out_of_memory(error):
            half = session.group_size = math.ceil(len(group) / 2)
            parts = [group[:half], group[half:]]
            note = f"out of memory with {len(group)} runs in a pass; went on with {half}"
            for entry in group:
                entry.note(note)
    if session.shared.base.device.type == "cuda":
        torch.cuda.empty_cache()
    return [outcome for part in parts for outcome in _group_gradients(session, part)]


def _read_numbers(entries: Sequence[RunEntry]) -> None:
    """Clip, and bring loss and gradient norm of all complete steps to the host in one transfer."""
    if not entries:
        return
    numbers = torch.stack([entry.slot.clip() for entry in entries]).tolist()
    for entry, (loss, norm) in zip(entries, numbers, strict=True):
        entry.loss, entry.grad_norm = loss, norm


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


def _evaluate(session: _Session, entry: RunEntry, *, loss_only: bool) -> dict[str, Estimate]:
    shared, config = session.shared, entry.job.config
    with shared.only(entry.slot.adapter), entry.phase_peak():
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
