"""The packed forward: the frozen layer sees the rows of all runs once, each adapter its own rows.

PEFT refuses mixed batches while training, so its layers get this forward instead. For one adapter its
numbers are PEFT's, bit for bit (dropout masks aside).

Dropout is stateless: its mask is drawn from a generator seeded by (run, micro-batch, layer), so that it
does not depend on the other runs, survives recomputation in gradient checkpointing, and leaves no
generator state to save.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows [start, stop) of the joint batch belong to `adapter`; None of them: the base alone."""

    adapter: str
    start: int
    stop: int
    dropout_key: int | None
    """Seed of this micro-batch's dropout masks; None while evaluating."""


def dropout_key(seed: int, micro_batch: int) -> int:
    """Return the seed of the masks of one run's micro-batch (counted over its whole training)."""
    return _mix(f"dropout {seed} {micro_batch}")


def _mix(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class RowPlan:
    """Which rows of the batch in flight belong to which adapter; shared by all layers of a model."""

    def __init__(self) -> None:
        self.segments: tuple[Segment, ...] = ()
        self._generators: dict[torch.device, torch.Generator] = {}

    @contextmanager
    def rows(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Run the forward passes (and recomputations) inside with these rows."""
        before, self.segments = self.segments, tuple(segments)
        try:
            yield
        finally:
            self.segments = before

    def generator(self, device: torch.device, key: int, layer_index: int) -> torch.Generator:
        """Return a generator for one layer's mask of one micro-batch."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        # Weyl steps keep the seeds of neighbouring layers far apart.
        seed = (key + layer_index * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF
        return self._generators[device].manual_seed(seed)


class PackedLora:
    """The forward of one PEFT LoRA layer for rows of several adapters.

    y[rows k] = base(x)[rows k] + s_k B_k A_k dropout_k(x[rows k])   (Hu et al. 2021, section 4.1)
    """

    def __init__(self, layer: Any, layer_index: int, plan: RowPlan) -> None:
        self.layer = layer
        self.layer_index = layer_index
        self.plan = plan

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = self.layer.base_layer(x, *args, **kwargs)
        segments = self.plan.segments
        if len(segments) == 1:
            return self._adapted(x, y, segments[0])
        if not any(segment.adapter in self.layer.lora_A for segment in segments):
            return y
        width = self._rows_per_batch_row(x, segments[-1].stop)
        return torch.cat(
            [
                self._adapted(
                    x[segment.start * width : segment.stop * width],
                    y[segment.start * width : segment.stop * width],
                    segment,
                )
                for segment in segments
            ]
        )

    def _rows_per_batch_row(self, x: torch.Tensor, batch_rows: int) -> int:
        """Return 1, or T where the model has flattened [B, T, H] to [B·T, H]."""
        if x.shape[0] % batch_rows:
            raise NotImplementedError(
                f"a layer of this model sees {x.shape[0]} rows for a batch of {batch_rows} (routed "
                "experts?): its runs cannot share a forward pass; train them one at a time"
            )
        return x.shape[0] // batch_rows

    def _adapted(self, x: torch.Tensor, y: torch.Tensor, segment: Segment) -> torch.Tensor:
        layer, name = self.layer, segment.adapter
        if name not in layer.lora_A:
            return y
        lora_a, lora_b = layer.lora_A[name].weight, layer.lora_B[name].weight
        x = x.to(lora_a.dtype)
        dropout: Any = layer.lora_dropout[name]
        scaling: float = layer.scaling[name]
        if segment.dropout_key is not None and isinstance(dropout, nn.Dropout) and dropout.p > 0:
            generator = self.plan.generator(x.device, segment.dropout_key, self.layer_index)
            kept = torch.rand(x.shape, generator=generator, device=x.device) >= dropout.p
            x = x * kept
            scaling = scaling / (1 - dropout.p)
        h = F.linear(x, lora_a)
        if _is_power_of_two(scaling):  # then r columns can be scaled instead of all outputs
            update = F.linear(h.mul_(scaling), lora_b)
        else:
            update = F.linear(h, lora_b).mul_(scaling)
        return update.add_(y).to(y.dtype)


def _is_power_of_two(value: float) -> bool:
    """Say whether a product by `value` is exact, so that it may stand before or after another product."""
    return math.frexp(value)[0] == 0.5
