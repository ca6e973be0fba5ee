"""One packed micro-step: the micro-batches of all slots through the frozen base at once.

Each slot's gradient is what it would be alone: the losses are separate sums over separate rows, each
divided by its own run's count of loss tokens. Gradients are returned, not accumulated in place, so that
a forward pass that fails can be repeated without trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.adapters.packed import Segment
from harness.adapters.shared import Adapter, SharedBase
from harness.base.forward import target_logits
from harness.data.rows import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One slot's share of a micro-step."""

    adapter: Adapter
    batch: Batch
    loss_tokens: int
    """Loss tokens of the whole optimizer step, over all its micro-batches: the loss's denominator."""
    dropout_key: int
    recompute: bool
    """Gradient checkpointing: if any run of a pass asks for it, all of it is recomputed (same numbers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What one slot gets back: its share of the step's mean loss, and the gradient of that."""

    loss: torch.Tensor
    """A detached float32 scalar on the device: nats per loss token of the step."""
    by_name: dict[str, torch.Tensor]


def packed_gradients(shared: SharedBase, work: Sequence[Work]) -> list[Gradient]:
    """Run forward and backward for all of `work` in one pass; the result keeps its order."""
    joint = _join([item.batch for item in work], shared.base.device)
    shared.recompute_activations(any(item.recompute for item in work))
    with shared.rows(_segments(work)):
        logits_NV, targets_N = target_logits(shared.model, joint)
        loss_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        counts = [item.batch.num_loss_tokens for item in work]
        losses = [
            part.sum() / item.loss_tokens
            for part, item in zip(loss_N.split(counts), work, strict=True)
        ]
        parameters = [p for item in work for p in item.adapter.parameters.values()]
        gradients = iter(torch.autograd.grad(sum(losses), parameters, allow_unused=True))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return [
        Gradient(
            loss=loss.detach(),
            by_name={
                name: gradient
                for name, gradient in zip(item.adapter.parameters, gradients, strict=False)
                if gradient is not None
            },
        )
        for loss, item in zip(losses, work, strict=True)
    ]


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
