"""One packed micro-step: the micro-batches of all slots through the frozen base at once.

Each slot's gradient is what it would be alone: the losses are separate sums over separate rows, each
divided by its own run's count of loss tokens. Nothing of a run changes in a pass, so that one that fails
can be repeated without trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter, FlatGradient
from harness.engine.forward import target_logits
from harness.engine.neftune import Noise, disturbed
from harness.engine.rows import AdapterRows

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One run's micro-batch, and what a pass is told of it."""

    batch: Batch
    loss_tokens: int
    """Loss tokens of the whole optimizer step, over all its micro-batches: the loss's denominator."""
    dropout_key: int | None
    recompute: bool
    """Gradient checkpointing: if any run of a pass asks for it, all of it is recomputed (same numbers)."""
    noise: Noise | None = None
    """What the embeddings are disturbed by."""
    offload: bool = False
    """Recomputation from inputs in the host's memory, if any run of a pass asks for it (same numbers)."""
    loss_scale: float = 1.0
    """What the gradient is multiplied by, against rounding in float16."""

    def by_name(self) -> dict[str, Any]:
        """Return them for another one's constructor."""
        return {field.name: getattr(self, field.name) for field in fields(Terms)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Terms):
    """One slot's share of a micro-step."""

    adapter: Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What one slot gets back: its share of the step's mean loss, and that one's gradient times its scale."""

    loss: torch.Tensor
    """Detached, on the device: nats per loss token of the step, in float64 (float32 sums err by 1e-6)."""
    of_adapter: FlatGradient
    """Good until the next pass."""


def packed_gradients(shared: "SharedBase", work: Sequence[Work]) -> list[Gradient]:
    """Run forward and backward for all of `work` in one pass; the result keeps its order."""
    ordered = sorted(work, key=_stacking_order)
    joint = _join(ordered, shared.base.device)
    shared.recompute_activations(
        any(item.recompute for item in ordered), offload=any(item.offload for item in ordered)
    )
    batches, noises = [item.batch for item in ordered], [item.noise for item in ordered]
    with (
        shared.plan.rows(adapter_rows_of(ordered), joint.places_BT),
        disturbed(shared.model, batches, noises),
    ):
        logits_NV, targets_N = target_logits(shared.model, joint)
        loss_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        counts = [item.batch.num_loss_tokens for item in ordered]
        weight_N = torch.cat(
            [
                loss_N.new_full((count,), item.loss_scale / item.loss_tokens)
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
    """Sort so that stackable adapters are adjacent (harness.engine.rows)."""
    return item.adapter.layout.rank, item.adapter.layout.size, item.batch.input_ids_BT.shape[0]


def adapter_rows_of(work: Sequence[Work]) -> list[AdapterRows]:
    """Return which rows of the joint batch are whose; all are those of a run alone, however many it has."""
    if len(work) == 1:
        (item,) = work
        return [AdapterRows(adapter=item.adapter.name, dropout_key=item.dropout_key)]
    adapter_rows, start = [], 0
    for item in work:
        name, stop = item.adapter.name, start + item.batch.input_ids_BT.shape[0]
        adapter_rows.append(
            AdapterRows(adapter=name, start=start, stop=stop, dropout_key=item.dropout_key)
        )
        start = stop
    return adapter_rows


def _join(work: Sequence[Work], device: torch.device) -> Batch:
    """Concatenate batches: shorter rows are padded, and examples are told apart if they are in one batch.

    Padding stands at the end of a row and changes nothing before it.
    """
    batches = [item.batch for item in work]
    length = max(batch.input_ids_BT.shape[1] for batch in batches)
    has_segments = any(batch.segments_BT is not None for batch in batches)
    has_dropout = any(item.dropout_key is not None for item in work)

    def joined(parts: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
        padded = [F.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
        return torch.cat(padded)

    positions, first_row = [], 0
    for batch in batches:
        own = batch.loss_positions_N
        rows, width = batch.input_ids_BT.shape
        if width < length:
            own = own.div(width, rounding_mode="floor") * length + own % width
        positions.append(own + first_row * length)
        first_row += rows
    joint = Batch(
        input_ids_BT=joined([b.input_ids_BT for b in batches], 0),
        targets_BT=joined([b.targets_BT for b in batches], NO_LOSS),
        segments_BT=joined([_segment_numbers(b) for b in batches], 0) if has_segments else None,
        loss_positions_N=torch.cat(positions),
        places_BT=joined([b.places for b in batches], 0) if has_dropout else None,
    )
    return joint.to(device)


def _segment_numbers(batch: Batch) -> torch.Tensor:
    """Return which example each position belongs to, also where a row is one."""
    return torch.ones_like(batch.input_ids_BT) if batch.segments_BT is None else batch.segments_BT
