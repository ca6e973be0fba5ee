"""Quick passes over a small base on a CPU: faster products, and blocks computed by `Block`.

A short pass over a tiny model costs more in unpacking weights, in autograd and in passing over memory than in
multiplying. So the frozen layers' products are those of `harness.engine.cpu.matmul`; of a cohort the decoded
weights are kept, and decoder layers of a kind that is known here are replaced, as long as the context lasts.
What that does not cover (dropout in adapters, caches of keys and values) goes its usual way, as does every
other model. Numbers do not depend on it, to the bit. On a GPU, whose kernels are others, and for a base of
some size, whose memory is what the formats are about, nothing is replaced.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from harness.base.layers import FrozenLinear
from harness.config.schema import FloatType
from harness.engine.cpu.decoder_layer import enter_blocks, replaced
from harness.engine.cpu.matmul import FrozenWeight
from harness.engine.shared_base import SharedBase

DECODED_BYTES = 2**25
"""A base is small if its linear layers and its head have, decoded, at most so many bytes, 32 MiB."""


@contextmanager
def quick_passes(shared: SharedBase, *, keeping: bool) -> Iterator[None]:
    """Compute passes the quick way within this context, if the base is small.

    `keeping`: keep decoded weights (twice, for forward and backward) and use `Block`; else weights are
    decoded for each product, so that a run keeps in memory what it would keep on a large base.
    """
    with ExitStack() as stack:
        if _is_small(shared):
            weights = _weights_of(stack, shared)
            if keeping and not _are_kept(weights):
                for weight in weights.values():
                    weight.keep()
                    stack.callback(weight.let_go)
                enter_blocks(stack, shared, weights)
        yield


def _is_small(shared: SharedBase) -> bool:
    base, head = shared.base, shared.model.get_output_embeddings()
    if base.device.type != "cpu" or base.quant.compute_dtype is not FloatType.float32:
        return False
    if not isinstance(head, nn.Linear) or base.processes > 1:
        return False
    elements = head.weight.numel() + sum(s.in_features * s.out_features for s in base.linears)
    return elements * torch.float32.itemsize <= DECODED_BYTES


def _weights_of(stack: ExitStack, shared: SharedBase) -> dict[str, FrozenWeight]:
    """Replace the products of the frozen layers and of the head, unless an outer context has."""
    layers: dict[str, Any] = {
        s.name: shared.model.get_submodule(s.name) for s in shared.base.linears
    }
    layers["head"] = shared.model.get_output_embeddings()
    weights = {}
    for name, layer in layers.items():
        frozen = getattr(layer, "base_layer", layer)
        weight = vars(frozen).get("forward")
        if weight is None:
            weight = FrozenWeight(partial(_dense_weight, frozen), frozen.bias)
            stack.enter_context(replaced(frozen, weight))
        weights[name] = weight
    return weights


def _are_kept(weights: dict[str, FrozenWeight]) -> bool:
    return all(weight.is_kept for weight in weights.values())


def _dense_weight(layer: nn.Linear) -> torch.Tensor:
    """Return the weight as the layer multiplies with it."""
    if isinstance(layer, FrozenLinear):
        return layer.dense_weight(torch.float32)
    return layer.weight.detach()
