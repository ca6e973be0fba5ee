"""Code books of 2 to 4 bits: their values, how a block is normalized onto them, encoding and packed decoding.

A further code book is one entry of `CODE_BOOKS`, one member of `QuantFormat` and one YAML file.

Storage of a weight [O, I] in 4 bits: bytes [ceil(O/2), I]. Byte [o, i] holds weight [o, i] in its high
nibble and weight [o + ceil(O/2), i] in its low one, so that each half decodes into contiguous rows by one
table of 256 values, and two rows of a product need one load. In 2 bits a byte holds weights of four rows in
the same way; in 3 bits the lower two lie so, and below them, in bytes [ceil(O/8), I], the highest of eight
rows. Blocks run over the flat weight, row after row.

Shape suffixes: O outputs, I inputs.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import torch

from harness.base.abnormal_float import abnormal_float
from harness.config.schema import QuantFormat


class Normalization(Enum):
    """How the weights of a block are mapped onto the code book's range."""

    absmax = "absmax"
    """w = scale * value with scale = max |w|: the code book spans [-1, 1]."""
    minmax = "minmax"
    """w = offset + scale * value with offset = min w, scale = max w - min w: it spans [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBook:
    """At most 16 values, ascending where we encode; a weight is stored as the index of the nearest one."""

    values: tuple[float, ...]
    normalization: Normalization
    bitsandbytes: str | None = None
    """What bitsandbytes calls it, where its quantizer chooses the indices."""

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return (len(self.values) - 1).bit_length()


_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution (QLoRA, Dettmers et al. 2023, appendix E)."""
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""bitsandbytes' FP4 in the order of its indices; the other eight are their negatives."""
_E2M1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Two exponent bits and one of mantissa, above 0: 0.5 is subnormal, no infinity (OCP MX 1.0, 2023)."""
_E3M0 = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Three exponent bits, above 0: powers of two."""


def _both_signs(positive: tuple[float, ...]) -> tuple[float, ...]:
    """Return a float format's values over the largest, ascending; its second zero is left out."""
    scaled = [value / max(positive) for value in positive]
    return (*(-value for value in reversed(scaled)), 0.0, *scaled)


CODE_BOOKS: dict[QuantFormat, CodeBook] = {
    QuantFormat.nf4: CodeBook(values=_NF4, normalization=Normalization.absmax, bitsandbytes="nf4"),
    QuantFormat.fp4: CodeBook(
        values=tuple(sign * value / 12 for sign in (1, -1) for value in _FP4_TWELFTHS),
        normalization=Normalization.absmax,
        bitsandbytes="fp4",
    ),
    # The two 4-bit floats of the QLoRA paper's Table 2, which does not print their values.
    QuantFormat.fp4_e2m1: CodeBook(values=_both_signs(_E2M1), normalization=Normalization.absmax),
    QuantFormat.fp4_e3m0: CodeBook(values=_both_signs(_E3M0), normalization=Normalization.absmax),
    # Symmetric round-to-nearest with absmax/7: 15 levels, the "Int4" of the QLoRA paper's Table 2.
    QuantFormat.int4: CodeBook(
        values=tuple(k / 7 for k in range(-7, 8)), normalization=Normalization.absmax
    ),
    # Levels between the block's minimum and maximum, as GPTQ- and HQQ-style quantizers use: affine integers.
    QuantFormat.int4_asym: CodeBook(
        values=tuple(k / 15 for k in range(16)), normalization=Normalization.minmax
    ),
    QuantFormat.int3_asym: CodeBook(
        values=tuple(k / 7 for k in range(8)), normalization=Normalization.minmax
    ),
    QuantFormat.int2_asym: CodeBook(
        values=tuple(k / 3 for k in range(4)), normalization=Normalization.minmax
    ),
}
"""Those that are the same for every block size."""


def code_book(quant_format: QuantFormat, block_size: int) -> CodeBook:
    """Return the code book of a format; AF4's depends on the size of the blocks."""
    if quant_format is QuantFormat.af4:
        return CodeBook(values=abnormal_float(block_size), normalization=Normalization.absmax)
    return CODE_BOOKS[quant_format]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A weight in a code book: `packed` uint8 [rows, I], float32 `scale` and `offset` [blocks]."""

    packed: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None


def encode(weight_OI: torch.Tensor, book: CodeBook, block_size: int) -> Encoded:
    """Encode a weight, read as flat float32 in blocks of `block_size`."""
    if book.bitsandbytes is not None:
        return _encoded_by_bitsandbytes(weight_OI, book.bitsandbytes, block_size)
    flat = weight_OI.detach().reshape(-1).float()
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
    return Encoded(packed=pack(codes.view(weight_OI.shape), book.bits), scale=scale, offset=offset)


def _encoded_by_bitsandbytes(weight_OI: torch.Tensor, name: str, block_size: int) -> Encoded:
    import bitsandbytes  # noqa: F401  registers its operators

    packed, absmax = torch.ops.bitsandbytes.quantize_4bit(
        weight_OI.detach().float().contiguous(), block_size, name, torch.uint8
    )
    codes_OI = unpacked_pairs(packed)[: weight_OI.numel()].view(weight_OI.shape)
    return Encoded(packed=pack(codes_OI, 4), scale=absmax, offset=None)


def nearest(normalized: torch.Tensor, book: CodeBook) -> torch.Tensor:
    """Return the uint8 indices of the values nearest to `normalized`, elementwise."""
    values = torch.tensor(book.values, dtype=torch.float64, device=normalized.device)
    midpoints = ((values[1:] + values[:-1]) / 2).to(normalized.dtype)
    return torch.bucketize(normalized, midpoints).to(torch.uint8)


def unpacked_pairs(packed: torch.Tensor) -> torch.Tensor:
    """Return the flat codes of bytes that hold weights 2n (high) and 2n + 1 (low), as bitsandbytes packs."""
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).view(-1)


_FIELDS = {2: (2,), 3: (2, 1), 4: (4,)}
"""Widths of the fields that the bits of an index are divided into, the lowest bits first."""


def packed_rows(rows: int, bits: int) -> int:
    """Return how many rows of bytes so many rows of indices are packed into."""
    return sum(_field_rows(rows, width) for width in _FIELDS[bits])


def _field_rows(rows: int, width: int) -> int:
    """Return the rows of bytes that a field takes."""
    return -(-rows // (8 // width))


def pack(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack indices into bytes [packed rows, I]; of each field a byte has 8 / width rows, far apart."""
    parts, shift = [], 0
    for width in _FIELDS[bits]:
        field_OI = (codes_OI >> shift) & ((1 << width) - 1)
        rows = _field_rows(len(codes_OI), width)
        packed = codes_OI.new_zeros(rows, codes_OI.shape[1])
        for place, part in enumerate(field_OI.split(rows)):
            packed[: len(part)] |= part << (8 - width * (place + 1))
        parts.append(packed)
        shift += width
    return torch.cat(parts)


