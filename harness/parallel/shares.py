"""How the rows of a pass are divided among ranks, and what one rank makes of its share.

A run's loss is a sum over its loss tokens divided by those of the whole step. Each rank sums over its own
rows and divides by the same number, so that the ranks' losses and gradients add up to those of one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.data.rows import Batch
from harness.engine.adapter import Adapter, FlatGradient
from harness.engine.micro_step import Gradient, Work, packed_gradients
from harness.engine.shared_base import SharedBase
from harness.errors import first_line
from harness.measure.memory import is_out_of_memory
from harness.parallel.group import Group
from harness.parallel.messages import Fault, Share
from harness.training.slot import Slot


def divided(slot: Slot, work: Work, size: int) -> list[Share | None]:
    """Return each rank's rows of a slot's micro-batch; None for a rank without any."""
    return [
        Share(name=work.adapter.name, **replace(work, batch=_owned(part)).by_name())
        if part.input_ids_BT.shape[0]
        else None
        for part in slot.shares(size)
    ]


def _owned(batch: Batch) -> Batch:
    """Return a batch in tensors of its own: what is sent is the storage that they lie in."""
    segments_BT = batch.segments_BT
    return Batch.of(
        batch.input_ids_BT.clone(),
        batch.targets_BT.clone(),
        None if segments_BT is None else segments_BT.clone(),
        batch.places.clone(),
    )


@dataclass(frozen=True, slots=True)
class Computed:
    """A rank's gradients by the leader's names of the adapters, or why it has none."""

    gradients: Mapping[str, Gradient]
    error: Exception | None = None


def fault_of(error: Exception | None) -> Fault | None:
    """Return an error as it is sent."""
    if error is None:
        return None
    text = f"{type(error).__name__}: {first_line(error)}"
    return Fault(is_out_of_memory=is_out_of_memory(error), text=text)


def computed(
    shared: SharedBase, shares: Sequence[Share], adapters: Mapping[str, Adapter]
) -> Computed:
    """Compute one rank's share of a pass. Whatever goes wrong is an answer: the others wait for one."""
    try:
        work = [Work(adapter=adapters[share.name], **share.by_name()) for share in shares]
        gradients = packed_gradients(shared, work) if work else []
    except Exception as error:
        return Computed({}, error)
    return Computed({s.name: g for s, g in zip(shares, gradients, strict=True)})


def added_up(
    group: Group, adapters: Mapping[str, Adapter], own: Mapping[str, Gradient]
) -> list[Gradient]:
    """Return on the leader the sums over all ranks, in the order of `adapters`; elsewhere they are undefined.

    Both mappings go by the leader's names.
    """
    flats: list[FlatGradient] = []
    losses: list[torch.Tensor] = []
    for name, adapter in adapters.items():
        mine = own.get(name)
        if mine is None:
            flats.append(FlatGradient.of(adapter, torch.zeros_like(adapter.flat_P)))
            losses.append(adapter.flat_P.new_zeros((), dtype=torch.float64))
        else:
            flats.append(mine.of_adapter)
            losses.append(mine.loss)
        group.add_up(flats[-1].flat_P)
    total = torch.stack(losses)
    group.add_up(total)
    return [Gradient(loss=x, of_adapter=flat) for x, flat in zip(total, flats, strict=True)]
