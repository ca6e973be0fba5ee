"""What NVIDIA's management library tells about a GPU: utilization, power, energy; asked in a thread.

NVML averages power over up to a second itself, and a call may take milliseconds of the host: a step that
asked would wait for nothing new. Everything here is of the whole GPU, whoever uses it.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

SAMPLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """What a GPU said last; None for what it does not tell."""

    at: float
    """time.monotonic() of the answer."""
    utilization: float | None
    """Share of the last sample period in which a kernel ran."""
    power_watts: float | None
    energy_joules: float | None
    """Since the driver was loaded: differences count."""

    def energy_now(self) -> float | None:
        """Return the energy counter carried on from the sample to this moment at the sample's power."""
        if self.energy_joules is None:
            return None
        return self.energy_joules + (self.power_watts or 0.0) * (time.monotonic() - self.at)


class GpuSampler:
    """Asks one GPU once a second, from the first question on."""

    def __init__(self, device: torch.device) -> None:
        self._handle = _handle(device)
        self._newest: GpuSample | None = None
        self._thread: threading.Thread | None = None

    def newest(self) -> GpuSample | None:
        """Return the newest sample; None where NVML does not know the device."""
        if self._handle is None:
            return None
        if self._thread is None:
            self._newest = _sample(self._handle)
            self._thread = threading.Thread(target=self._keep_asking, name="nvml", daemon=True)
            self._thread.start()
        return self._newest

    def _keep_asking(self) -> None:
        while True:
            time.sleep(SAMPLE_SECONDS)
            self._newest = _sample(self._handle)


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no driver: NVML raises its own hierarchy of errors
        return None


def _handle(device: torch.device) -> Any | None:
    """Return NVML's handle of the GPU that CUDA calls `device`, found by what both call it: its UUID."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        )
    except Exception:  # no driver, a part of a GPU (MIG): NVML raises its own hierarchy of errors
        return None


def _sample(handle: Any) -> GpuSample:
    import pynvml

    def asked(question: Any, scale: float) -> float | None:
        try:
            return question(handle) * scale
        except pynvml.NVMLError:  # not supported, or a GPU that is lost
            return None

    return GpuSample(
        utilization=asked(lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu, 1e-2),
        power_watts=asked(pynvml.nvmlDeviceGetPowerUsage, 1e-3),
        energy_joules=asked(pynvml.nvmlDeviceGetTotalEnergyConsumption, 1e-3),
        at=time.monotonic(),
    )