def unpack(packed: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """Return the indices [rows, I] of packed bytes."""
    codes_OI: torch.Tensor | None = None
    start = shift = 0
    for width in _FIELDS[bits]:
        stop = start + _field_rows(rows, width)
        places = range(8 - width, -1, -width)
        mask = (1 << width) - 1
        field_OI = torch.cat([(packed[start:stop] >> place) & mask for place in places])[:rows]
        codes_OI = field_OI if codes_OI is None else codes_OI | (field_OI << shift)
        start, shift = stop, shift + width
    assert codes_OI is not None
    return codes_OI


@lru_cache(maxsize=64)
def table(book: CodeBook, device: torch.device) -> torch.Tensor:
    """Return the book's values by index, float32 [16]; one on a device for all layers."""
    values = torch.zeros(16, dtype=torch.float32)
    values[: len(book.values)] = torch.tensor(book.values, dtype=torch.float64).float()
    return values.to(device)


def decode(
    packed: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    *,
    book: CodeBook,
    block_size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the weight [O, I] = `shape` in `dtype`; `scale` and `offset` are float32 [blocks]."""
    count = shape[0] * shape[1]
    # An offset is added in float32: two bfloat16 roundings would cost more than the grid is worth.
    dtype_of_sum = dtype if offset is None else torch.float32
    flat = torch.empty(count, dtype=dtype_of_sum, device=packed.device)
    if book.bits < 4:
        codes = unpack(packed, book.bits, shape[0]).reshape(-1)
        blockwise(codes, scale, table(book, packed.device), block_size, flat)
        return _shifted(flat, offset, block_size).to(dtype).view(shape)
    codes, half = packed.view(-1), packed.numel()
    for of_nibble, begin in zip(_nibble_tables(book, packed.device), (0, half), strict=True):
        for start, stop, block in _runs(begin, min(begin + half, count), block_size):
            run = codes[start - begin : stop - begin]
            blockwise(run, scale[block:], of_nibble, block_size, flat[start:stop])
    return _shifted(flat, offset, block_size).to(dtype).view(shape)


def _shifted(flat: torch.Tensor, offset: torch.Tensor | None, block_size: int) -> torch.Tensor:
    """Add the offset of each block in place, where there are offsets."""
    if offset is not None:
        whole = flat.numel() // block_size
        flat[: whole * block_size].view(whole, block_size).add_(offset[:whole].unsqueeze(1))
        flat[whole * block_size :].add_(offset[-1])
    return flat


def _runs(start: int, stop: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, first block) of what is left of a block that began before, and of the rest."""
    aligned = min(-(-start // block_size) * block_size, stop)
    if start < aligned:
        yield start, aligned, start // block_size
    if aligned < stop:
        yield aligned, stop, aligned // block_size


@lru_cache(maxsize=64)
def _nibble_tables(book: CodeBook, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 [256] tables: the value of a byte's high nibble, and of its low nibble."""
    values, byte = table(book, device), torch.arange(256, device=device)
    return values[byte >> 4], values[byte & 15]


def blockwise(
    codes: torch.Tensor,
    scale: torch.Tensor,
    values: torch.Tensor,
    block_size: int,
    out: torch.Tensor,
) -> None:
    """Write values[codes] * scale of the block into `out`: bitsandbytes' blockwise kernel, any 256 values."""
    match out.device.type:
        case "meta":
            return
        case "cpu":
            _cpu_kernel(out.dtype)(
                values.data_ptr(),
                codes.data_ptr(),
                scale.data_ptr(),
                out.data_ptr(),
                block_size,
                out.numel(),
            )
        case _:
            torch.ops.bitsandbytes.dequantize_blockwise.out(
                codes, scale, values, block_size, out.dtype, out=out
            )


_KERNEL_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@lru_cache(maxsize=8)
def _cpu_kernel(dtype: torch.dtype) -> Any:
    """Return what bitsandbytes' operator calls on a CPU, where it has no form that writes into a tensor."""
    from bitsandbytes.cextension import lib

    kernel = getattr(lib, f"cdequantize_blockwise_cpu_{_KERNEL_NAMES[dtype]}")
    pointer, number = ctypes.c_void_p, ctypes.c_longlong
    prototype = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, pointer, number, number)
    return prototype(ctypes.cast(kernel, ctypes.c_void_p).value or 0)
