"""The frozen layers of a small base, decoded once for as long as many short passes go over them.

A short pass over a tiny model costs more in unpacking its weights than in using them. Products are those of
the packed layers, bit for bit; on a GPU, whose kernels are others, and for a base of some size, whose memory
is what the formats are about, nothing is kept.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from harness.base.build import Base
from harness.base.layers import FrozenLinear
from harness.config import FloatType

DECODED_BYTES = 2**25
"""A base is small if its decoded layers have at most so many bytes, 32 MiB."""


@contextmanager
def decoded(base: Base) -> Iterator[None]:
    """Keep the decoded weights of the packed layers within this context, if `base` is small."""
    elements = sum(spec.in_features * spec.out_features for spec in base.linears)
    small = elements * torch.float32.itemsize <= DECODED_BYTES
    plain = base.device.type == "cpu" and base.quant.compute_dtype is FloatType.float32
    with ExitStack() as stack:
        if small and plain:
            for spec in base.linears:
                module: Any = base.model.get_submodule(spec.name)
                stack.enter_context(_decoded(getattr(module, "base_layer", module)))
        yield


@contextmanager
def _decoded(layer: nn.Linear) -> Iterator[None]:
    weight = None if "forward" in vars(layer) else _dense_weight(layer)  # once is enough
    if weight is None:
        yield
        return
    # An attribute of the instance comes before the method of its class.
    product: Any = partial(_product, weight=weight, bias=layer.bias)
    object.__setattr__(layer, "forward", product)
    try:
        yield
    finally:
        object.__delattr__(layer, "forward")


def _product(
    input: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return F.linear(input, weight, bias)


def _dense_weight(layer: nn.Linear) -> torch.Tensor | None:
    """Return the decoded weight in the compute type; None for a layer that is not packed."""
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, state)
    return layer.dense_weight(torch.float32) if isinstance(layer, FrozenLinear) else None
