"""The meter of a device: its memory, peaks by phase, and how its work is waited for. One per process.

On a GPU the CUDA allocator counts, on the host, and asking it waits for nothing. On a CPU nobody counts:
known is the resident set of the process, whose peak the kernel lets us reset, and exact bytes of tensors.
"""

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch

from harness.config.devices import workers_on_device
from harness.measure.heap import give_back_freed_memory, keep_freed_memory
from harness.measure.nvml import GpuSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a device and this process say at one moment, in bytes; None for what the device does not tell."""

    resident_bytes: int
    """Resident set of this process."""
    allocated_bytes: int | None = None
    """Tensors on the device."""
    reserved_bytes: int | None = None
    """Bytes of the device that the allocator holds, in use or not."""
    peak_bytes: int | None = None
    """Highest `allocated_bytes` since `begin`."""
    utilization: float | None = None
    """Share of the last second in which a kernel ran, of whichever process."""
    power_watts: float | None = None


class Meter(Protocol):
    """What training, evaluation and loading ask of a device."""

    device: torch.device

    def begin(self) -> None:
        """Forget the peak so far: a phase (load, train, eval) begins."""
        ...

    def read(self) -> int:
        """Return the peak since `begin` in bytes: allocated by CUDA, or resident in the process."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        ...

    def empty(self) -> None:
        """Give freed memory back, after a failure that it may help with."""
        ...

    def keep_freed(self) -> None:
        """Keep what a step frees for the next one, from now on."""
        ...

    def now(self) -> Reading:
        """Return the state of this moment, without waiting for the device."""
        ...

    def energy_joules(self) -> float | None:
        """Return the device's energy counter at this moment; None where there is none."""
        ...

    def begin_pass(self) -> int:
        """Begin to measure a pass; return what `pass_bytes` must be given. A GPU forgets its peak."""
        ...

    def pass_bytes(self, begun: int, saved_bytes: int) -> int:
        """Return what a pass has needed: a GPU saw all of it, a CPU what was saved for backward."""
        ...

    def training_peak(self, seen_bytes: int, parts_bytes: int | None) -> int | None:
        """Return a run's training peak, of what was seen and of what its parts sum to."""
        ...

    def process_peak(self, seen_bytes: int) -> int:
        """Return the resident peak of the process, where `seen_bytes` is the highest of what `read` said."""
        ...

    def used_bytes(self) -> int:
        """Return what this process holds of the device."""
        ...

    def usable_bytes(self) -> int:
        """Return what this process may hold of the device, what it holds already included."""
        ...

    def total_bytes(self) -> int:
        """Return all memory of the device: a GPU's own, or this worker's part of one, or the machine's."""
        ...


class CpuMeter:
    """The processor, and the machine's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin(self) -> None:
        """Forget the resident peak; what is free goes back first, so that the next counts what is used."""
        give_back_freed_memory()
        # Linux: writing 5 resets the process's resident peak (man 5 proc, clear_refs).
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    def read(self) -> int:
        """Return the resident peak since `begin`."""
        return process_peak_bytes()

    def synchronize(self) -> None:
        """Return: a processor has done its work when a call returns."""

    def empty(self) -> None:
        """Give freed pages back to the kernel."""
        give_back_freed_memory()

    def keep_freed(self) -> None:
        """Keep freed pages."""
        keep_freed_memory()

    def now(self) -> Reading:
        """Return the resident set."""
        return Reading(resident_bytes=resident_bytes())

    def energy_joules(self) -> float | None:
        """Return None: a processor's counters are for administrators."""
        return None

    def begin_pass(self) -> int:
        """Return nothing: what a pass saves is counted by its own hooks."""
        return 0

    def pass_bytes(self, begun: int, saved_bytes: int) -> int:
        """Return what was saved for backward."""
        return saved_bytes

    def training_peak(self, seen_bytes: int, parts_bytes: int | None) -> int | None:
        """Return the sum of the parts: the resident peak has the libraries and other runs in it."""
        return parts_bytes

    def process_peak(self, seen_bytes: int) -> int:
        """Return the highest resident set seen."""
        return seen_bytes

    def used_bytes(self) -> int:
        """Return the resident set."""
        return resident_bytes()

    def usable_bytes(self) -> int:
        """Return this worker's part of the machine's free memory, and the resident set."""
        return psutil.virtual_memory().available // workers_on_device() + resident_bytes()

    def total_bytes(self) -> int:
        """Return the machine's memory."""
        return psutil.virtual_memory().total


