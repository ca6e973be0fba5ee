"""Faults of the libraries underneath, cured in one place before any model is built.

Import this before bitsandbytes or transformers are imported anywhere else.
"""

import logging
import math
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def quiet_libraries() -> None:
    """Keep load bars, deprecation notes and import-time warnings off the user's terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # bitsandbytes warns at import that a hub kernel cannot be loaded on AVX512-BF16 hosts.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(bitsandbytes|transformers|peft|accelerate)(\.|$)")


def cure_bitsandbytes() -> None:
    """Switch off what is wrong in bitsandbytes on the CPU; cheap to call again.

    `tests/base/test_library_faults.py` fails if a cure stops working, or stops being needed.
    """
    quiet_libraries()
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

    from harness.base.code_books import nibble_tables_of

    original = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
    assert ops is not None
    tables = {
        name: nibble_tables_of(get_4bit_type(name, device="cpu"))  # pyright: ignore[reportArgumentType]
        for name in ("nf4", "fp4")
    }

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
