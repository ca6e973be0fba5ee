"""NEFTune: noise on the embeddings while a run trains (Jain et al. 2023, arXiv 2310.05914).

    e += alpha / sqrt(L d) u,    u evenly spread between -1 and 1

L is the length of the example itself, as in the paper's code: a batch's longest would make a run depend on
how its
rows are laid out. u is a function of where an element stands (`harness.engine.dropout`), so that a run has
the same noise in any company. Shape suffixes: B rows, T positions, H hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

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


@dataclass(frozen=True, slots=True)
class _Disturbed:
    """Rows from `start` on of the batch in flight, and their noise."""

    start: int
    batch: Batch
    noise: Noise

    def add(self, embedded_BTH: torch.Tensor) -> None:
        rows, length = self.batch.input_ids_BT.shape
        hidden, device = embedded_BTH.shape[-1], embedded_BTH.device
        places_N = self.batch.places.reshape(-1).to(device)
        noise_BTH = uniform_noise(self.noise.key, places_N, hidden).view(rows, length, hidden)
        lengths_BT = example_lengths(self.batch).to(device)
        scale_BT1 = (lengths_BT * hidden).float().rsqrt_().mul_(self.noise.alpha).unsqueeze(2)
        part = embedded_BTH[self.start : self.start + rows, :length]
        part.add_(noise_BTH.mul_(scale_BT1).to(part.dtype))


class _Disturbance:
    """What follows the embeddings of a model."""

    def __init__(self) -> None:
        self.now: list[_Disturbed] = []

    def __call__(self, _: nn.Module, __: Any, output: torch.Tensor) -> None:
        for each in self.now:
            each.add(output)


_disturbances: WeakKeyDictionary[nn.Module, _Disturbance] = WeakKeyDictionary()


@contextmanager
def disturbed(
    model: nn.Module, batches: Sequence[Batch], noises: Sequence[Noise | None]
) -> Iterator[None]:
    """Within this context the embeddings of each run's rows, one below another, have its noise."""
    if not any(noises):
        yield
        return
    embeddings: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if embeddings not in _disturbances:
        _disturbances[embeddings] = _Disturbance()
        embeddings.register_forward_hook(_disturbances[embeddings])
    start, now = 0, []
    for batch, noise in zip(batches, noises, strict=True):
        if noise is not None:
            now.append(_Disturbed(start, batch, noise))
        start += batch.input_ids_BT.shape[0]
    _disturbances[embeddings].now = now
    try:
        yield
    finally:
        _disturbances[embeddings].now = []
