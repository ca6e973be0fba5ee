"""Which accelerators this machine shows, without importing torch."""

import os

from harness.config import ResourcesConfig


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
"""Environment variable in which a worker finds how many share its GPU."""


def workers_on_device() -> int:
    """Return how many workers of a sweep share this process's GPU: one, unless the sweep asks for more."""
    return int(os.environ.get(WORKERS_VARIABLE, "1"))
