"""A warm process for one device: imports once, loads a base once, trains cohort after cohort.

`python -m harness.sweeping.worker FD` is started by the driver with one end of a pipe as FD. It ends when it
is told to stop, or when the driver is gone: then it keeps checkpoints, and after a few seconds ends anyhow.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, assert_never

from harness.errors import disk_refusal
from harness.records.record import Record, RunLocked, RunStatus, write_record
from harness.request import settled_record
from harness.sweeping.check import check_against_model
from harness.sweeping.messages import (
    Busy,
    Check,
    Checked,
    Ended,
    Halted,
    News,
    Order,
    Prune,
    Ready,
    Role,
    Slots,
    Stepped,
    Stop,
    Taken,
    Train,
    Waited,
)
from harness.training.stop import StopRequest

if TYPE_CHECKING:
    from harness.data.prepare import PreparedData
    from harness.engine.shared_base import SharedBase
    from harness.training.job import Job
    from harness.training.pass_size import PassSizer
    from harness.training.session import Event, StepDone

BASES_SHARE = 0.25
"""Bases that are not in use are kept while all of them fit into this share of the device's memory."""
ORPHAN_SECONDS = 5.0
"""Seconds that a worker whose driver is gone may take to keep its checkpoints."""
_PR_SET_PDEATHSIG = 1  # prctl(2)
LOCK_SECONDS = 2.0
"""Seconds to wait for a run that another process holds, before the driver hears of it."""
REPORT_SECONDS = 0.5
"""Progress of a run is reported at most this often, apart from evaluations."""


class Mailbox:
    """The worker's end of the pipe: orders are read by a thread, so that none waits for a step to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tasks: deque[Train | Check] = deque()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self.pruned: dict[str, str] = {}
        self.stop = StopRequest()
        threading.Thread(target=self._listen, name="mailbox", daemon=True).start()

    def send(self, news: News) -> None:
        """Tell the driver; a driver that is gone hears nothing."""
        with self._sending:
            try:
                self._connection.send(news)
            except OSError:
                self._ask_to_stop()

    def wait(self) -> Train | Check | None:
        """Return the next task, waiting for it; None when there will be none."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._tasks or self.stop, timeout=0.5):
                pass  # a signal sets `stop` without a word
            return None if self.stop else self._tasks.popleft()

    def next_of(self, cohort: str) -> Train | None:
        """Return the first waiting run of a cohort, if there is one now."""
        with self._changed:
            for task in self._tasks:
                if isinstance(task, Train) and task.cohort == cohort:
                    self._tasks.remove(task)
                    return task
        return None

    def _listen(self) -> None:
        while True:
            try:
                order: Order = self._connection.recv()
            except (EOFError, OSError):
                self._ask_to_stop()
                threading.Timer(ORPHAN_SECONDS, lambda: os._exit(1)).start()
                return
            match order:
                case Train() | Check():
                    with self._changed:
                        self._tasks.append(order)
                        self._changed.notify_all()
                case Prune():
                    self.pruned[order.run_id] = order.reason
                case Stop():
                    self._ask_to_stop()
                case unknown:
                    assert_never(unknown)

    def _ask_to_stop(self) -> None:
        with self._changed:
            self.stop.signal = self.stop.signal or signal.SIGTERM
            self._changed.notify_all()


class CohortSource:
    """Where a session gets the runs of one cohort from, as the driver sends them."""

    def __init__(self, worker: "Worker", first: Train) -> None:
        self._worker = worker
        self._next: Train | None = first
        self._cohort = first.cohort

    def take(self) -> "Job | None":
        """Return the next run's job; a run that cannot begin ends here, and the one after it is tried."""
        while not self._worker.mailbox.stop:
            task, self._next = self._next or self._worker.mailbox.next_of(self._cohort), None
            if task is None:
                return None
            job = self._worker.begin(task)
            if job is not None:
                return job
        return None

    def pruned(self, run_id: str) -> str | None:
        """Return why a run is to be given up, or None."""
        return self._worker.mailbox.pruned.pop(run_id, None)


