"""What can be said of a storage without tensors: what it is called, and whether it rounds in blocks.

The storages themselves are `harness.base.storage`. Must not import torch: readers of records import this.
"""

from typing import assert_never

from harness.config.schema import QuantConfig, QuantFormat


def storage_label(quant_format: str, double_quant: object) -> str:
    """Return what the command line calls a format with or without double quantization: `nf4_dq`."""
    return f"{quant_format}_dq" if double_quant else quant_format


def label_of(quant: QuantConfig) -> str:
    """Return what the command line calls this storage."""
    return storage_label(quant.format.value, quant.double_quant)


def has_blocks(quant_format: QuantFormat) -> bool:
    """Say whether a format keeps constants for each block of weights: then blocks have a size."""
    match quant_format:
        case QuantFormat.none | QuantFormat.int8 | QuantFormat.as_stored:
            return False
        case QuantFormat.nf4 | QuantFormat.af4 | QuantFormat.int4:
            return True
        case QuantFormat.int4_asym | QuantFormat.int3_asym | QuantFormat.int2_asym:
            return True
        case QuantFormat.fp4 | QuantFormat.fp4_e2m1 | QuantFormat.fp4_e3m0:
            return True
        case _ as unreachable:
            assert_never(unreachable)


BLOCKWISE = tuple(each for each in QuantFormat if has_blocks(each))
WITHOUT_BLOCKS = tuple(each.value for each in QuantFormat if not has_blocks(each))
"""By name, as records have them."""
ROUNDING = tuple(each for each in QuantFormat if each is not QuantFormat.as_stored)
"""What a dense weight can be stored in, `none` among them."""
