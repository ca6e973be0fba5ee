"""A packed frozen layer without its bytes: on the meta device it allocates what the real one would."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from harness.base.layers import FrozenLinear
from harness.base.layout import LinearSpec
from harness.config.schema import QuantConfig, QuantFormat
from harness.engine.reference.grouped_lora import PackedLora
from harness.engine.rows import RowPlan
from harness.plan.storage import has_offset


@dataclass(slots=True)
class PlannedStorage:
    """How all planned layers of a model are stored at the moment."""

    quant: QuantConfig


class PlannedLinear(FrozenLinear):
    """A frozen layer on the meta device. `weight` is dense; the storage says what a pass allocates.

    bitsandbytes' layers do what ours do: nothing saved, decoded in forward and again in backward.
    """

    def __init__(
        self,
        spec: LinearSpec,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        storage: PlannedStorage,
    ) -> None:
        dense = torch.empty(spec.out_features, spec.in_features, dtype=dtype, device="meta")
        super().__init__(spec.in_features, spec.out_features, dense, bias)
        self.storage = storage

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.storage.quant.format is QuantFormat.none:
            return F.linear(input, self.weight, self.bias)
        return super().forward(input)

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        quant = self.storage.quant
        shape = (self.out_features, self.in_features)
        match quant.format:
            case QuantFormat.none:
                return self.weight
            case QuantFormat.nf4 | QuantFormat.fp4:
                scale = self._decoded_constants(quant)
                dense = _empty(*shape, dtype=dtype)
                del scale
                return dense
            case QuantFormat.int8:
                return _empty(*shape, dtype=torch.float32).to(dtype)
            case _:
                return self._decoded_halves(quant, dtype).view(shape)

    def _blocks(self, quant: QuantConfig) -> int:
        return -(-self.in_features * self.out_features // quant.block_size)

    def _decoded_constants(self, quant: QuantConfig) -> torch.Tensor | None:
        """Allocate the float32 constants that double quantization brings back for a moment."""
        if not quant.double_quant:
            return None
        return _empty(self._blocks(quant), dtype=torch.float32).add(0)

    def _decoded_halves(self, quant: QuantConfig, dtype: torch.dtype) -> torch.Tensor:
        """Allocate as `harness.base.code_books.decode` does: two halves, then both in one."""
        count = self.in_features * self.out_features
        half = -(-count // 2)
        piece = math.gcd(half, quant.block_size)
        scale = self._per_piece(quant, piece)
        dtype_of_sum = torch.float32 if has_offset(quant.format) else dtype
        flat = torch.cat([_empty(half, dtype=dtype_of_sum), _empty(half, dtype=dtype_of_sum)])
        if has_offset(quant.format):
            offset = self._per_piece(quant, piece)
            del offset
        del scale
        return flat[:count].to(dtype)

    def _per_piece(self, quant: QuantConfig, piece: int) -> torch.Tensor | None:
        constants = self._decoded_constants(quant)
        if piece == quant.block_size:
            return constants
        repeats = quant.block_size // piece
        return _empty(self._blocks(quant) * repeats, dtype=torch.float32)


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class AdaptedLayer(nn.Module):
    """What PEFT's layer is to `PackedLora`: it adapts where the plan of rows says so."""

    def __init__(self, base_layer: PlannedLinear, layer_index: int, plan: RowPlan) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._packed = PackedLora(self, layer_index, plan)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the frozen product with the adapters' updates."""
        return self._packed(x, *args, **kwargs)