class Bases:
    """The bases that stay loaded between cohorts."""

    def __init__(self) -> None:
        self._kept: dict[str, SharedBase] = {}

    def open(self, task: Train) -> "SharedBase":
        """Return the base of a task, loaded if it is not kept; it is the newest now."""
        from harness.training.launch import open_base

        request = task.request
        trains_all = request.config.lora.trains_all  # then by a backend that trains a base
        key = repr((request.fingerprint, request.config.model, request.config.quant, trains_all))
        shared = self._kept.pop(key, None)
        if task.role is Role.probe:
            self._kept.clear()  # what a probe measures must be its own
        if shared is None:
            shared = open_base(request.config, request.source, request.fingerprint)
        self._kept[key] = shared
        self._evict(shared)
        return shared

    def drop_rewritten(self) -> None:
        """Forget bases that an adapter's initialization has changed."""
        self._kept = {key: base for key, base in self._kept.items() if not base.is_rewritten}

    def _evict(self, newest: "SharedBase") -> None:
        from harness.measure.meter import meter_of

        limit = BASES_SHARE * meter_of(newest.base.device).total_bytes()
        while len(self._kept) > 1 and sum(b.size.total_bytes for b in self._kept.values()) > limit:
            del self._kept[next(iter(self._kept))]


class Worker:
    """One device's process."""

    def __init__(self, connection: Connection) -> None:
        self.mailbox = Mailbox(connection)
        self._bases = Bases()
        self._sizers: dict[str, PassSizer] = {}
        self._prepared: dict[str, PreparedData] = {}
        self._locks: dict[str, ExitStack] = {}
        self._reported: dict[str, float] = {}
        self._slots: Slots | None = None
        self._waited_seconds = 0.0

    def work(self) -> None:
        """Do what the driver asks until there is nothing more."""
        has_begun = False
        while (task := self._wait(counting=has_begun)) is not None:
            has_begun = has_begun or isinstance(task, Train)
            match task:
                case Check():
                    self.mailbox.send(Checked(refusals=check_against_model(task)))
                case Train():
                    try:
                        self._train(task)
                    except Exception as error:
                        refused = disk_refusal(error)
                        if refused is None:
                            raise
                        self.mailbox.send(Halted(reason=refused))
                        return
                case unknown:
                    assert_never(unknown)

    def _wait(self, *, counting: bool) -> Train | Check | None:
        began = time.monotonic()
        task = self.mailbox.wait()
        if counting and task is not None:
            self._waited_seconds += time.monotonic() - began
            self.mailbox.send(Waited(seconds=self._waited_seconds))
        return task

    def _train(self, first: Train) -> None:
        """Train a cohort: this run and all of its cohort that the driver sends meanwhile."""
        from harness.measure.memory import is_out_of_memory
        from harness.training.entry import RunEntry
        from harness.training.pass_size import PassSizer
        from harness.training.session import train

        self.mailbox.send(Busy(doing="loading the base"))
        try:
            shared = self._bases.open(first)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._base_does_not_fit(first, error)
            return
        sizer = self._sizers.setdefault(
            first.cohort,
            PassSizer(max_slots=first.max_slots, predicted_bytes=RunEntry.predicted_pass_bytes),
        )
        source = CohortSource(self, first)
        for event in train(shared, source, sizer=sizer, stop=self.mailbox.stop):
            self._tell(event)
            self._tell_slots(sizer, decides=first.max_slots > 1)
        self._bases.drop_rewritten()

    def begin(self, task: Train) -> "Job | None":
        """Lock a run and make its job; None for one that has ended before, or cannot begin."""
        from harness.training.launch import make_job

        request, run_id = task.request, task.request.identity.run_id
        try:
            held = self._locks[run_id] = ExitStack()
            _lock_patiently(held, task)
            settled = settled_record(request.directory)  # by whoever held the lock until now
            if settled is not None:
                self._end(run_id, settled)
                return None
            job = make_job(request, self._prepare(task))
        except RunLocked as error:
            self._locks.pop(run_id).close()
            self.mailbox.send(Taken(run_id=run_id, holder=str(error)))
            return None
        except Exception as error:  # this run's fault or misfortune, nobody else's
            if disk_refusal(error) is not None:
                self._locks.pop(run_id).close()
                raise
            self._end(run_id, _record_of_failure(task, error))
            return None
        job.provenance["sweep"] = {"name": task.sweep, "role": task.role.value, "trial": task.trial}
        job.is_probe, job.probe = task.role is Role.probe, task.probe
        return job

    def _prepare(self, task: Train) -> "PreparedData":
        from harness.training.launch import prepare

        request = task.request
        config = request.config
        key = repr((request.fingerprint, config.data, config.eval.split, config.lora))
        if key not in self._prepared:
            self.mailbox.send(Busy(doing="preparing the data"))
            self._prepared[key] = prepare(config, request.source, request.fingerprint)
        return self._prepared[key]

    def _base_does_not_fit(self, task: Train, error: Exception) -> None:
        from harness.training.entry import record_without_base

        job = self.begin(task)
        if job is not None:
            self._end(job.run_id, record_without_base(job, error))

    # What the driver hears -----------------------------------------------------------------------

    def _tell(self, event: "Event") -> None:
        from harness.training.session import RunEnded, RunStarted, StepDone

        match event:
            case StepDone():
                self._tell_step(event)
            case RunStarted():
                slot = event.entry.slot
                self.mailbox.send(
                    Stepped(
                        run_id=event.entry.job.run_id,
                        step=slot.progress.step,
                        total_steps=slot.total_steps,
                        loss=float("nan"),
                        evaluated=None,
                    )
                )
            case RunEnded():
                self._end(event.record.run_id, event.record)
            case unknown:
                assert_never(unknown)

    def _tell_step(self, event: "StepDone") -> None:
        run_id, slot = event.entry.job.run_id, event.entry.slot
        evaluated = {k: v for k, v in event.values.items() if k.startswith("eval/")} or None
        now = time.monotonic()
        if evaluated is None and now - self._reported.get(run_id, 0.0) < REPORT_SECONDS:
            return
        self._reported[run_id] = now
        self.mailbox.send(
            Stepped(
                run_id=run_id,
                step=slot.progress.step,
                total_steps=slot.total_steps,
                loss=event.values["train/loss"],
                evaluated=evaluated,
            )
        )

    def _tell_slots(self, sizer: "PassSizer", *, decides: bool) -> None:
        """Tell the driver; a run that must train alone, as a probe, changes nothing of what was decided."""
        packing = sizer.description
        if not decides and self._slots is not None:
            packing = self._slots.packing
        slots = Slots(count=sizer.slots, packing=packing)
        if slots != self._slots:
            self._slots = slots
            self.mailbox.send(slots)

    def _end(self, run_id: str, record: Record) -> None:
        self._locks.pop(run_id).close()
        self._reported.pop(run_id, None)
        self.mailbox.pruned.pop(run_id, None)
        self.mailbox.send(Ended(run_id=run_id, status=record.status, error=record.error))


