"""Simulated devices behind the harness's own pool: real pipes and messages, on a clock that skips waiting.

The driver's work takes the time it takes. Training takes the time that was recorded, and costs none: while
the driver waits, the clock is put forward to the next message. What the simulation computes is taken off.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import Popen
from typing import cast

from bench.scheduler_devices import NEVER, SimulatedDevice
from bench.scheduler_lengths import RunLengths
from harness.sweeping.messages import News, Order
from harness.sweeping.pool import Device, Died, Pool, WorkerProcess

MESSAGES_AT_ONCE = 32
"""How many messages a pipe is given before it is read again: its buffer holds more than these."""


class SkippingClock:
    """Processor seconds of this process, without those of the simulation and with those that were skipped.

    Processor time is what the driver's work costs, whatever else this machine does.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._began = time.process_time()
        self._simulating = 0.0

    def now(self) -> float:
        """Return the moment, in seconds."""
        return time.process_time() + self._ahead

    def skip_to(self, moment: float) -> None:
        """Let it be `moment`, if it is not later."""
        self._ahead += max(0.0, moment - self.now())

    @contextmanager
    def stands_still(self) -> Iterator[float]:
        """Do something that takes no time, at the moment that is yielded."""
        began = time.process_time()
        yield began + self._ahead
        taken = time.process_time() - began
        self._ahead -= taken
        self._simulating += taken

    def worked(self) -> float:
        """Return the seconds spent outside the simulation since the clock was made."""
        return time.process_time() - self._began - self._simulating


@dataclass(kw_only=True, eq=False)
class SimulatedWorker(WorkerProcess):
    """The driver's side: orders are pickled and sent at the driver's expense, and read at once."""

    clock: SkippingClock
    theirs: Connection
    station: SimulatedDevice
    wake: Callable[[], None]

    def send(self, order: Order) -> None:
        """Give an order."""
        super().send(order)
        with self.clock.stands_still() as moment:
            if self.station.receive(self.theirs.recv(), moment):
                self.wake()

    def kill(self) -> None:
        """Close the pipe: there is no process to end."""
        self.theirs.close()
        self.connection.close()


class SimulatedPool(Pool):
    """The harness's pool, whose workers are simulated."""

    def __init__(self, logs: Path, clock: SkippingClock, lengths: RunLengths) -> None:
        super().__init__(logs, hang_seconds=NEVER)
        self.delays: list[float] = []
        """How long each message lay in its pipe until the driver took it, in seconds."""
        self.all: list[SimulatedWorker] = []
        self._clock = clock
        self._lengths = lengths
        self._actions: list[tuple[float, int]] = []
        """Heap of (when, index of the worker)."""
        self._said: list[tuple[float, int, int, News]] = []
        """Heap of (when, number of the message, index of the worker, message)."""
        self._num_said = 0

    def start(self, device: Device) -> WorkerProcess:
        """Start a worker, which says `Ready` when it has imported its libraries."""
        with self._clock.stands_still() as moment:
            ours, theirs = Pipe()
            index, station = len(self.all), SimulatedDevice(self._lengths, at=moment)
            worker = SimulatedWorker(
                device=device,
                process=cast("Popen[bytes]", None),
                connection=ours,
                log=self._logs / "none",
                clock=self._clock,
                theirs=theirs,
                station=station,
                wake=lambda: heapq.heappush(self._actions, (station.at, index)),
            )
            self.workers.append(worker)
            self.all.append(worker)
            worker.wake()
        return worker

    def hear(self, seconds: float) -> Iterator[tuple[WorkerProcess, News | Died]]:
        """Yield what is said, waiting at most `seconds` of the clock's for the first."""
        with self._clock.stands_still() as now:
            moment = self._wait(now, now + seconds)
            stamps = self._deliver(moment)
        self._clock.skip_to(moment)
        for worker, news in super().hear(0.0):
            self.delays.append(self._clock.now() - stamps[id(worker)].popleft())
            yield worker, news

    def _wait(self, now: float, give_up: float) -> float:
        """Let the devices act until one has said something; returns when that is, not before `now`."""
        while True:
            action = self._actions[0][0] if self._actions else NEVER
            said = self._said[0][0] if self._said else NEVER
            if action <= now or (action <= said and action <= give_up):
                self._act()
            elif said <= give_up:
                return max(now, said)
            else:
                return give_up

    def _act(self) -> None:
        _, index = heapq.heappop(self._actions)
        station = self.all[index].station
        for moment, news in station.act():
            self._num_said += 1
            heapq.heappush(self._said, (moment, self._num_said, index, news))
        if station.at < NEVER:
            heapq.heappush(self._actions, (station.at, index))

    def _deliver(self, moment: float) -> dict[int, deque[float]]:
        """Write what has been said until `moment` into the pipes; returns when, for each worker."""
        stamps: dict[int, deque[float]] = {}
        later = []
        while self._said and self._said[0][0] <= moment:
            stamp, number, index, news = heapq.heappop(self._said)
            worker = self.all[index]
            mine = stamps.setdefault(id(worker), deque())
            if len(mine) == MESSAGES_AT_ONCE:
                later.append((stamp, number, index, news))
                continue
            worker.theirs.send(news)
            mine.append(stamp)
        for entry in later:
            heapq.heappush(self._said, entry)
        return stamps
