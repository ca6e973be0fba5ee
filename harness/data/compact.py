"""Batches without the positions that cannot matter: padding, and tokens after the last that carries loss.

A batch stays the same batch: the same examples, targets and positions within each example. Only where they
lie changes, so losses and gradients are equal up to rounding, and the layout depends on nothing but the
batch itself. Shape suffixes: B rows of a batch, T positions of a row, M positions that are kept.
"""

import numpy as np
import torch

from harness.data.packing import pack
from harness.data.rows import NO_LOSS, Batch

MAX_FOLDED_LENGTH = 512
"""Positions of a row up to which examples are put together: the mask between them has T x T elements a row,
and attention over a whole row costs more than over its examples."""
_MIN_SAVING = 0.1
"""Share of a batch's positions that folding must save over cutting off what all rows have in common."""
_ROUND_TO = 8
"""Rows that are cut are a multiple of this long: matrix products on a GPU want it."""


def without_padding(padded: Batch, *, apart: bool) -> Batch:
    """Return a batch of padded rows without most of its padding: the same examples, equal up to rounding.

    `apart`: each example has a row of its own (`harness.base.packed_rows.why_apart`).
    """
    return trimmed(padded) if apart else folded(padded)


def trimmed(batch: Batch) -> Batch:
    """Return a batch of padded rows without the positions at the end that carry nothing in any row."""
    length = batch.targets_BT.shape[1]
    if batch.segments_BT is not None:
        return batch
    longest = min(length, -(-int(useful_lengths(batch).max()) // _ROUND_TO) * _ROUND_TO)
    if longest == length:
        return batch
    return Batch.of(
        batch.input_ids_BT[:, :longest],
        batch.targets_BT[:, :longest],
        places_BT=batch.places[:, :longest],
    )


def folded(batch: Batch) -> Batch:
    """Return a batch of padded rows as fewer rows of the same length, several examples in each.

    Examples are numbered by `segments_BT`, as packed rows are, and see only themselves. Where that saves
    little, or the rows are long, the batch is only trimmed.
    """
    length = batch.targets_BT.shape[1]
    if batch.segments_BT is not None or length > MAX_FOLDED_LENGTH:
        return trimmed(batch)
    lengths = useful_lengths(batch).numpy()
    groups = pack(lengths.tolist(), length)
    cut = trimmed(batch)
    if len(groups) * length > (1 - _MIN_SAVING) * cut.num_input_tokens:
        return cut
    order = np.concatenate(groups)
    kept = lengths[order]
    ends = np.cumsum(kept)
    offset_M = np.arange(ends[-1]) - np.repeat(ends - kept, kept)  # position within the example
    starts = np.concatenate(
        [row * length + np.cumsum([0, *lengths[group[:-1]]]) for row, group in enumerate(groups)]
    )
    number = np.concatenate([np.arange(1, len(group) + 1) for group in groups])
    from_M = torch.from_numpy(np.repeat(order * length, kept) + offset_M)
    to_M = torch.from_numpy(np.repeat(starts, kept) + offset_M)
    shape = (len(groups), length)
    segments = torch.zeros(shape, dtype=torch.int64).view(-1)
    segments[to_M] = torch.from_numpy(np.repeat(number, kept))
    return Batch.of(
        _moved(batch.input_ids_BT, from_M, to_M, shape, fill=0),
        _moved(batch.targets_BT, from_M, to_M, shape, fill=NO_LOSS),
        segments.view(shape),
        _moved(batch.places, from_M, to_M, shape, fill=0),
    )


def useful_lengths(batch: Batch) -> torch.Tensor:
    """Return, for each row int64 [B], the positions up to the last that carries loss; at least 1."""
    carries_BT = batch.targets_BT != NO_LOSS
    place_T = torch.arange(1, carries_BT.shape[1] + 1, device=carries_BT.device)
    return (carries_BT * place_T).amax(dim=1).clamp_(min=1)


def example_lengths(batch: Batch) -> torch.Tensor:
    """Return, for each position int64 [B, T], how many positions its example has up to the last with loss.

    The same before and after `without_padding`, of which it knows nothing. Of packed rows it is the example's
    whole length; of padding it is 1.
    """
    segments_BT = batch.segments_BT
    if segments_BT is None:
        return useful_lengths(batch).unsqueeze(1).expand(batch.input_ids_BT.shape)
    counts = segments_BT.new_zeros(segments_BT.shape[0], segments_BT.shape[1] + 1)
    counts = counts.scatter_add_(1, segments_BT, torch.ones_like(segments_BT))
    return torch.where(segments_BT > 0, counts.gather(1, segments_BT), 1)


def _moved(
    source_BT: torch.Tensor,
    from_M: torch.Tensor,
    to_M: torch.Tensor,
    shape: tuple[int, int],
    *,
    fill: int,
) -> torch.Tensor:
    moved = source_BT.new_full(shape, fill).view(-1)
    moved[to_M] = source_BT.reshape(-1)[from_M]
    return moved.view(shape)
