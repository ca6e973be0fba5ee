"""One packed micro-step: the micro-batches of all slots through the frozen base at once.

Each slot's gradient is what it would be alone: the losses are separate sums over separate rows, each
divided by its own run's count of loss tokens. Nothing of a run changes in a pass, so that one that fails
can be repeated without trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter, FlatGradient
from harness.engine.forward import target_logits
from harness.engine.rows import MaskRows, Segment
from harness.engine.shared_base import SharedBase


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
    mask_rows: MaskRows | None = None
    """Which rows of the run's micro-batch `batch` has; None: all of them."""
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
    """Bring adapters together that may be stacked (harness.engine.rows)."""
    return item.adapter.layout.rank, item.adapter.layout.size, item.batch.input_ids_BT.shape[0]


def _segments(work: Sequence[Work]) -> list[Segment]:
    segments, start = [], 0
    for item in work:
        stop = start + item.batch.input_ids_BT.shape[0]
        segments.append(
            Segment(
                adapter=item.adapter.name,
                start=start,
                stop=stop,
                dropout_key=item.dropout_key,
                mask_rows=item.mask_rows,
            )
        )
        start = stop
    return segments


def _join(batches: Sequence[Batch], device: torch.device) -> Batch:
    """Concatenate batches: shorter rows are padded, and examples are told apart if they are in one batch.

    Padding stands at the end of a row and changes nothing before it.
    """
    length = max(batch.input_ids_BT.shape[1] for batch in batches)
    has_segments = any(batch.segments_BT is not None for batch in batches)

    def joined(parts: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
        padded = [F.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
        return torch.cat(padded)

    joint = Batch(
        input_ids_BT=joined([b.input_ids_BT for b in batches], 0),
        targets_BT=joined([b.targets_BT for b in batches], NO_LOSS),
        segments_BT=joined([_segment_numbers(b) for b in batches], 0) if has_segments else None,
    )
    return joint.to(device)


def _segment_numbers(batch: Batch) -> torch.Tensor:
    """Return which example each position belongs to, also where a row is one."""
    return torch.ones_like(batch.input_ids_BT) if batch.segments_BT is None else batch.segments_BT
