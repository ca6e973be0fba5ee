"""The least that a step can take: products at the rate and bytes at the bandwidth that were measured.

Counted: for every frozen linear layer of the blocks the product forward and the one back to its input, and
its weights read packed and written decoded, once forward and once backward. Not counted, so that the floor is
one: attention, the head, norms, adapters, the optimizer.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from harness.base.build import Base
from harness.base.storage import TORCH_DTYPES
from harness.config.schema import QuantFormat
from harness.measure.memory import base_size

_REPEATS = 5
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}


class Clock(Protocol):
    """What times a step on a device."""

    device: torch.device

    def seconds(self, step: Any) -> float:
        """Return what one step takes."""
        ...


def machine_rates(clock: Clock, base: Base, tokens: Sequence[int]) -> dict[str, Any]:
    """Measure the bandwidth, and the rate of the products of this base for each number of tokens.

    Bytes per second read and written by a copy; floating-point operations per second.
    """
    device, dtype = clock.device, TORCH_DTYPES[base.quant.compute_dtype]
    source = torch.empty(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(clock.seconds(lambda: target.copy_(source)) for _ in range(_REPEATS))
    sizes = sorted({(spec.in_features, spec.out_features) for spec in base.linears})
    return {
        "bytes_per_second": 2 * source.nbytes / seconds,
        "operations_per_second": {
            str(count): {
                f"{inputs}x{outputs}": _product_rate(clock, dtype, count, inputs, outputs)
                for inputs, outputs in sizes
            }
            for count in tokens
        },
    }


def _product_rate(
    clock: Clock, dtype: torch.dtype, tokens: int, inputs: int, outputs: int
) -> float:
    left = torch.randn(tokens, inputs, dtype=dtype, device=clock.device)
    right = torch.randn(inputs, outputs, dtype=dtype, device=clock.device)
    out = torch.empty(tokens, outputs, dtype=dtype, device=clock.device)

    def products() -> None:
        for _ in range(_REPEATS):
            torch.mm(left, right, out=out)

    seconds = min(clock.seconds(products) for _ in range(_REPEATS)) / _REPEATS
    return 2 * tokens * inputs * outputs / seconds


def floor_ms(base: Base, rates: dict[str, Any], tokens: int) -> dict[str, float]:
    """Return the floor of a step of one run, in milliseconds, and its two parts."""
    products = 0.0
    for spec in base.linears:
        rate = rates["operations_per_second"][str(tokens)]
        operations = 4 * tokens * spec.in_features * spec.out_features  # forward, and to the input
        products += operations / rate[f"{spec.in_features}x{spec.out_features}"]
    moved = 2 * _bytes_moved(base) / rates["bytes_per_second"]
    return {
        "floor_ms": 1e3 * (products + moved),
        "products_ms": 1e3 * products,
        "weights_ms": 1e3 * moved,
    }


def _bytes_moved(base: Base) -> float:
    """Return the bytes of decoding all layers once: packed ones read, decoded ones written.

    The decoded weight is read again by the product, whose measured rate contains that.
    """
    if base.quant.format is QuantFormat.none:
        return 0.0
    weights = sum(spec.in_features * spec.out_features for spec in base.linears)
    width = TORCH_DTYPES[base.quant.compute_dtype].itemsize
    return weights * (base_size(base).bits_per_param / 8 + width)
