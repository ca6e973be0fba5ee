"""Quick passes over a small base on a CPU: faster products, and blocks computed by `LlamaBlock`.

A short pass over a tiny model costs more in unpacking weights, in autograd and in passing over memory than
in multiplying. So the frozen layers' products are those of `harness.engine.cpu.matmul`; where decoded
weights may be kept, decoder layers of a kind that is known here are computed by `LlamaBlock`. What that does
not cover (dropout, DoRA and QA-LoRA in adapters, caches of keys and values) goes its usual way. Numbers do
not depend on it: to the bit where a processor's products of some rows are those of more rows, else (MKL's
AVX2 kernels on Intel's processors) to the rounding of a sum. A base of some size, whose memory is what the
formats are about, is not for this backend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.base.build import Base
from harness.base.layers import dense_weight
from harness.config.resources import BackendName
from harness.config.schema import FloatType
from harness.engine.cpu.decoder_layer import known_blocks
from harness.engine.cpu.matmul import FrozenWeight
from harness.engine.reference.backend import ReferenceBackend

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase

DECODED_BYTES = 2**25
"""A base is small if its linear layers and its head have, decoded, at most so many bytes, 32 MiB."""


def why_not_cpu(base: Base) -> str | None:
    """Return why a base is not for the CPU backend, None where it is."""
    head = base.model.get_output_embeddings()
    if base.device.type != "cpu":
        return f"the base lies on {base.device}"
    if base.quant.compute_dtype is not FloatType.float32:
        return f"it computes in float32, and quant.compute_dtype={base.quant.compute_dtype.value}"
    if base.processes > 1:
        return f"the base is divided among {base.processes} processes"
    if not isinstance(head, nn.Linear):
        return "the model's head is no plain linear layer"
    elements = head.weight.numel() + sum(s.in_features * s.out_features for s in base.linears)
    size = elements * torch.float32.itemsize
    if size > DECODED_BYTES:
        return f"decoded, the base has {size} bytes, and it is for bases of at most {DECODED_BYTES}"
    return None


class CpuBackend(ReferenceBackend):
    """Computes passes with products and blocks of its own; decoded weights are kept where that is allowed."""

    name = BackendName.cpu

    def __init__(self, shared: "SharedBase") -> None:
        super().__init__(shared)
        self._weights = _install_products(shared)
        self._blocks = known_blocks(shared, self._weights)
        self._keeps = False

    def keep_decoded(self, wanted: bool) -> None:
        """Keep decoded weights (for forward and for backward) and use `LlamaBlock`, or decode each time."""
        if wanted == self._keeps:
            return
        self._keeps = wanted
        for weight in self._weights.values():
            weight.keep() if wanted else weight.let_go()
        for block in self._blocks:
            block.is_used = wanted

    def base_was_rewritten(self) -> None:
        if self._keeps:
            self.keep_decoded(False)
            self.keep_decoded(True)

    @contextmanager
    def decoded(self) -> Iterator[None]:
        before = self._keeps
        self.keep_decoded(True)
        try:
            yield
        finally:
            self.keep_decoded(before)


def _install_products(shared: "SharedBase") -> dict[str, FrozenWeight]:
    """Replace the products of the frozen layers and of the head; return them by the layer's name."""
    layers: dict[str, Any] = {
        s.name: shared.model.get_submodule(s.name)
        for s in shared.base.linears
        if s.experts == 1  # experts decode for themselves
    }
    layers["head"] = shared.model.get_output_embeddings()
    weights = {}
    for name, layer in layers.items():
        frozen = getattr(layer, "base_layer", layer)
        weights[name] = FrozenWeight(partial(dense_weight, frozen, torch.float32), frozen.bias)
        # An attribute of the instance comes before the method of its class.
        object.__setattr__(frozen, "forward", weights[name])
    return weights
