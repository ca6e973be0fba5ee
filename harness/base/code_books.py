"""4-bit code books: 16 values, how a block is normalized onto them, encoding and packed decoding.

A further code book is one entry of `CODE_BOOKS`, one member of `QuantFormat` and one YAML file.

Storage of n weights: n/2 bytes, the first half of the flat weights in the high nibbles and the second
half in the low ones, so that each half decodes by one call of bitsandbytes' blockwise kernel (which takes
any 256-entry table, on CPU and CUDA) into a contiguous piece.
"""

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import torch

from harness.config.schema import QuantFormat


class Normalization(Enum):
    """How the weights of a block are mapped onto the code book's range."""

    absmax = "absmax"
    """w = scale * value with scale = max |w|: the code book spans [-1, 1]."""
    minmax = "minmax"
    """w = offset + scale * value with offset = min w, scale = max w - min w: it spans [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBook:
    """At most 16 ascending values; a weight is stored as the index of the nearest one."""

    values: tuple[float, ...]
    normalization: Normalization


CODE_BOOKS: dict[QuantFormat, CodeBook] = {
    # Symmetric round-to-nearest with absmax/7: 15 levels, the "Int4" of the QLoRA paper's Table 2.
    QuantFormat.int4: CodeBook(
        values=tuple(k / 7 for k in range(-7, 8)), normalization=Normalization.absmax
    ),
    # 16 levels between the block's minimum and maximum, as GPTQ- and HQQ-style quantizers use.
    QuantFormat.int4_asym: CodeBook(
        values=tuple(k / 15 for k in range(16)), normalization=Normalization.minmax
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A weight in a code book: `packed` uint8 [ceil(n/2)], float32 `scale` and `offset` [blocks]."""

    packed: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None


def encode(weight: torch.Tensor, book: CodeBook, block_size: int) -> Encoded:
    """Encode `weight` (any shape, read as flat float32 in blocks of `block_size`)."""
    flat = weight.detach().reshape(-1).float()
    blocks = -(-flat.numel() // block_size)
    # The last block may be short: filling it with its own last value leaves its extremes alone.
    filled = torch.cat([flat, flat[-1:].expand(blocks * block_size - flat.numel())])
    by_block = filled.view(blocks, block_size)
    match book.normalization:
        case Normalization.absmax:
            offset = None
            scale = by_block.abs().amax(dim=1)
            shifted = by_block
        case Normalization.minmax:
            offset = by_block.amin(dim=1)
            scale = by_block.amax(dim=1) - offset
            shifted = by_block - offset.unsqueeze(1)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = nearest(shifted / safe.unsqueeze(1), book).reshape(-1)[: flat.numel()]
    return Encoded(packed=pack_halves(codes), scale=scale, offset=offset)


def nearest(normalized: torch.Tensor, book: CodeBook) -> torch.Tensor:
    """Return the uint8 indices of the values nearest to `normalized`, elementwise."""
    values = torch.tensor(book.values, dtype=torch.float64, device=normalized.device)
    midpoints = ((values[1:] + values[:-1]) / 2).to(normalized.dtype)
    return torch.bucketize(normalized, midpoints).to(torch.uint8)


def pack_halves(codes: torch.Tensor) -> torch.Tensor:
    """Pack flat 4-bit `codes` [n] into uint8 [ceil(n/2)]: first half high nibbles, second half low."""
    half = -(-codes.numel() // 2)
    low = torch.zeros(half, dtype=torch.uint8, device=codes.device)
    low[: codes.numel() - half] = codes[half:]
    return (codes[:half] << 4) | low


@lru_cache(maxsize=64)
def nibble_tables(book: CodeBook, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 [256] tables: the value of a byte's high nibble, and of its low nibble."""
    values = torch.zeros(16, dtype=torch.float32)
    values[: len(book.values)] = torch.tensor(book.values, dtype=torch.float64).float()
    high, low = nibble_tables_of(values)
    return high.to(device), low.to(device)


def nibble_tables_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 [256] tables of a byte's high and low nibble for a code book [16]."""
    byte = torch.arange(256)
    return values[byte >> 4], values[byte & 15]


def decode(
    packed: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    *,
    book: CodeBook,
    block_size: int,
    count: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the flat [count] weights in `dtype`; `scale` and `offset` are float32 [blocks]."""
    half = packed.numel()
    piece = math.gcd(half, block_size)  # the halves need not begin at a block
    scale = _per_piece(scale, block_size // piece, half // piece)
    high, low = nibble_tables(book, packed.device)
    blockwise = torch.ops.bitsandbytes.dequantize_blockwise
    cut = half // piece
    # An offset is added in float32: two bfloat16 roundings would cost more than the grid is worth.
    dtype_of_sum = dtype if offset is None else torch.float32
    flat = torch.cat(
        [
            blockwise(packed, scale[:cut], high, piece, dtype_of_sum),
            blockwise(packed, scale[cut:], low, piece, dtype_of_sum),
        ]
    )
    if offset is not None:
        offset = _per_piece(offset, block_size // piece, half // piece)
        flat.view(-1, piece).add_(offset.unsqueeze(1))
    return flat[:count].to(dtype)


def _per_piece(constant: torch.Tensor, pieces_per_block: int, pieces_per_half: int) -> torch.Tensor:
    """Repeat per-block constants so that there is one for each of the pieces of both halves."""
    if pieces_per_block > 1:
        constant = constant.repeat_interleave(pieces_per_block)
    wanted = 2 * pieces_per_half
    if constant.numel() < wanted:  # the padding behind an odd count belongs to no block
        constant = torch.cat([constant, constant[-1:].expand(wanted - constant.numel())])
    return constant[:wanted].contiguous()
