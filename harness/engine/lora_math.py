"""What an adapter adds to a layer's output, and its gradients, in every pass that is not a captured one.

A captured pass takes the same products for all seats and all layers of one input at once, with scalings
folded into B (`harness.engine.cuda.llama_pass.LinearGroup`); the tests hold it to this.

    y += s B A x        dB += g^T (s A x)        dA += (s B^T g) x^T        (Hu et al. 2021, section 4.1)

A scaling that is a power of two is exact wherever it stands, so it goes with the narrow tensor; another one
goes where PEFT has it, so that numbers round as PEFT's do. Shape suffixes: N rows of one adapter, R rank,
I inputs, O outputs; stacked adapters have one dimension K in front.
"""

from typing import NamedTuple

import torch


class Weights(NamedTuple):
    """A and B of one layer, or their gradients: [R, I] and [O, R], or [K, …] for stacked adapters."""

    a: torch.Tensor
    b: torch.Tensor


class Scaling(NamedTuple):
    """alpha / rank (or its kin), over what dropout keeps."""

    value: float | torch.Tensor
    """One number, or for stacked adapters that differ a tensor [K, 1, 1]."""
    is_exact: bool
    """Whether a product by it rounds nothing."""


def add_update(
    weights: Weights, scaling: Scaling, x_NI: torch.Tensor, y_NO: torch.Tensor
) -> torch.Tensor:
    """Add s B A x to y in place; return A x, times s where that is exact."""
    h_NR = torch.matmul(x_NI, weights.a.mT)
    if scaling.is_exact:
        add_product(y_NO, h_NR.mul_(scaling.value), weights.b.mT)
    else:
        y_NO.add_(torch.matmul(h_NR, weights.b.mT).mul_(scaling.value))
    return h_NR


def add_gradients(
    weights: Weights,
    targets: Weights,
    scaling: Scaling,
    grad_NO: torch.Tensor,
    x_NI: torch.Tensor,
    h_NR: torch.Tensor,
) -> torch.Tensor:
    """Add the gradients of A and B to `targets`; return that of A x. `h_NR` is what `add_update` returned."""
    if not scaling.is_exact:
        grad_NO = grad_NO * scaling.value
    add_product(targets.b, grad_NO.mT, h_NR)
    grad_h_NR = torch.matmul(grad_NO, weights.b)
    if scaling.is_exact:
        grad_h_NR.mul_(scaling.value)
    add_product(targets.a, grad_h_NR.mT, x_NI)
    return grad_h_NR


def add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add a matrix product to `target`, or a batched one; without a tensor in between if types agree.

    Where they do not, the product is taken in the wider type, and rounded once.
    """
    if target.dtype is not left.dtype:
        wide = torch.promote_types(target.dtype, left.dtype)
        target.add_(torch.matmul(left.to(wide), right.to(wide)))
    elif target.dim() == 2:
        target.addmm_(left, right)
    else:
        target.baddbmm_(left, right)
