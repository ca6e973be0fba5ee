"""How an adapter begins that looks at the dense weights, and what it leaves of them to its base.

Shape suffixes: R rank, O outputs, I inputs.
"""

from typing import Any

import torch

from harness.base.layers import dense_linear
from harness.base.storage import Storage
from harness.config.schema import LoraConfig, LoraInit


def start_from_dense(
    layer: Any, adapter: str, weight_OI: torch.Tensor, lora: LoraConfig, storage: Storage
) -> torch.Tensor | None:
    """Initialize A and B of PEFT's `layer`; return what the base keeps in place of the weight, None: as it
    is.

    `weight_OI` is float32, and may be written over.
    """
    match lora.init:
        case LoraInit.pissa | LoraInit.olora:
            packed = layer.base_layer
            layer.base_layer = dense = dense_linear(weight_OI)
            if lora.init is LoraInit.pissa:
                layer.pissa_init(adapter, "pissa")
            else:
                layer.olora_init(adapter)
            layer.base_layer = packed
            return dense.weight.data
        case LoraInit.loftq:
            return _loftq(layer, adapter, weight_OI, lora.loftq_iterations, storage)
        case LoraInit.default | LoraInit.gaussian:
            raise AssertionError(lora.init)


def _loftq(
    layer: Any, adapter: str, weight_OI: torch.Tensor, iterations: int, storage: Storage
) -> torch.Tensor | None:
    """LoftQ (Li et al. 2023, arXiv 2310.08659, algorithm 1): round, take the best rank-R part of what
    rounding has lost, round what that leaves, and so on.

    As PEFT's `loftq_init`, with B A divided by the scaling that they are multiplied by, as its PiSSA has
    it: with alpha = 2 r PEFT would begin as far beyond the weight as rounding is short of it.
    """
    rank, scaling = layer.r[adapter], layer.scaling[adapter]
    stored_OI = weight_OI
    left_OR, right_RI = _best(weight_OI - _rounded(stored_OI, storage), rank)
    for _ in range(iterations - 1):
        stored_OI = weight_OI - left_OR @ right_RI
        left_OR, right_RI = _best(weight_OI - _rounded(stored_OI, storage), rank)
    narrow = scaling**-0.5
    layer.lora_A[adapter].weight.data = narrow * right_RI
    layer.lora_B[adapter].weight.data = narrow * left_OR
    return None if iterations == 1 else stored_OI


def _best(matrix_OI: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors [O, R] and [R, I] of the nearest matrix of a rank, of equal size."""
    u_OM, values_M, v_MI = torch.linalg.svd(matrix_OI, full_matrices=False)
    root_R = torch.sqrt(values_M[:rank])
    return u_OM[:, :rank] * root_R, root_R.unsqueeze(1) * v_MI[:rank]


def _rounded(weight_OI: torch.Tensor, storage: Storage) -> torch.Tensor:
    """Return a weight as its storage gives it back."""
    rows, columns = weight_OI.shape
    return storage.decode(storage.encode(weight_OI.contiguous()), (rows, columns), torch.float32)
