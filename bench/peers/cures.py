"""Faults of bitsandbytes' own 4-bit layers on the CPU, cured for the peers that train on them.

The harness has layers of its own and needs none of this. Runs in the peers' environment.
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cure_bitsandbytes() -> None:
    """Switch off what is wrong in bitsandbytes on the CPU; cheap to call again."""
    _no_repacking_for_inference()
    _correct_decoding_of_unaligned_rows()


def _no_repacking_for_inference() -> None:
    """Keep 4-bit layers off the AVX512-BF16 inference path.

    `Linear4bit` re-packs its weights at the first forward in eval mode and from then on runs every
    forward through `gemv_4bit`, which has no autograd formula: after one evaluation LoRA gradients are
    74-99 % wrong, and saving corrupts the weights. Other CPUs never take the path, so results would
    also depend on the host.
    """
    import bitsandbytes.nn.modules as modules

    modules.has_avx512bf16 = _no_avx512bf16


def _no_avx512bf16() -> bool:
    return False


@lru_cache(maxsize=1)
def _correct_decoding_of_unaligned_rows() -> None:
    """Decode NF4 and FP4 correctly where a row of the weight is not a whole number of blocks.

    Quantization blocks run over the flat weight, but the CPU kernel of `dequantize_4bit` in 0.50.2 begins
    a new block with every row: for a [128, 96] weight in blocks of 64 the mean squared error on N(0, 1) is
    0.070 instead of 0.0086, for [128, 64] in blocks of 128 it is 0.13 instead of 0.0090. Where
    in_features is no multiple of the block size, the blockwise kernel decodes each nibble instead.
    """
    import torch
    from bitsandbytes.backends.cpu import ops  # registers the kernel that is replaced
    from bitsandbytes.functional import get_4bit_type

    original = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
    assert ops is not None
    byte = torch.arange(256)
    tables = {}
    for name in ("nf4", "fp4"):
        values = get_4bit_type(name, device="cpu")  # pyright: ignore[reportArgumentType]
        tables[name] = values[byte >> 4], values[byte & 15]

    def dequantize_4bit(
        A: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        if shape[-1] % blocksize == 0:
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            return original.call_boxed(keys, A, absmax, blocksize, quant_type, shape, dtype)
        # Weight 2i is the high nibble of byte i, weight 2i + 1 the low one: half as many bytes a block.
        packed = A.view(torch.uint8).reshape(-1)
        pairs = [
            torch.ops.bitsandbytes.dequantize_blockwise(packed, absmax, t, blocksize // 2, dtype)
            for t in tables[quant_type]
        ]
        return torch.stack(pairs, dim=1).reshape(-1)[: math.prod(shape)].view(*shape)

    _libraries.append(torch.library.Library("bitsandbytes", "IMPL"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced is the point
        _libraries[-1].impl("dequantize_4bit", dequantize_4bit, "CPU", allow_override=True)


_libraries: list["torch.library.Library"] = []  # an implementation lives as long as its library
