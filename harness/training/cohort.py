"""One packed micro-step: the micro-batches of all slots through the frozen base at once.

Each slot's gradient is what it would be alone: the losses are separate sums over separate rows, each
divided by its own run's count of loss tokens. Nothing of a run changes in a pass, so that one that fails
can be repeated without trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.adapters.adapter import Adapter, FlatGradient
from harness.adapters.rows import Segment
from harness.adapters.shared import SharedBase
from harness.base.forward import target_logits
from harness.data.rows import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One slot's share of a micro-step."""

    adapter: Adapter
    batch: Batch
    batch_loss_tokens: int
    """Loss tokens of `batch`: counted once, where it was made."""
    loss_tokens: int
    """Loss tokens of the whole optimizer step, over all its micro-batches: the loss's denominator."""
    dropout_key: int | None
    recompute: bool
    """Gradient checkpointing: if any run of a pass asks for it, all of it is recomputed (same numbers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What one slot gets back: its share of the step's mean loss, and the gradient of that."""

    loss: torch.Tensor
    """Detached, on the device: nats per loss token of the step, in float64 (float32 sums err by 1e-6)."""
    of_adapter: FlatGradient
    """Good until the next pass."""


def packed_gradients(shared: SharedBase, work: Sequence[Work]) -> list[Gradient]:
    """Run forward and backward for all of `work` in one pass; the result keeps its order."""
    ordered = sorted(work, key=_stacking_order)
    joint = _join([item.batch for item in ordered], shared.base.device)
    shared.recompute_activations(any(item.recompute for item in ordered))
    with shared.rows(_segments(ordered)):
        logits_NV, targets_N = target_logits(shared.model, joint)
        loss_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        counts = [item.batch_loss_tokens for item in ordered]
        weight_N = torch.cat(
            [
                loss_N.new_full((count,), 1 / item.loss_tokens)
                for count, item in zip(counts, ordered, strict=True)
            ]
        )
        loss_N.backward(weight_N)
        gradients = shared.plan.gradients()
    losses = {
        item.adapter.name: part.double().sum() / item.loss_tokens
        for part, item in zip(loss_N.detach().split(counts), ordered, strict=True)
    }
    names = [item.adapter.name for item in work]
    return [Gradient(loss=losses[name], of_adapter=gradients[name]) for name in names]


def _stacking_order(item: Work) -> tuple[int, int, int]:
    """Bring adapters together that may be stacked (harness.adapters.rows)."""
    return item.adapter.layout.rank, item.adapter.layout.size, item.batch.input_ids_BT.shape[0]


def _segments(work: Sequence[Work]) -> list[Segment]:
    segments, start = [], 0
    for item in work:
        stop = start + item.batch.input_ids_BT.shape[0]
        segments.append(
            Segment(adapter=item.adapter.name, start=start, stop=stop, dropout_key=item.dropout_key)
        )
        start = stop
    return segments


def _join(batches: Sequence[Batch], device: torch.device) -> Batch:
    """Concatenate batches of one row length; the runs of a cohort share it by admission."""
    first = batches[0]
    assert all(b.input_ids_BT.shape[1] == first.input_ids_BT.shape[1] for b in batches)
    assert all((b.segments_BT is None) == (first.segments_BT is None) for b in batches)
    segments = [b.segments_BT for b in batches if b.segments_BT is not None]
    return Batch(
        input_ids_BT=torch.cat([b.input_ids_BT for b in batches]).to(device, non_blocking=True),
        targets_BT=torch.cat([b.targets_BT for b in batches]).to(device, non_blocking=True),
        segments_BT=torch.cat(segments).to(device, non_blocking=True) if segments else None,
    )
