"""One packed micro-step: the micro-batches of all slots through the frozen base at once.

Each slot's gradient is what it would be alone: the losses are separate sums over separate rows, each
divided by its own run's count of loss tokens. Gradients are returned, and none is left at a parameter, so
that a pass that fails can be repeated without trace.
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
    by_name: dict[str, torch.Tensor]

    def plus(self, other: "Gradient") -> "Gradient":
        """Return the sum of both, using up the tensors of this one."""
        by_name = self.by_name
        for name, value in other.by_name.items():
            by_name[name] = by_name[name].add_(value) if name in by_name else value
        return Gradient(loss=self.loss + other.loss, by_name=by_name)


def packed_gradients(shared: SharedBase, work: Sequence[Work]) -> list[Gradient]:
    """Run forward and backward for all of `work` in one pass; the result keeps its order."""
    joint = _join([item.batch for item in work], shared.base.device)
    shared.recompute_activations(any(item.recompute for item in work))
    with shared.rows(_segments(work)):
        logits_NV, targets_N = target_logits(shared.model, joint)
        loss_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        counts = [item.batch_loss_tokens for item in work]
        weight_N = torch.cat(
            [
                loss_N.new_full((count,), 1 / item.loss_tokens)
                for count, item in zip(counts, work, strict=True)
            ]
        )
        try:
            loss_N.backward(weight_N)  # 5 % faster than autograd.grad with as many inputs
        except BaseException:
            for item in work:
                _take_gradient(item.adapter)
            raise
    return [
        Gradient(loss=part.double().sum() / item.loss_tokens, by_name=_take_gradient(item.adapter))
        for part, item in zip(loss_N.detach().split(counts), work, strict=True)
    ]


def _take_gradient(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return the gradients that backward left at the parameters, and leave none there."""
    taken = {}
    for name, parameter in adapter.parameters.items():
        if parameter.grad is not None:
            taken[name], parameter.grad = parameter.grad, None
    return taken


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
