"""One forward pass over the base, giving logits only where a position carries loss.

Shape suffixes: B rows, T positions, H hidden, V vocabulary, N positions that carry loss.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from harness.base.side_by_side import attention_arguments
from harness.data.rows import NO_LOSS, Batch


def loss_positions(batch: Batch) -> torch.Tensor:
    """Return the flat indices [N] (into B·T) of the positions that carry loss, in row order."""
    return (batch.targets_BT.reshape(-1) != NO_LOSS).nonzero().squeeze(1)


def target_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits_NV, targets_N) of the positions that carry loss; `batch` lies on the model's device.

    The head runs on these positions alone: with loss on the response that is often a third of the work
    of the largest matrix product of a small model, and the logits of the rest never exist. What a model
    does to its logits afterwards (scaling, soft-capping) is elementwise and therefore unaffected.
    """
    positions_N = loss_positions(batch)
    with _head_sees(model, positions_N):
        output = model(
            input_ids=batch.input_ids_BT,
            use_cache=False,
            **_attention(model, batch),
        )
    return output.logits.squeeze(0), batch.targets_BT.reshape(-1)[positions_N]


def _attention(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return nothing for rows of one example each, whose padding at the end no position sees."""
    return {} if batch.segments_BT is None else attention_arguments(model, batch.segments_BT)


@contextmanager
def _head_sees(model: nn.Module, positions_N: torch.Tensor) -> Iterator[None]:
    """Let the output head see hidden_BTH only at `positions_N`, as [1, N, H]."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]

    def select(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_BTH = inputs[0]
        flat_MH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])
        return (flat_MH.index_select(0, positions_N).unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
