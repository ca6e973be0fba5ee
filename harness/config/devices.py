"""Which accelerators and processors this machine shows, without importing torch."""

import functools
import os
from pathlib import Path

from harness.config.schema import ResourcesConfig


def visible_cuda_devices() -> int:
    """Return how many CUDA devices a process started here would see."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        return len([part for part in mask.split(",") if part.strip() not in ("", "-1")])
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    except Exception:  # no driver: NVML raises its own hierarchy of errors
        return 0


def resolved_device(wanted: str) -> str:
    """Return `cpu` or `cuda[:N]` for a value of `resources.device`."""
    if wanted != "auto":
        return wanted
    return "cuda" if visible_cuda_devices() else "cpu"


def compute_capability(device: str) -> tuple[int, int] | None:
    """Return what the driver says of `cuda` or `cuda:N`; None where it cannot be asked.

    CUDA_VISIBLE_DEVICES names devices by index or by UUID, and `cuda:N` counts in it.
    """
    index = int(device.partition(":")[2] or 0)
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        named = str(index) if mask is None else mask.split(",")[index].strip()
        import pynvml

        pynvml.nvmlInit()
        if named.isdecimal():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(named))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(named)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    except Exception:  # no driver: NVML raises its own hierarchy of errors
        return None
    return int(major), int(minor)


def usable_threads() -> int:
    """Return how many threads of the machine this process may run on at once."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a job scheduler may grant less than there is
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def physical_cores() -> int | None:
    """Return how many cores the machine has; None where the system does not say."""
    import psutil

    return psutil.cpu_count(logical=False)


def usable_cores() -> int:
    """Return how many cores this process may keep busy: those behind its threads, at most its quota."""
    granted = min(usable_threads(), physical_cores() or usable_threads())
    return max(1, int(min(granted, _quota())))


def given_threads() -> int | None:
    """Return the threads that OMP_NUM_THREADS allows one process; None where it says nothing."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) > 0 else None


def _quota() -> float:
    """Return the processor seconds per second that this process's control group has (cgroup v2, cpu.max)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or no limit: "max 100000"
        return float("inf")


def threads_per_process(resources: ResourcesConfig, all_threads: int | None = None) -> int:
    """Return each process's share of a run's CPU threads: `resources.threads`, or else `all_threads`."""
    threads = resources.threads or all_threads or os.cpu_count() or 1
    return max(1, threads // resources.data_parallel)


def device_memory(kind: str) -> int | None:
    """Return the bytes of memory of the smallest visible GPU (for `cuda`) or of this machine (for `cpu`)."""
    if kind == "cpu":
        import psutil

        return psutil.virtual_memory().total
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
    except Exception:  # no driver: NVML raises its own hierarchy of errors
        return None


WORKERS_VARIABLE = "HARNESS_WORKERS_ON_DEVICE"
"""Environment variable in which a worker finds how many share its device."""


def workers_on_device() -> int:
    """Return how many workers of a sweep share this process's GPU, or this machine's processor."""
    return int(os.environ.get(WORKERS_VARIABLE, "1"))
