"""What a step of LoRA computes, and the published rate of its device: dense bf16, float32 accumulation.

Sources, read by product page or white paper; where a page gives the rate with sparsity only, half of it:
- H100, H200: NVIDIA H100 and H200 Tensor Core GPU data sheets (SXM 1,979 sparse; PCIe 1,513; NVL 1,671).
- A100, A30, A10, A40: their data sheets (312, 165, 125, 149.7).
- L40S, L40, L4: their data sheets (362.05, 181.05, 242 sparse).
- RTX 4090, RTX 3090: NVIDIA Ada (165.2) and Ampere GA102 (71) architecture white papers.
A GPU that is not here, or part of one (MIG), has no rate: its utilisation is missing, not guessed.
"""

from dataclasses import dataclass
from typing import Any

import torch

from harness.base.build import Base

DENSE_BF16 = {
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}
"""By the name that CUDA gives the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Floating-point operations of a token, and the rate to hold them against."""

    per_input_token: float
    per_loss_token: float
    """What the head adds: it is computed only where there is loss."""
    peak_per_second: float | None
    """Of all devices of the run; None where no rate is published."""

    def utilisation(self, input_tokens: int, loss_tokens: int, seconds: float) -> float | None:
        """Return the share of the peak that a step reached."""
        if self.peak_per_second is None or seconds <= 0:
            return None
        done = self.per_input_token * input_tokens + self.per_loss_token * loss_tokens
        return done / seconds / self.peak_per_second


def peak_rate(device: torch.device) -> float | None:
    """Return the published rate of a device; None for a processor and for a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    return DENSE_BF16.get(torch.cuda.get_device_name(device))


def work_of(
    base: Base,
    logical_params: int,
    adapter_params: int,
    devices: int,
    *,
    trains_all: bool = False,
) -> Work:
    """Return what a step of one adapter computes a token, whatever it recomputes.

    A frozen weight costs 2 operations forward and 2 backward, to its input; an adapter's 6, its own gradient
    included (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, counts 6 where everything is trained). The
    embedding is looked up, and attention's scores are left out. Where tokens choose experts there is no rate
    to hold it against: a token computes a part of the weights, and of an adapter another part.
    """
    embedding = _elements(base.model.get_input_embeddings())
    head = _elements(base.model.get_output_embeddings())
    tied = _is_tied(base.model)
    blocks = logical_params - embedding - (0 if tied else head)
    chosen = any(spec.experts > 1 for spec in base.linears)
    rate = None if chosen else peak_rate(base.device)
    each = 6.0 if trains_all else 4.0
    return Work(
        per_input_token=each * blocks + 6.0 * adapter_params,
        per_loss_token=each * head,
        peak_per_second=None if rate is None else rate * devices,
    )


def _elements(layer: Any) -> int:
    return 0 if layer is None else layer.weight.numel()


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
