"""A layer as PEFT makes it, planned: its frozen layer lies on the meta device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from harness.engine.reference.grouped_lora import PackedLora
from harness.engine.rows import AdapterGroup, RowPlan


class AdaptedLayer(nn.Module):
    """What PEFT's layer is to `PackedLora`; `base_layer` is one of the storage that is planned."""

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Linear, layer_index: int, plan: RowPlan) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._packed = PackedLora(self, layer_index, plan)

    def expect(self, groups: Sequence[AdapterGroup]) -> None:
        """Measure the frozen rows beforehand, as every pass but the first finds them."""
        self._packed.frozen_rows.measure(groups)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the frozen product with the adapters' updates."""
        return self._packed(x, *args, **kwargs)
