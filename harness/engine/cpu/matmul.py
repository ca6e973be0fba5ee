"""Products with frozen dense weights on a CPU: by oneDNN where MKL leaves half of the processor unused.

MKL runs its AVX2 kernels on processors of other makers than its own, whatever they can do; oneDNN compiles
kernels for what is there. Measured on an EPYC of 2024, one thread, weights of 64 to 384 rows: 110 GFLOP/s by
MKL, 190 to 260 by oneDNN.

The numbers are MKL's, bit for bit: it sums long rows in pieces, which are found out by comparing, and where
no pieces give its bits it is used itself. So an adapter's curve does not depend on who multiplies.

Shape suffixes: I inputs, O outputs.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F


@functools.cache
def onednn_is_faster() -> bool:
    """Say whether oneDNN has kernels for this processor that MKL withholds: AVX-512, by another maker."""
    available = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and _maker() not in (None, "GenuineIntel")


def _maker() -> str | None:
    """Return who made the processor, in the processor's own words; None where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, None)


@functools.cache
def _piece(outputs: int, inputs: int) -> int | None:
    """Return after how many inputs MKL rounds its sums into memory; None if no guess gives its bits."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(outputs, inputs, generator=generator)
    for piece in dict.fromkeys((inputs, -(-inputs // 2), inputs // 2, 192)):
        pieces = _cut(weight_OI, piece)
        trials = (torch.randn(rows, inputs, generator=generator) for rows in (7, 48, 300))
        if all(torch.equal(_by_onednn(x, pieces, None), F.linear(x, weight_OI)) for x in trials):
            return piece
    return None


_FEWEST_ROWS = 4
"""Rows below which MKL sums in an order that no pieces have: those of a token that is generated."""
_Pieces = list[tuple[slice, torch.Tensor]]
"""Columns of the input, and those of the weight."""


def _cut(weight_OI: torch.Tensor, piece: int) -> _Pieces:
    starts = range(0, weight_OI.shape[1], piece)
    columns = [slice(start, start + piece) for start in starts]
    return [(each, weight_OI[:, each].contiguous()) for each in columns]


def _by_onednn(x: torch.Tensor, pieces: _Pieces, bias_O: torch.Tensor | None) -> torch.Tensor:
    """Return x W^T + bias for x [N, I]."""
    linear: Any = torch.ops.mkldnn._linear_pointwise
    y = bias_O
    for columns, weight in pieces:
        if y is bias_O:
            y = linear(x[:, columns], weight, bias_O, "none", [], "")
        else:
            y = linear.binary(x[:, columns], y, weight, None, "add")
    assert y is not None
    return y


class Operand:
    """A dense weight [O, I], ready to be multiplied with rows of I."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.weight_OI = weight_OI.contiguous()
        self._pieces: _Pieces | None = None
        on_cpu = weight_OI.device.type == "cpu" and weight_OI.dtype is torch.float32
        if on_cpu and onednn_is_faster():
            piece = _piece(*weight_OI.shape)
            self._pieces = None if piece is None else _cut(self.weight_OI, piece)

    def times(
        self,
        x: torch.Tensor,
        bias_O: torch.Tensor | None = None,
        *,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x W^T + bias + `added` for contiguous x [..., I], outside autograd; at most one of both."""
        pieces, rows = self._pieces, x.view(-1, x.shape[-1])
        if pieces is None or len(rows) < _FEWEST_ROWS:
            y = F.linear(x, self.weight_OI, bias_O)
            return y if added is None else y.add_(added)
        if added is not None and len(pieces) == 1:
            linear: Any = torch.ops.mkldnn._linear_pointwise.binary
            flat = linear(rows, added.view(-1, len(self.weight_OI)), pieces[0][1], bias_O, "add")
        else:
            flat = _by_onednn(rows, pieces, bias_O)
        # Not a view for autograd, which would let nobody write into it.
        y = torch.ops.aten._unsafe_view(flat, [*x.shape[:-1], len(self.weight_OI)])
        return y if added is None or len(pieces) == 1 else y.add_(added)


class FrozenWeight:
    """The weight of a frozen layer in the two orders of multiplying: kept dense, or decoded each time."""

    def __init__(self, decode: Callable[[], torch.Tensor], bias_O: torch.Tensor | None) -> None:
        """`decode` returns the dense weight [O, I]."""
        self._decode = decode
        self.bias_O = bias_O
        self._forward: Operand | None = None
        self._backward: Operand | None = None

    def keep(self) -> None:
        """Keep the dense weight from now on."""
        self._forward = Operand(self._decode())

    def let_go(self) -> None:
        """Decode for each product from now on."""
        self._forward = self._backward = None

    @property
    def forward(self) -> Operand:
        """What inputs are multiplied with."""
        return Operand(self._decode()) if self._forward is None else self._forward

    @property
    def backward(self) -> Operand:
        """What gradients of outputs are multiplied with."""
        if self._forward is None:
            return Operand(self._decode().mT)
        if self._backward is None:
            self._backward = Operand(self._forward.weight_OI.mT)
        return self._backward

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias for x [..., I], differentiable in x."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # pyright: ignore[reportReturnType]
        return self.forward.times(x.contiguous(), self.bias_O)


class _Product(torch.autograd.Function):
    """x W^T + bias with a weight that gets no gradient; nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: FrozenWeight) -> torch.Tensor:
        ctx.weight = weight
        return weight.forward.times(x.contiguous(), weight.bias_O)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grad_outputs
        return ctx.weight.backward.times(grad.contiguous()), None
