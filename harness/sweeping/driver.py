"""The driver of a sweep: gives runs to workers, hears them, and starts those again that die.

One process of one machine; alone on the study, or one of its members in turn. Imports no torch.
"""

import contextlib
import heapq
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import assert_never

from harness.config.compose import config_tree
from harness.errors import RequestError, RunFailed, says_out_of_memory
from harness.question.question import Question
from harness.question.settings import SearchSettings
from harness.records.record import Record, RecordError, RunStatus, read_record, write_record
from harness.sweeping.assignment import Assignment, WorkerView
from harness.sweeping.instructions import Inbox, Instruction, InstructionKind
from harness.sweeping.ledger import Ledger, Run, RunState
from harness.sweeping.messages import (
    Busy,
    Checked,
    Ended,
    Halted,
    News,
    Prune,
    Ready,
    Slots,
    Stepped,
    Taken,
    Train,
    Waited,
    cohort_of,
)
from harness.sweeping.pool import END_SECONDS, Died, Pool, WorkerProcess
from harness.sweeping.state import DeviceLine
from harness.sweeping.trials import Trials
from harness.training.stop import StopRequest

MAX_SLOTS = 16
MAX_SLOTS_ADAPTIVE = 8
"""Slots per worker of an adaptive search, fewer than in a grid: its results steer it."""
ROUNDS_ADAPTIVE = 5
"""In how many rounds, at the least, such a search asks for its trials, however many workers there are:
trials that are asked for at once know nothing of each other. `search.in_flight` and `resources.cohort` say
otherwise."""
MAX_DEATHS = 1
"""Workers that may die with a run in them before it counts as failed."""
MAX_STARTS_IN_VAIN = 2
MOST_IN_A_ROW = 8
"""Runs that may fail one after another, of every kind that is left."""
MOST_OF_SOME_KINDS = 24
"""Runs that may in an adaptive search, which might still ask for other kinds."""
TAKEN_SECONDS = 5.0
"""Seconds after which a run is tried again that another process was training."""
ASK_SECONDS = 0.05
"""Seconds that the driver asks on end before it listens again."""


def most_slots(question: Question) -> int:
    """Return the most runs that a worker has side by side."""
    adaptive = question.search.method.is_adaptive
    return question.resources.cohort or (MAX_SLOTS_ADAPTIVE if adaptive else MAX_SLOTS)


