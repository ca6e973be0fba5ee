"""The least that a step can take on its device: products at measured rates, bytes at the measured bandwidth.

Counted: of every frozen linear layer of the blocks the product forward and the one back to its input, of the
head the same at positions with loss, and of layers that are stored packed the bytes read and the decoded ones
written, forward and backward. Not counted, so that it is a floor: attention's scores, norms, adapters, the
optimizer, whatever is computed twice to save memory. In full fine-tuning there is a third product, for the
weight's own gradient.
"""

from dataclasses import dataclass
from typing import Any

from harness.base.build import Base
from harness.config.schema import QuantFormat
from harness.measure.rates import DeviceRates, Product


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What one process computes in an optimizer step of one run."""

    micro_batches: int
    input_tokens: float
    """Positions of a micro-batch."""
    loss_tokens: float
    """Positions of a micro-batch that carry loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The floor of a step and its two parts."""

    products_ms: float
    decoding_ms: float

    @property
    def total_ms(self) -> float:
        """Both parts: one waits for the other."""
        return self.products_ms + self.decoding_ms


def step_floor(
    base: Base, rates: DeviceRates, step: StepSize, *, decodes: bool, trains_all: bool = False
) -> Floor:
    """Return the floor of a step; `decodes`: whether packed weights are decoded in every pass."""
    times = 3 if trains_all else 2
    seconds = sum(
        times * product.operations / rates.operations_per_second(product)
        for product in _products(base, step)
    )
    moved = 2 * _decoded_bytes(base) / rates.bytes_per_second() if decodes else 0.0
    return Floor(
        products_ms=1e3 * step.micro_batches * seconds,
        decoding_ms=1e3 * step.micro_batches * moved,
    )


def _products(base: Base, step: StepSize) -> list[Product]:
    """Return the products with frozen weights in the forward pass of one micro-batch."""
    found = [
        Product(
            rows=step.input_tokens,
            inputs=spec.in_features,
            outputs=spec.out_features,
            dtype=base.storage.dtype,
        )
        for spec in base.linears
    ]
    head: Any = base.model.get_output_embeddings()
    if head is not None and step.loss_tokens > 0:
        outputs, inputs = head.weight.shape
        found.append(
            Product(rows=step.loss_tokens, inputs=inputs, outputs=outputs, dtype=base.storage.dtype)
        )
    return found


def _decoded_bytes(base: Base) -> float:
    """Return the bytes of decoding all layers once: packed ones read, decoded ones written.

    The decoded weight is read again by the product, whose measured rate contains that.
    """
    if base.quant.format is QuantFormat.none:
        return 0.0
    weights = sum(spec.in_features * spec.out_features for spec in base.linears)
    return weights * (base.storage.bits / 8 + base.storage.dtype.itemsize)
