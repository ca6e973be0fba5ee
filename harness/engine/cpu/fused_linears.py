"""Frozen layers that see one input (queries, keys and values of a block, say) with their adapters, outside
autograd, but with its numbers: every product and every sum is taken as PEFT and autograd take it.

Shape suffixes: N rows (positions), R rank, I inputs, O outputs; stacked adapters have one dimension more.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from harness.engine.cpu.matmul import FrozenWeight
from harness.engine.lora_math import add_gradients, add_product, add_update
from harness.engine.rows import AdapterGroup, RowPlan


class RowSpan(NamedTuple):
    """Neighbouring positions that belong to the adapters of one group, equally many to each."""

    group: AdapterGroup
    start: int
    stop: int

    def rows(self, of: torch.Tensor) -> torch.Tensor:
        """Return these positions of `of`, as [K, N, …] where K adapters are stacked."""
        chosen = of[self.start : self.stop]
        return chosen if self.group.count == 1 else chosen.unflatten(0, (self.group.count, -1))


def row_spans(plan: RowPlan, positions: int) -> list[RowSpan]:
    """Return whose the positions of the batch in flight are."""
    if plan.num_rows == 0:
        return [RowSpan(group, 0, positions) for group in plan.present]
    width = positions // plan.num_rows
    return [RowSpan(g, g.start * width, g.stop * width) for g in plan.present]


class FusedLinears:
    """Layers with the same input."""

    def __init__(self, weights: Sequence[FrozenWeight], layers: Sequence[int]) -> None:
        """`layers`: their indices in the model, ascending."""
        self.layers = tuple(layers)
        self.weights = tuple(weights)

    def forward(
        self, x_NI: torch.Tensor, parts: Sequence[RowSpan]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the output of each layer, and A x of all adapters, for backward."""
        ys_NO, kept = [], []
        for layer, weight in zip(self.layers, self.weights, strict=True):
            y_NO = weight.forward.times(x_NI, weight.bias_O)
            for part in parts:
                if layer in part.group.layout:
                    adapter = part.group.weights(layer)
                    x_rows, y_rows = part.rows(x_NI), part.rows(y_NO)
                    kept.append(add_update(adapter, part.group.scaling, x_rows, y_rows))
            ys_NO.append(y_NO)
        return ys_NO, kept

    def backward(
        self,
        grads_NO: Sequence[torch.Tensor],
        x_NI: torch.Tensor,
        parts: Sequence[RowSpan],
        kept: Sequence[torch.Tensor],
        *,
        grad_x_wanted: bool = True,
    ) -> torch.Tensor | None:
        """Add up the gradients of A and B where the groups keep them; return that of x, if it is wanted.

        `grads_NO`: of each layer's output. Terms are added in autograd's order: last layer first, and in
        each the adapters before the base.
        """
        remaining = list(kept)
        grad_x_NI: torch.Tensor | None = None
        for layer, weight, grad_NO in reversed(
            list(zip(self.layers, self.weights, grads_NO, strict=True))
        ):
            adapted = [part for part in parts if layer in part.group.layout]
            if adapted and grad_x_wanted and grad_x_NI is None:
                grad_x_NI = torch.zeros_like(x_NI)
            for part in reversed(adapted):
                group, x_rows = part.group, part.rows(x_NI)
                adapter, targets = group.weights(layer), group.targets(layer)
                grad_h = add_gradients(
                    adapter, targets, group.scaling, part.rows(grad_NO), x_rows, remaining.pop()
                )
                if grad_x_NI is not None:
                    add_product(part.rows(grad_x_NI), grad_h, adapter.a)
            if grad_x_wanted:
                grad_x_NI = weight.backward.times(grad_NO, added=grad_x_NI)
        return grad_x_NI
