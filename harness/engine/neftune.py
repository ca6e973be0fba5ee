"""NEFTune: noise on the embeddings while a run trains (Jain et al. 2023, arXiv 2310.05914).

    e += alpha / sqrt(L d) u,    u evenly spread between -1 and 1

L is the length of the example itself, as in the paper's code: a batch's longest would make a run depend on
how its rows are laid out. u is a function of where an element stands (`harness.engine.dropout`), so that a
run has the same noise in any company. Shape suffixes: B rows, T positions, H hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.data.compact import example_lengths
from harness.data.rows import Batch
from harness.engine.dropout import uniform_noise


@dataclass(frozen=True, slots=True)
class Noise:
    """What one run's micro-batch is disturbed by."""

    key: int
    alpha: float


@contextmanager
def disturbed(
    model: nn.Module, batches: Sequence[Batch], noises: Sequence[Noise | None]
) -> Iterator[None]:
    """Within this context the embeddings of each run's rows, one below another, have its noise."""
    if not any(noises):
        yield
        return

    def disturb(_: nn.Module, __: Any, embedded_BTH: torch.Tensor) -> None:
        start = 0
        for batch, noise in zip(batches, noises, strict=True):
            stop = start + batch.input_ids_BT.shape[0]
            if noise is not None:
                _add(embedded_BTH[start:stop], batch, noise)
            start = stop

    embeddings: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    hook = embeddings.register_forward_hook(disturb)
    try:
        yield
    finally:
        hook.remove()


def _add(embedded_BTH: torch.Tensor, batch: Batch, noise: Noise) -> None:
    """Add a run's noise to the embeddings of its rows, which may be longer than its own batch."""
    rows, length = batch.input_ids_BT.shape
    hidden, device = embedded_BTH.shape[-1], embedded_BTH.device
    places_N = batch.places.reshape(-1).to(device)
    noise_BTH = uniform_noise(noise.key, places_N, hidden).view(rows, length, hidden)
    lengths_BT = example_lengths(batch).to(device)
    scale_BT1 = (lengths_BT * hidden).float().rsqrt_().mul_(noise.alpha).unsqueeze(2)
    part = embedded_BTH[:, :length]
    part.add_(noise_BTH.mul_(scale_BT1).to(part.dtype))
