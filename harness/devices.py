"""Which accelerators this machine shows, without importing torch."""

import os


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
