"""What an adapter adds to a layer's output, and its gradients: written once, for every pass.

    y += s B A x        dB += g^T (s A x)        dA += (s B^T g) x^T        (Hu et al. 2021, section 4.1)

Who multiplies differs: torch, for the rows of one adapter or of stacked ones (`Products`), or grouped kernels
for the rows of all seats (`harness.engine.cuda.ops.SeatProducts`). A captured pass multiplies a layer's input
once for all layers that see it, and so adds A's gradient itself.

A scaling that is a power of two is exact wherever it stands, so it goes with the narrow tensor; another one
goes where PEFT has it, so that numbers round as PEFT's do; one that a seat's B holds already is `FOLDED`.
Shape suffixes: N rows of one adapter, R rank, I inputs, O outputs, L and M any; stacked adapters have one
dimension K in front.
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


FOLDED = Scaling(1.0, is_exact=True)
"""Of a B that is scaled already."""


class Products:
    """Products of rows that are one adapter's, or as many of each of stacked adapters."""

    def product(
        self, x_NI: torch.Tensor, w_OI: torch.Tensor, out_NO: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """Return x w^T; in `out_NO`, if it is given."""
        return torch.matmul(x_NI, w_OI.mT, out=out_NO)

    def add_product_(self, y_NO: torch.Tensor, x_NI: torch.Tensor, w_OI: torch.Tensor, /) -> None:
        """Add x w^T to y."""
        _add(y_NO, x_NI, w_OI.mT)

    def add_outer_(
        self, target_LM: torch.Tensor, left_NL: torch.Tensor, right_NM: torch.Tensor, /
    ) -> None:
        """Add left^T right to the target."""
        _add(target_LM, left_NL.mT, right_NM)


OWN = Products()


def add_update(
    products: Products,
    b_OR: torch.Tensor,
    scaling: Scaling,
    h_NR: torch.Tensor,
    y_NO: torch.Tensor,
) -> None:
    """Add s B h to y, for h = A x, which is times s afterwards where that is exact."""
    if scaling.is_exact:
        products.add_product_(y_NO, _scaled_(h_NR, scaling), b_OR)
    else:
        y_NO.add_(products.product(h_NR, b_OR).mul_(scaling.value))


def add_gradient_b(
    products: Products,
    b_OR: torch.Tensor,
    target_OR: torch.Tensor,
    scaling: Scaling,
    grad_NO: torch.Tensor,
    h_NR: torch.Tensor,
    out_NR: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add B's gradient to its target; return that of A x. `h_NR`: as `add_update` left it."""
    if not scaling.is_exact:
        grad_NO = grad_NO * scaling.value
    products.add_outer_(target_OR, grad_NO, h_NR)
    grad_h_NR = products.product(grad_NO, b_OR.mT, out_NR)
    return _scaled_(grad_h_NR, scaling) if scaling.is_exact else grad_h_NR


def add_gradients(
    weights: Weights,
    targets: Weights,
    scaling: Scaling,
    grad_NO: torch.Tensor,
    x_NI: torch.Tensor,
    h_NR: torch.Tensor,
) -> torch.Tensor:
    """Add the gradients of one layer's A and B to `targets`; return that of A x."""
    grad_h_NR = add_gradient_b(OWN, weights.b, targets.b, scaling, grad_NO, h_NR)
    OWN.add_outer_(targets.a, grad_h_NR, x_NI)
    return grad_h_NR


def _scaled_(tensor: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    return tensor if scaling is FOLDED else tensor.mul_(scaling.value)


def _add(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
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