def _lock_patiently(held: ExitStack, task: Train) -> None:
    """Take the run's lock, waiting a little for a process that is on its way out."""
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            held.enter_context(task.request.directory.lock())
            return
        except RunLocked:
            if time.monotonic() >= give_up:
                raise
            time.sleep(0.1)


def _record_of_failure(task: Train, error: Exception) -> Record:
    """Write and return the record of a run that cannot begin."""
    from harness.config.compose import config_tree

    record = Record(
        run_id=task.request.identity.run_id,
        status=RunStatus.failed,
        config=config_tree(task.request.config),
        provenance={
            "sweep": {"name": task.sweep, "role": task.role.value, "trial": task.trial},
            "cell_id": task.request.identity.cell_id,
        },
        error=f"{type(error).__name__}: {error}",
    )
    write_record(task.request.directory.record, record)
    return record


def _die_with_parent(number: signal.Signals | None) -> None:
    """Let the kernel send this process a signal when its driver is gone, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0 if number is None else number)


def main(descriptor: int) -> None:
    """Serve one driver until it says stop."""
    for each in (signal.SIGINT, signal.SIGHUP):  # they reach all of a terminal; the driver decides
        signal.signal(each, signal.SIG_IGN)
    _die_with_parent(
        signal.SIGKILL
    )  # while libraries are imported nothing is lost, and nobody listens
    worker = Worker(Connection(descriptor))
    signal.signal(signal.SIGTERM, worker.mailbox.stop._ask)
    from harness.config.devices import given_threads, resolved_device
    from harness.training.libraries import import_libraries

    import_libraries()
    import torch

    threads = given_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    _die_with_parent(None)  # from now on there are checkpoints to keep
    worker.mailbox.send(Ready(pid=os.getpid(), device=resolved_device("auto")))
    worker.work()


if __name__ == "__main__":
    main(int(sys.argv[1]))
