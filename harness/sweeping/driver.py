"""The driver of a sweep: gives runs to workers, hears them, and starts those again that die.

One process of one machine; alone on the study, or one of its members in turn. Imports no torch.
"""

import heapq
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import assert_never

from harness.config.compose import config_tree
from harness.errors import RunFailed
from harness.question.question import Method
from harness.question.settings import SearchSettings
from harness.records.record import Record, RecordError, RunStatus, read_record, write_record
from harness.sweeping.desks import Allotment, Desk
from harness.sweeping.ledger import Run, RunState
from harness.sweeping.messages import (
    Busy,
    Checked,
    Ended,
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
from harness.sweeping.streak import Streak
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
TAKEN_SECONDS = 5.0
"""Seconds after which a run is tried again that another process was training."""
ASK_SECONDS = 0.05
"""Seconds that the driver asks on end before it listens again."""


def most_in_flight(search: SearchSettings) -> int:
    """Return how many trials of an adaptive search are in flight at most, as configured, or by default."""
    trials = search.trials or 0
    return search.in_flight or max(MAX_SLOTS_ADAPTIVE, trials // ROUNDS_ADAPTIVE)


class Driver:
    """One sweep in progress."""

    def __init__(self, trials: Trials, pool: Pool, stop: StopRequest) -> None:
        search = trials.question.search
        self.trials = trials
        self.desks: list[Desk] = []
        self.is_finished = False
        self._pool = pool
        self._stop = stop
        self._desk_of: dict[int, Desk] = {}
        """Desks by the identity of their worker."""
        self._asks_on = False
        """Whether asking was broken off: what workers have to say comes first."""
        self._starts_in_vain: dict[str, int] = defaultdict(int)
        self._adaptive = search.method not in (Method.grid, Method.random)
        self._max_slots = trials.question.resources.cohort or (
            MAX_SLOTS_ADAPTIVE if self._adaptive else MAX_SLOTS
        )
        self._streak = Streak(trials.ledger, adaptive=self._adaptive)
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
        while not self.trials.is_done():
            self.complaint = self._streak.complaint
            if self._stop or self.complaint is not None:
                yield from self._stop_workers()
                return
            self.trials.keep_up(self.device_lines())
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
            for desk in self.desks:
                desk.doing = "keeping checkpoints"
            for worker, news in self._pool.hear(seconds=0.25):
                if isinstance(news, Ended):
                    self._handle(worker, news)
            self.trials.keep_up(self.device_lines())
            yield

    def device_lines(self) -> list[DeviceLine]:
        """Return what each of our workers does."""
        return [_device_line(desk) for desk in self.desks]

    # Workers -------------------------------------------------------------------------------------

    def _adopt(self, worker: WorkerProcess) -> None:
        doing = "ready" if worker.ready else "starting"
        desk = self._desk_of[id(worker)] = Desk(worker=worker, doing=doing)
        self.desks.append(desk)

    def _assign(self) -> None:
        """Give every worker as many runs as it has room for, asking for more trials where none waits."""
        give_up = time.monotonic() + ASK_SECONDS
        if not self._adaptive:
            while self.trials.asks_ahead and time.monotonic() < give_up:
                self.trials.ask()
        allotment = Allotment(self.trials.ledger, self.desks, ahead=not self._adaptive)
        room = self._room()
        self._asks_on = False
        give_up = time.monotonic() + ASK_SECONDS
        queue = [(len(desk.runs), i) for i, desk in enumerate(self.desks) if desk.worker.ready]
        heapq.heapify(queue)  # who has the fewest comes first: none is idle while others are filled
        while queue:
            desk = self.desks[queue[0][1]]
            run = allotment.next_for(desk)
            if run is not None and self.trials.claim(run):
                allotment.take(desk, run)
                self._give(desk, run)
                heapq.heapreplace(queue, (len(desk.runs), queue[0][1]))
            elif run is not None:
                allotment.look_again()
            elif len(desk.runs) >= desk.slots or allotment.has_its_share(desk):
                heapq.heappop(queue)
            elif room <= 0 or time.monotonic() >= give_up:
                self._asks_on |= room > 0
                heapq.heappop(queue)
            else:
                self.trials.ask()
                allotment.look_again()
                # A cell that is known needs no slot.
                room = room - 1 if allotment.waits_for_anybody() else self._room()

    def _room(self) -> int:
        """Return how many trials may be asked for: no more are in flight than there are slots."""
        more = self.trials.requested - len(self.trials.study.trials)
        if more <= 0:
            return 0
        here = self.trials.in_flight_here
        free = min(more, sum(desk.slots for desk in self.desks) - here)
        question = self.trials.question
        allowed = most_in_flight(question.search) - self.trials.in_flight
        if question.search.in_flight is not None:
            return min(free, allowed)
        if not self._adaptive or question.resources.cohort is not None:
            return free
        # A worker without a run is worse than a trial that knows less.
        return min(free, max(len(self.desks) - here, allowed))

    def _give(self, desk: Desk, run: Run) -> None:
        desk.began_at = desk.began_at or time.monotonic()
        run.state, run.started = RunState.assigned, False
        desk.runs[run.run_id] = run
        alone = run.cohort == cohort_of(run.request, alone=True)
        desk.worker.send(
            Train(
                request=run.request,
                cohort=run.cohort,
                sweep=self.trials.question.name,
                role=run.role,
                trial=run.trial,
                max_slots=1 if alone else self._max_slots,
            )
        )

    def _handle(self, worker: WorkerProcess, news: News | Died) -> None:
        desk = self._desk_of[id(worker)]
        match news:
            case Ready():
                worker.ready, desk.doing = True, "ready"
                worker.busy = bool(desk.runs)
            case Slots():
                desk.slots, desk.packing = news.count, news.packing
            case Busy():
                desk.doing = news.doing
            case Waited():
                desk.waited_seconds = news.seconds
            case Stepped():
                self._handle_step(desk, news)
            case Ended():
                self._handle_end(desk, news)
            case Taken():
                run = desk.runs.pop(news.run_id)
                desk.worker.busy = bool(desk.runs)
                desk.doing = f"waiting: {news.holder}"
                run.state = RunState.waiting
                run.not_before = time.monotonic() + TAKEN_SECONDS
            case Died():
                self._handle_death(desk, news)
            case Checked():
                pass  # answered before the sweep began
            case unknown:
                assert_never(unknown)

    def _handle_step(self, desk: Desk, news: Stepped) -> None:
        desk.doing = "training"
        run = self.trials.ledger.runs[news.run_id]
        run.started, run.step, run.total_steps = True, news.step, news.total_steps
        if news.evaluated is not None:
            reason = self.trials.evaluated(run, news.step, news.total_steps, news.evaluated)
            if reason is not None:
                desk.worker.send(Prune(run_id=run.run_id, reason=reason))

    def _handle_end(self, desk: Desk, news: Ended) -> None:
        run = desk.runs.pop(news.run_id)
        desk.worker.busy = bool(desk.runs)
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
            tree = config_tree(run.request.config)
            return Record(run_id=run.run_id, status=RunStatus.running, config=tree)

    def _handle_death(self, desk: Desk, death: Died) -> None:
        """Start another worker; the runs in this one are tried once more, each in a worker to itself."""
        self.desks.remove(desk)
        del self._desk_of[id(desk.worker)]
        device = desk.worker.device
        self._starts_in_vain[device.name] += 0 if desk.worker.ready else 1
        if self._starts_in_vain[device.name] > MAX_STARTS_IN_VAIN:
            raise RunFailed(f"the worker on {device.name} does not start: it {death.reason}")
        suspects = [run for run in desk.runs.values() if run.started]
        for run in desk.runs.values():
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
        record = self._record_of(run)
        run.request.directory.path.mkdir(parents=True, exist_ok=True)
        record.status, record.error = RunStatus.failed, reason
        write_record(run.request.directory.record, record)
        self._has_ended(run, record)


def _device_line(desk: Desk) -> DeviceLine:
    return DeviceLine(
        name=desk.worker.device.name,
        doing=desk.doing if desk.runs or desk.doing == "starting" else "idle",
        packing=desk.packing,
        runs=[run.run_id for run in desk.runs.values()],
        seconds=0.0 if desk.began_at is None else time.monotonic() - desk.began_at,
        waited_seconds=desk.waited_seconds,
    )
