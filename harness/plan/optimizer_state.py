"""Bytes of one adapter's optimizer state in closed form, as `harness.training.optimizers` makes it.

Must not import torch. Sources: torch.optim.AdamW(fused=True) and bitsandbytes 0.50's Optimizer2State.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from harness.base.targets import AdapterShape
from harness.config.schema import OptimizerName

_FLOAT_BYTES = 4
_EIGHT_BIT_FROM = 4096
"""bitsandbytes keeps the state of smaller tensors in float32 (`min_8bit_size`)."""
_EIGHT_BIT_BLOCK = 256
_TABLES_BYTES = 2 * 256 * _FLOAT_BYTES
"""The dynamic tables of the first and the second moment, one pair per optimizer."""
_PAGED_FROM = 100_000
"""Elements below which a GPU's tensors are not paged (`get_state_buffer`)."""


@dataclass(frozen=True, slots=True)
class OptimizerBytes:
    """State of one adapter's optimizer."""

    total: int
    paged: int
    """The part in managed memory, where there is a GPU."""


def adapter_sizes(shapes: Sequence[AdapterShape]) -> list[int]:
    """Return the elements of A and B, and of DoRA's magnitudes, of each adapted layer."""
    sizes = [s.rank * s.experts * size for s in shapes for size in (s.inputs, s.outputs)]
    return sizes + [s.outputs for s in shapes if s.has_magnitudes]


def optimizer_bytes(name: OptimizerName, sizes: Sequence[int]) -> OptimizerBytes:
    """Return the state that the optimizer has for tensors of these sizes after its first step."""
    match name:
        case OptimizerName.adamw:
            # Two flat tensors (every A and every B, or matrices and vectors), each with two moments and a
            # step counter.
            return OptimizerBytes(2 * _FLOAT_BYTES * sum(sizes) + 2 * _FLOAT_BYTES, 0)
        case OptimizerName.adamw_8bit:
            return OptimizerBytes(_eight_bit(sizes), 0)
        case OptimizerName.paged_adamw_8bit:
            paged = sum(_paged(size, 1) for size in sizes)  # whose states are all of 8 bits
            return OptimizerBytes(_eight_bit(sizes), paged)
        case OptimizerName.paged_adamw_32bit:
            paged = sum(_paged(size, _FLOAT_BYTES) for size in sizes)
            return OptimizerBytes(2 * _FLOAT_BYTES * sum(sizes), paged)
        case _ as unreachable:
            assert_never(unreachable)


def _eight_bit(sizes: Sequence[int]) -> int:
    """Two moments of one byte and a float32 scale per block each; small tensors in float32."""
    large = [size for size in sizes if size >= _EIGHT_BIT_FROM]
    blocks = sum(-(-size // _EIGHT_BIT_BLOCK) for size in large)
    tables = _TABLES_BYTES if large else 0
    small = 2 * _FLOAT_BYTES * (sum(sizes) - sum(large))
    return 2 * sum(large) + 2 * _FLOAT_BYTES * blocks + tables + small


def _paged(size: int, element_bytes: int) -> int:
    return 2 * element_bytes * size if size >= _PAGED_FROM else 0
