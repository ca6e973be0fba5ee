"""The frozen linear layer with packed storage.

It keeps only packed weights and constants; backward decodes again instead of keeping a dense copy.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from harness.base.storage import Storage


class FrozenLinear(nn.Linear):
    """A frozen linear layer whose dense weight exists only while it is used.

    It is an `nn.Linear` so that PEFT takes it as one. `weight` holds the packed bytes; the constants lie
    beside it under the storage's names, as parameters, so that processes can share them too.
    """

    def __init__(
        self,
        storage: "Storage",
        tensors: dict[str, torch.Tensor],
        in_features: int,
        out_features: int,
        bias: torch.Tensor | None,
    ) -> None:
        """`tensors`: what `storage` makes of a weight, `packed` and the constants."""
        nn.Module.__init__(self)
        self.storage = storage
        self.in_features = in_features
        self.out_features = out_features
        self.weight = _frozen(tensors["packed"])
        self.register_parameter("bias", None if bias is None else _frozen(bias))
        # In one order, however they come: processes that share them gather them in that of registration.
        self._constants = tuple(sorted(name for name in tensors if name != "packed"))
        for name in self._constants:
            if tensors[name].ndim == 0:  # one number, of which each process keeps a copy
                self.register_buffer(name, tensors[name])
            else:
                self.register_parameter(name, _frozen(tensors[name]))

    @property
    def constants(self) -> dict[str, torch.Tensor]:
        """What decoding reads besides the packed weight and the tables that layers share."""
        return {name: getattr(self, name) for name in self._constants}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the storage has made of the weight."""
        return {"packed": self.weight, **self.constants}

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the decoded weight [out_features, in_features] in `dtype`."""
        return self.storage.decode(self.tensors, (self.out_features, self.in_features), dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input @ weight.T + bias, for input [..., in_features] in the compute type."""
        return _FrozenMatmul.apply(input, self)  # pyright: ignore[reportReturnType]


def dense_linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> nn.Linear:
    """Return torch's own layer with a frozen weight."""
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = _frozen(weight_OI)
    linear.register_parameter("bias", None if bias_O is None else _frozen(bias_O))
    return linear


def dense_weight(layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [O, I] that a frozen layer multiplies with, packed or not."""
    if isinstance(layer, FrozenLinear):
        return layer.dense_weight(dtype)
    return layer.weight.detach().to(dtype)


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class _FrozenMatmul(torch.autograd.Function):
    """x @ W.T + b, where W is decoded in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense_weight(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        (grad,) = grad_outputs
        return grad @ ctx.layer.dense_weight(grad.dtype), None
