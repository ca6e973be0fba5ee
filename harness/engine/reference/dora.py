"""DoRA: what LoRA makes of a weight, with every row scaled to a trained magnitude (Liu et al. 2024, arXiv
2402.09353).

    y = b + m/n (W x + s B A x),    n = ||W + s B A|| of each row, which gets no gradient (section 4.3)

    n² = ||W||² + 2 s <W A^T, B> + s² <B A A^T, B>

W + s B A is never made: W A^T is the frozen layer's product with A for rows, one product for all adapters of
a pass, and ||W||² is the base's own. The sum is taken in float64, for its terms may cancel. PEFT's dropout
acts on the input of W too (`DoraLinearVariant`), which then has a product of its own.

Shape suffixes: K stacked adapters, N rows, R rank, I inputs, O outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from harness.base.layers import FrozenLinear, dense_weight
from harness.engine.lora_math import Weights
from harness.engine.rows import AdapterGroup


class FrozenRows:
    """The rows of one frozen weight, of which adapters ask the norms."""

    def __init__(self, layer: Any, index: int) -> None:
        """`layer`: PEFT's, which holds the frozen one; `index`: of it in the model."""
        self._layer = layer
        self._index = index
        self._squares_O: torch.Tensor | None = None

    def forget(self) -> None:
        """Measure the weight anew: it has been written over."""
        self._squares_O = None

    def measure(self, groups: Sequence[AdapterGroup]) -> None:
        """Let groups with DoRA know the norms of their adapted rows, for the pass in flight."""
        asking = [
            group
            for group in groups
            if group.layout.shape(self._index).has_magnitudes and self._index not in group.norms
        ]
        if not asking:
            return
        with torch.no_grad():
            of = [group.weights(self._index) for group in asking]
            flat = [a.reshape(-1, a.shape[-1]) for a, _ in of]
            through_RO = self._product(torch.cat(flat)).split([len(a) for a in flat])
            for group, weights, w_a in zip(asking, of, through_RO, strict=True):
                scaling = group.full_scaling(self._index)
                norm = self.norm(weights, w_a.view(*weights.a.shape[:-1], -1), scaling)
                group.norms[self._index] = norm.view(group.count, 1, -1)

    def norm(
        self, weights: Weights, w_a: torch.Tensor, scaling: float | torch.Tensor
    ) -> torch.Tensor:
        """Return ||W + s B A|| of each row in float32, [O] or [K, O]; `w_a`: A W^T, [R, O] or [K, R, O]."""
        a, b = (each.float() for each in weights)
        cross = (w_a.float().mT * b).sum(-1)
        own = (torch.matmul(b, torch.matmul(a, a.mT)) * b).sum(-1)
        s = scaling.view(-1, 1) if isinstance(scaling, torch.Tensor) else scaling
        squares = self._squares() + 2 * s * cross.double() + s * s * own.double()
        return squares.clamp_(min=0).sqrt_().float()

    def first_magnitudes(self, weights: Weights, scaling: float) -> torch.Tensor:
        """Return what the magnitudes [O] of a new adapter are: the norms, as it begins."""
        with torch.no_grad():
            return self.norm(weights, self._product(weights.a), scaling)

    def _squares(self) -> torch.Tensor:
        squares_O = self._squares_O
        if squares_O is None:
            frozen = self._layer.base_layer
            weight_OI = dense_weight(frozen, _compute_dtype(frozen))
            norm_O = torch.linalg.vector_norm(weight_OI, dim=1, dtype=torch.float64)
            squares_O = self._squares_O = norm_O.square_()
        return squares_O

    def _product(self, a_RI: torch.Tensor) -> torch.Tensor:
        """Return A W^T."""
        frozen = self._layer.base_layer
        a_RI = a_RI.to(_compute_dtype(frozen))
        return (
            frozen(a_RI)
            if frozen.bias is None
            else F.linear(a_RI, dense_weight(frozen, a_RI.dtype))
        )


def _compute_dtype(layer: nn.Linear) -> torch.dtype:
    """Return the type that a frozen layer multiplies in."""
    return layer.storage.dtype if isinstance(layer, FrozenLinear) else layer.weight.dtype


class DoraRows:
    """One group's rows of a layer with DoRA, forwards and backwards."""

    def __init__(self, layer: nn.Linear, group: AdapterGroup, index: int) -> None:
        self._frozen = layer
        self._group = group
        self._index = index
        norm_K1O = group.norms[index]  # FrozenRows.measure comes first
        self._norm = norm_K1O[0] if group.count == 1 else norm_K1O
        magnitude_K1O = group.magnitudes(index)
        self._scale = (magnitude_K1O[0] if group.count == 1 else magnitude_K1O) / self._norm

    def frozen_product(
        self, x_NI: torch.Tensor, y_NO: torch.Tensor, *, drops: bool
    ) -> torch.Tensor:
        """Return W x, in the type of x; `x_NI`: what dropout has left of the input, which y has not seen."""
        if drops:
            x_NI = (x_NI / (1 - self._group.dropout)).to(y_NO.dtype)
            return F.linear(x_NI, dense_weight(self._frozen, y_NO.dtype))
        bias_O = self._frozen.bias
        return y_NO.clone() if bias_O is None else y_NO - bias_O

    def write(
        self, y_NO: torch.Tensor, sum_NO: torch.Tensor, product_NO: torch.Tensor | None
    ) -> None:
        """Replace the output by that of W + s B A, rows scaled; `product_NO`: W x where dropout acted on
        x."""
        scaled = sum_NO * self._scale
        if product_NO is not None:
            y_NO.add_(scaled.sub_(product_NO))
        elif self._frozen.bias is None:
            y_NO.copy_(scaled)
        else:
            y_NO.copy_(scaled.add_(self._frozen.bias))

    def add_magnitude_gradients(self, grad_NO: torch.Tensor, sum_NO: torch.Tensor) -> None:
        """Add up the gradients of the magnitudes."""
        along = (grad_NO * sum_NO).sum(-2, keepdim=True).div_(self._norm)
        target_KO = self._group.magnitude_targets(self._index)
        target_KO.add_(along.view(target_KO.shape))

    def scaled(self, grad_NO: torch.Tensor) -> torch.Tensor:
        """Return the gradient of W x + s B A x."""
        return grad_NO * self._scale

    def scale_(self, grad_y_NO: torch.Tensor) -> None:
        """Make the output's gradient that of the frozen product, in place."""
        grad_y_NO.mul_(self._scale)

    def through_dropped(self, grad_NO: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the input that dropout has left, through W alone."""
        dtype = _compute_dtype(self._frozen)
        own_NO = (grad_NO * (self._scale - 1)).to(dtype)
        return (own_NO @ dense_weight(self._frozen, dtype)).div_(1 - self._group.dropout)