def most_in_flight(search: SearchSettings) -> int:
    """Return how many trials of an adaptive search are in flight at most, as configured or by default."""
    trials = search.trials or 0
    return search.in_flight or max(MAX_SLOTS_ADAPTIVE, trials // ROUNDS_ADAPTIVE)


class Driver:
    """One sweep in progress."""

    def __init__(
        self, trials: Trials, pool: Pool, stop: StopRequest, inbox: Inbox | None = None
    ) -> None:
        """`inbox`: what users say while the sweep goes on; none where nothing is trained."""
        self.trials = trials
        self._inbox = inbox
        self._given_up: dict[str, WorkerProcess | None] = {}
        """Runs that users have stopped and that have not ended, each with the worker that knows it."""
        self.views: list[WorkerView] = []
        self.is_finished = False
        self._pool = pool
        self._stop = stop
        self._view_of: dict[int, WorkerView] = {}
        """Desks by the identity of their worker."""
        self._asks_on = False
        """Whether asking was broken off: what workers have to say comes first."""
        self._starts_in_vain: dict[str, int] = defaultdict(int)
        self._adaptive = trials.question.search.method.is_adaptive
        self._max_slots = most_slots(trials.question)
        self._streak = FailureStreak(trials.ledger, adaptive=self._adaptive)
        self._halted: str | None = None
        self.complaint: str | None = None
        """Why it has ended early though nobody asked for it."""

    # The loop ------------------------------------------------------------------------------------

    def drive(self) -> Iterator[None]:
        """Train everything with the workers of the pool; yields a few times a second, to show progress.

        Ends early when a stop is asked for, or when run after run fails: then every run in flight has a
        checkpoint.
        """
        for worker in self._pool.workers:
            self._adopt(worker)
        self.trials.resume()
        self._hear(begins=True)
        while not self.trials.is_done():
            self.complaint = self._halted or self._streak.complaint
            if self._stop or self.complaint is not None:
                yield from self._stop_workers()
                return
            self.trials.keep_up(self.device_lines())
            self._hear()
            self._give_up()
            self._assign()
            for worker, news in self._pool.hear(seconds=0.0 if self._asks_on else 0.25):
                self._handle(worker, news)
            yield
        self.is_finished = True

    def _stop_workers(self) -> Iterator[None]:
        """Let every run in flight keep a checkpoint; kill what does not come to an end."""
        self._pool.ask_to_stop()
        give_up = time.monotonic() + END_SECONDS
        while self._pool.workers and time.monotonic() < give_up:
            for view in self.views:
                view.doing = "keeping checkpoints"
            for worker, news in self._pool.hear(seconds=0.25):
                if isinstance(news, Ended):
                    self._handle(worker, news)
            self.trials.keep_up(self.device_lines())
            yield

    def halt(self, reason: str) -> None:
        """Stop soon, since no run can go on here: `reason` is what the disk has refused."""
        self._halted = f"{reason}; once that is mended, the same command goes on"

    def say_interrupted(self) -> None:
        """Write into the records of runs that were in a worker, which is gone, that they were stopped."""
        for run in (run for view in self.views for run in view.runs.values()):
            with contextlib.suppress(RecordError, OSError):
                record = read_record(run.request.directory.record)
                if record.status is RunStatus.running:
                    record.status, record.error = RunStatus.interrupted, "stopped at once"
                    write_record(run.request.directory.record, record)

    def device_lines(self) -> list[DeviceLine]:
        """Return what each of our workers does."""
        return [_device_line(view) for view in self.views]

    # What users say ------------------------------------------------------------------------------

    def _hear(self, *, begins: bool = False) -> None:
        """Obey what is new; what was said before this driver began is obeyed again, but for a stop."""
        for instruction in self._inbox.hear() if self._inbox is not None else ():
            try:
                self._obey(instruction, begins=begins)
            except RequestError as error:  # it asks for what cannot be: the sweep goes on without
                self._say(f"cannot {instruction.text}: {error}")
            else:
                if not begins:
                    self._say(f"told to {instruction.text}")

    def _obey(self, instruction: Instruction, *, begins: bool) -> None:
        match instruction.kind:
            case InstructionKind.stop_run:
                self._given_up.setdefault(instruction.run_id, None)
            case InstructionKind.stop_sweep:
                if not begins:
                    self._stop.signal = self._stop.signal or signal.SIGTERM
            case InstructionKind.more_trials | InstructionKind.add_value:
                before = self.trials.question
                self.trials.extend(instruction.change)
                if self._inbox is not None and self.trials.question != before:
                    self._inbox.keep(self.trials.question)
            case InstructionKind.clone:
                self.trials.clone(instruction.point, instruction.overrides)
            case unknown:
                assert_never(unknown)

    def _say(self, text: str) -> None:
        if self._inbox is not None:
            self._inbox.say(text)

    def _give_up(self) -> None:
        """Let workers prune the runs that users have stopped, and end those that none has begun."""
        reason = f"stopped by hand in sweep {self.trials.question.name}"
        for view in self.views:
            for run_id in self._given_up.keys() & view.runs.keys():
                if self._given_up[run_id] is not view.worker:  # another one had it, and has died
                    view.worker.send(Prune(run_id=run_id, reason=reason))
                    self._given_up[run_id] = view.worker
        for run_id in sorted(self._given_up.keys() & self.trials.ledger.runs.keys()):
            run = self.trials.ledger.runs[run_id]
            if run.state is RunState.waiting and self.trials.claim(run):
                self._write_end(run, RunStatus.pruned, None, note=reason)
            if run.state is RunState.ended:
                del self._given_up[run_id]

    # Workers -------------------------------------------------------------------------------------

    def _adopt(self, worker: WorkerProcess) -> None:
        doing = "ready" if worker.ready else "starting"
        view = self._view_of[id(worker)] = WorkerView(worker=worker, doing=doing)
        self.views.append(view)

    def _assign(self) -> None:
        """Give every worker as many runs as it has room for, asking for more trials where none waits."""
        give_up = time.monotonic() + ASK_SECONDS
        if not self._adaptive:
            while self.trials.asks_ahead and time.monotonic() < give_up:
                self.trials.ask()
        assignment = Assignment(self.trials.ledger, self.views, ahead=not self._adaptive)
        room = self._room()
        self._asks_on = False
        give_up = time.monotonic() + ASK_SECONDS
        queue = [(len(view.runs), i) for i, view in enumerate(self.views) if view.worker.ready]
        heapq.heapify(queue)  # who has the fewest comes first: none is idle while others are filled
        while queue:
            view = self.views[queue[0][1]]
            run = assignment.next_for(view)
            if run is not None and self.trials.claim(run):
                assignment.take(view, run)
                self._give(view, run)
                heapq.heapreplace(queue, (len(view.runs), queue[0][1]))
            elif run is not None:
                assignment.look_again()
            elif len(view.runs) >= view.slots or assignment.has_its_share(view):
                heapq.heappop(queue)
            elif room <= 0 or time.monotonic() >= give_up:
                self._asks_on |= room > 0
                heapq.heappop(queue)
            else:
                self.trials.ask()
                assignment.look_again()
                # A cell that is known needs no slot.
                room = room - 1 if assignment.waits_for_anybody() else self._room()

    def _room(self) -> int:
        """Return how many trials may be asked for: no more are in flight than there are slots."""
        more = self.trials.requested - len(self.trials.study.trials)
        if more <= 0 or not self.trials.may_ask:
            return 0
        here = self.trials.in_flight_here
        free = min(more, sum(view.slots for view in self.views) - here)
        question = self.trials.question
        allowed = most_in_flight(question.search) - self.trials.in_flight
        if question.search.in_flight is not None:
            return min(free, allowed)
        if not self._adaptive or question.resources.cohort is not None:
            return free
        # A worker without a run is worse than a trial that knows less.
        return min(free, max(len(self.views) - here, allowed))

    def _give(self, view: WorkerView, run: Run) -> None:
        view.began_at = view.began_at or time.monotonic()
        run.state, run.started = RunState.assigned, False
        view.runs[run.run_id] = run
        alone = run.cohort == cohort_of(run.request, alone=True)
        view.worker.send(
            Train(
                request=run.request,
                cohort=run.cohort,
                sweep=self.trials.question.name,
                role=run.role,
                trial=run.trial,
                max_slots=1 if alone else self._max_slots,
                probe=self.trials.probe_of(run),
            )
        )

    def _handle(self, worker: WorkerProcess, news: News | Died) -> None:
        view = self._view_of[id(worker)]
        match news:
            case Ready():
                worker.ready, view.doing = True, "ready"
                worker.busy = bool(view.runs)
            case Slots():
                view.slots, view.packing = news.count, news.packing
            case Busy():
                view.doing = news.doing
            case Waited():
                view.waited_seconds = news.seconds
            case Stepped():
                self._handle_step(view, news)
            case Ended():
                self._handle_end(view, news)
            case Taken():
                run = view.runs.pop(news.run_id)
                view.worker.busy = bool(view.runs)
                view.doing = f"waiting: {news.holder}"
                run.state = RunState.waiting
                run.not_before = time.monotonic() + TAKEN_SECONDS
            case Died():
                self._handle_death(view, news)
            case Halted():
                self.halt(f"{view.worker.device.name}: {news.reason}")
            case Checked():
                pass  # answered before the sweep began
            case unknown:
                assert_never(unknown)

    def _handle_step(self, view: WorkerView, news: Stepped) -> None:
        view.doing = "training"
        run = self.trials.ledger.runs[news.run_id]
        run.started, run.step, run.total_steps = True, news.step, news.total_steps
        if news.evaluated is not None:
            reason = self.trials.evaluated(run, news.step, news.total_steps, news.evaluated)
            if reason is not None:
                view.worker.send(Prune(run_id=run.run_id, reason=reason))

    def _handle_end(self, view: WorkerView, news: Ended) -> None:
        run = view.runs.pop(news.run_id)
        view.worker.busy = bool(view.runs)
        if news.status is RunStatus.interrupted:
            run.state = RunState.waiting  # goes on with the next driver
            return
        self._has_ended(run, self._record_of(run))

    def _has_ended(self, run: Run, record: Record) -> None:
        self._streak.add(run, record)
        self.trials.ended(run, record)

    def _record_of(self, run: Run) -> Record:
        """Return the record on disk, or an empty one of a run that never got so far."""
        try:
            return read_record(run.request.directory.record)
        except RecordError:
            place = {"name": self.trials.question.name, "role": run.role.value, "trial": run.trial}
            return Record(
                run_id=run.run_id,
                status=RunStatus.running,
                config=config_tree(run.request.config),
                provenance={"sweep": place, "cell_id": run.request.identity.cell_id},
            )

    def _handle_death(self, view: WorkerView, death: Died) -> None:
        """Start another worker; the runs in this one are tried once more, each in a worker to itself."""
        self.views.remove(view)
        del self._view_of[id(view.worker)]
        device = view.worker.device
        self._starts_in_vain[device.name] += 0 if view.worker.ready else 1
        if self._starts_in_vain[device.name] > MAX_STARTS_IN_VAIN:
            raise RunFailed(f"the worker on {device.name} does not start: it {death.reason}")
        if self._halted is not None:
            return  # it has said why, and nothing is begun any more
        suspects = [run for run in view.runs.values() if run.started]
        for run in view.runs.values():
            if run in suspects or not suspects:
                run.deaths += 1
                self.trials.ledger.send_alone(run)
            run.state = RunState.waiting
            if run.deaths > MAX_DEATHS:
                self._fail(run, f"its worker {death.reason}, {run.deaths} times")
        if not self._stop:
            self._adopt(self._pool.start(device))

    def _fail(self, run: Run, reason: str) -> None:
        """Write the record of a run that cannot be trained, keeping what its last worker wrote."""
        if not self.trials.claim(run):
            return  # another member has it by now
        refused = says_out_of_memory(
            reason
        )  # by a library that ends the process, as bitsandbytes does
        self._write_end(run, RunStatus.out_of_memory if refused else RunStatus.failed, reason)

    def _write_end(
        self, run: Run, status: RunStatus, error: str | None, *, note: str | None = None
    ) -> None:
        """Write how a run has ended that no worker has, beside what its last one wrote."""
        record = self._record_of(run)
        run.request.directory.path.mkdir(parents=True, exist_ok=True)
        record.status, record.error = status, error
        record.notes += [] if note is None else [note]
        write_record(run.request.directory.record, record)
        self._has_ended(run, record)


def _device_line(view: WorkerView) -> DeviceLine:
    return DeviceLine(
        name=view.worker.device.name,
        doing=view.doing if view.runs or view.doing == "starting" else "idle",
        packing=view.packing,
        runs=[run.run_id for run in view.runs.values()],
        seconds=0.0 if view.began_at is None else time.monotonic() - view.began_at,
        waited_seconds=view.waited_seconds,
    )


class FailureStreak:
    """The runs that have failed since one has not.

    A full disk or a broken device fails every run within seconds, and a night's trials in minutes. A kind of
    run that cannot work (a format that a device lacks) is not that: other kinds still come to their ends.
    """

    def __init__(self, ledger: Ledger, *, adaptive: bool) -> None:
        """`adaptive`: results decide what is asked for next, so that what has ended may come again."""
        self._ledger = ledger
        self._adaptive = adaptive
        self._failed: list[tuple[Run, Record]] = []

    def add(self, run: Run, record: Record) -> None:
        """Take note of how a run has ended."""
        if record.status is not RunStatus.failed:
            self._failed.clear()
        else:
            self._failed.append((run, record))

    @property
    def complaint(self) -> str | None:
        """Why nothing more should be begun; None where runs may go on."""
        if len(self._failed) < MOST_IN_A_ROW:
            return None
        may_come = {
            run.cohort
            for run in self._ledger.runs.values()
            if self._adaptive or run.state in (RunState.waiting, RunState.assigned)
        }
        of_every_kind = may_come <= {run.cohort for run, _ in self._failed}
        if not of_every_kind and not (self._adaptive and len(self._failed) >= MOST_OF_SOME_KINDS):
            return None
        run, record = self._failed[-1]
        return (
            f"{len(self._failed)} runs have failed one after another, so nothing more is begun here. The "
            f"last was {run.run_id}: {record.error}; its log is {run.request.directory.log}. Once that is "
            "mended, the same command goes on with what is left; with name=OTHER it also trains those again "
            "that have failed, and takes the results of the others"
        )
