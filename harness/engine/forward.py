"""One forward pass over the base, giving logits only where a position carries loss.

Shape suffixes: B rows, T positions, H hidden, V vocabulary, N positions that carry loss.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from harness.base.packed_rows import attention_arguments
from harness.data.rows import Batch


def target_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits_NV, targets_N) of the positions that carry loss; `batch` lies on the model's device.

    The head runs on these positions alone: with loss on the response that is often a third of the work
    of the largest matrix product of a small model, and the logits of the rest never exist. What a model
    does to its logits afterwards (scaling, soft-capping) is elementwise and therefore unaffected.
    """
    head = _selection(model)
    head.positions_N = batch.loss_positions_N
    # Of rows of one example each no position sees the padding at the end: they need no mask.
    segments_BT = batch.segments_BT
    attention = {} if segments_BT is None else attention_arguments(model, segments_BT)
    try:
        output = model(input_ids=batch.input_ids_BT, use_cache=False, **attention)
    finally:
        head.positions_N = None
    return output.logits.squeeze(0), batch.targets_BT.reshape(-1)[batch.loss_positions_N]


class _Selection:
    """What the output head of a model sees of the hidden states: some positions, or all of them."""

    def __init__(self) -> None:
        self.positions_N: torch.Tensor | None = None

    def __call__(
        self, _: nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        """Return hidden_BTH at the positions alone, as [1, N, H]."""
        if self.positions_N is None:
            return None
        hidden_BTH = inputs[0]
        flat_MH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])
        return (flat_MH.index_select(0, self.positions_N).unsqueeze(0), *inputs[1:])


_selections: WeakKeyDictionary[nn.Module, _Selection] = WeakKeyDictionary()


def _selection(model: nn.Module) -> _Selection:
    """Return what selects for the head of `model`; it stands before the head from the first time on."""
    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if head not in _selections:
        _selections[head] = _Selection()
        head.register_forward_pre_hook(_selections[head])
    return _selections[head]
