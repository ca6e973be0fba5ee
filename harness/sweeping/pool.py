"""The worker processes of one machine: start them, hear them, notice when one dies or hangs.

Must not import torch: each worker is pinned to its device before it imports anything.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil

from harness.base.source import find_model, weights_bytes
from harness.config.devices import (
    WORKERS_VARIABLE,
    given_threads,
    usable_cores,
    visible_cuda_devices,
)
from harness.config.schema import ModelConfig, RunConfig
from harness.errors import RequestError
from harness.sweeping.messages import News, Order, Stop

WORKER = "harness.sweeping.worker"
SMALL_BYTES = 2**25
"""A base is small if its weights have at most so many bytes on disk: 32 MiB."""
WORKER_BYTES = 2**31
"""Memory that a worker with a small base is taken to need at most: 2 GiB, mostly activations."""
END_SECONDS = 60.0
"""Seconds that workers may take to keep their checkpoints when they are told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device that one worker is pinned to."""

    name: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone; it had not been told to stop."""

    reason: str


@dataclass(slots=True, kw_only=True)
class WorkerProcess:
    """One worker as the driver sees it."""

    device: Device
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    ready: bool = False
    busy: bool = False
    """Whether it has been given something to do: then it must show signs of life."""
    heard_at: float = field(default_factory=time.monotonic)
    """When it last said anything, or began to be busy (monotonic seconds)."""

    def send(self, order: Order) -> None:
        """Give an order; a worker that is gone is noticed when it is next heard."""
        if not self.busy:
            self.busy, self.heard_at = True, time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.send(order)

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


def devices_for(wanted: str | Sequence[int], cpu_workers: Callable[[], int]) -> list[Device]:
    """Return what to start one worker on each: `auto`, `cpu`, `cpu:N`, or indices of CUDA devices.

    An index that is given twice gets two workers, each with half of the device's memory. `cpu_workers` is
    asked how many `auto` means where there is no GPU.

    Raises RequestError for a CUDA device that is not there.
    """
    visible = _visible_names()
    if wanted == "auto":
        wanted = range(len(visible)) if visible else f"cpu:{cpu_workers()}"
    if isinstance(wanted, str):
        count = int(wanted.partition(":")[2] or 1)
        return [_cpu(index, count) for index in range(count)]
    for index in wanted:
        if index >= len(visible):
            raise RequestError(
                f"resources.devices={list(wanted)}: this machine shows {len(visible)} CUDA devices; "
                f"give indices below {len(visible)}, auto or cpu"
            )
    return [_cuda(position, wanted, visible) for position in range(len(wanted))]


def _cuda(position: int, wanted: Sequence[int], visible: Sequence[str]) -> Device:
    """Return the device of one worker; the second on a GPU is told from the first."""
    index = wanted[position]
    earlier, count = wanted[:position].count(index), wanted.count(index)
    environment = {"CUDA_VISIBLE_DEVICES": visible[index]}
    if count > 1:
        environment[WORKERS_VARIABLE] = str(count)
    return Device(
        name=f"cuda:{index}" + (f" ({earlier + 1} of {count})" if count > 1 else ""),
        environment=environment,
    )


def _visible_names() -> list[str]:
    """Return the CUDA devices by the names that a mask takes: one inside a mask keeps its own."""
    count = visible_cuda_devices()
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(count)] if mask is None else mask.split(",")[:count]


def _cpu(index: int, count: int) -> Device:
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    if count > 1:  # torch's own choice is all cores, for each of them
        share = max(1, usable_cores() // count)
        threads = min(share, given_threads() or share)
        environment |= {"OMP_NUM_THREADS": str(threads), WORKERS_VARIABLE: str(count)}
    return Device(name=f"cpu:{index}" if count > 1 else "cpu", environment=environment)


def workers_on_cpu(configs: Iterable[RunConfig], trials: int) -> int:
    """Return one for each core where every base is small, as far as memory and trials go; else one.

    A product with small matrices is no faster on several threads, so runs side by side use the cores better.
    A large base keeps all of them busy, and each worker would hold it once more.
    """
    models: list[ModelConfig] = []
    for config in configs:
        if config.model not in models:
            models.append(config.model)
    if not all(_is_small(model) for model in models):
        return 1
    room = psutil.virtual_memory().available // WORKER_BYTES
    return max(1, min(usable_cores(), room, trials))


def _is_small(model: ModelConfig) -> bool:
    size = weights_bytes(find_model(model))
    return size is not None and size <= SMALL_BYTES


class Pool:
    """All workers of one driver."""

    def __init__(self, logs: Path, hang_seconds: float) -> None:
        self.workers: list[WorkerProcess] = []
        self._logs = logs
        self._hang_seconds = hang_seconds

    def start(self, device: Device) -> WorkerProcess:
        """Start a worker on `device`; it says `Ready` when it is."""
        self._logs.mkdir(parents=True, exist_ok=True)
        ours, theirs = Pipe()
        log = self._logs / f"{re.sub(r'[^a-z0-9]+', '-', device.name).strip('-')}.log"
        with theirs, log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **device.environment},
            )
        worker = WorkerProcess(device=device, process=process, connection=ours, log=log)
        self.workers.append(worker)
        return worker

    def hear(self, seconds: float) -> Iterator[tuple[WorkerProcess, News | Died]]:
        """Yield what workers have said, waiting at most `seconds` for the first; dead ones are removed."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout=seconds):
            worker = by_connection[connection]  # pyright: ignore[reportArgumentType]
            yield from self._hear_all(worker)
        for worker in list(self.workers):
            silent = time.monotonic() - worker.heard_at
            if worker.busy and silent > self._hang_seconds:
                self.remove(worker)
                yield worker, Died(f"gave no sign of life for {silent:.0f} s and was killed")

    def _hear_all(self, worker: WorkerProcess) -> Iterator[tuple[WorkerProcess, News | Died]]:
        try:
            while worker.connection.poll():
                news: News = worker.connection.recv()
                worker.heard_at = time.monotonic()
                yield worker, news
        except (EOFError, OSError):
            if worker in self.workers:
                self.remove(worker)
                yield worker, Died(_last_words(worker))

    def remove(self, worker: WorkerProcess) -> None:
        """Kill a worker if it lives and forget it."""
        self.workers.remove(worker)
        code = worker.process.poll()
        if code is None:  # its pipe closes a moment before it can be waited for
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=1)
        worker.kill()

    def ask_to_stop(self) -> None:
        """Tell all workers to keep checkpoints and exit."""
        for worker in self.workers:
            worker.send(Stop())

    def stop(self) -> None:
        """Let all workers keep checkpoints, and end those that take too long."""
        self.ask_to_stop()
        give_up = time.monotonic() + END_SECONDS
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=max(0.0, give_up - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End all workers now, without waiting for any to end by itself."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()


def _last_words(worker: WorkerProcess) -> str:
    """Say how a process ended: by a signal, or with what its log ends in."""
    code = worker.process.returncode
    if code is not None and code < 0:
        return f"was ended by signal {-code}"
    lines = worker.log.read_text(errors="replace").strip().splitlines()
    return f"exited with {code}: {lines[-1] if lines else 'without a word'} (see {worker.log})"