class CudaMeter:
    """A GPU, as the CUDA allocator of this process and NVML see it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sampler = GpuSampler(device)

    def begin(self) -> None:
        """Forget the allocator's peak."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> int:
        """Return the allocator's peak since `begin`."""
        return torch.cuda.max_memory_allocated(self.device)

    def synchronize(self) -> None:
        """Wait for the device's queue."""
        torch.cuda.synchronize(self.device)

    def empty(self) -> None:
        """Give the allocator's free blocks back to the device."""
        torch.cuda.empty_cache()

    def keep_freed(self) -> None:
        """Do nothing: CUDA's allocator always does."""

    def now(self) -> Reading:
        """Return the allocator's counters, which the host keeps, and the newest of NVML's samples."""
        counters = torch.cuda.memory_stats_as_nested_dict(self.device)
        allocated, gpu = counters["allocated_bytes"]["all"], self._sampler.newest()
        return Reading(
            resident_bytes=resident_bytes(),
            allocated_bytes=allocated["current"],
            reserved_bytes=counters["reserved_bytes"]["all"]["current"],
            peak_bytes=allocated["peak"],
            utilization=None if gpu is None else gpu.utilization,
            power_watts=None if gpu is None else gpu.power_watts,
        )

    def energy_joules(self) -> float | None:
        """Return NVML's counter, carried on from its newest sample."""
        gpu = self._sampler.newest()
        return None if gpu is None else gpu.energy_now()

    def begin_pass(self) -> int:
        """Forget the peak; return what is allocated before the pass."""
        self.begin()
        return self.used_bytes()

    def pass_bytes(self, begun: int, saved_bytes: int) -> int:
        """Return by how much the pass's peak was above what was there before."""
        return self.read() - begun

    def training_peak(self, seen_bytes: int, parts_bytes: int | None) -> int | None:
        """Return what was seen: it has what the parts do not know, tensors of a moment."""
        return seen_bytes

    def process_peak(self, seen_bytes: int) -> int:
        """Return the process's own peak in the machine's memory."""
        return process_peak_bytes()

    def used_bytes(self) -> int:
        """Return the bytes of tensors on the device."""
        return torch.cuda.memory_allocated(self.device)

    def usable_bytes(self) -> int:
        """Return all of this worker's part."""
        return self.total_bytes()

    def total_bytes(self) -> int:
        """Return this worker's part of the GPU's memory."""
        return torch.cuda.get_device_properties(self.device).total_memory // workers_on_device()


def meter_of(device: torch.device) -> Meter:
    """Return the meter of a device, the same one whenever it is asked for in this process."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _meter(device)


@functools.cache
def _meter(device: torch.device) -> Meter:
    return CudaMeter(device) if device.type == "cuda" else CpuMeter(device)


def resident_bytes() -> int:
    """Return the resident set of this process."""
    try:  # kept open: opening it anew for each step costs three times as much
        return int(os.pread(_statm(os.getpid()), 64, 0).split()[1]) * _PAGE_BYTES
    except OSError:  # no such file system
        return psutil.Process().memory_info().rss


@functools.cache
def _statm(process: int) -> int:
    """Return a descriptor of the file with this process's sizes; a forked process opens its own."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def process_peak_bytes() -> int:
    """Return the resident peak of this process in bytes (since the last reset, where the OS has one)."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident_bytes()


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
