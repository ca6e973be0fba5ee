"""Which rows an optimizer step sees, as a function of (seed, step) alone: resuming needs no cursor."""

import hashlib
import math
from fractions import Fraction
from functools import lru_cache

import torch


def batch_rows(num_rows: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """Return the row indices int64 [batch_size] of optimizer step `step`, counted from 0.

    Rows are shuffled anew for every epoch, and a batch goes on into the next epoch where one ends inside
    it: each epoch sees every row once, and no batch is short. With fewer rows than a batch, rows repeat.
    """
    assert num_rows > 0, "there are no rows to draw from"
    assert batch_size > 0, f"batch_size={batch_size}"
    parts: list[torch.Tensor] = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, offset = divmod(position, num_rows)
        part = _permutation(num_rows, seed, epoch)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts)


def steps_for(epochs: float, num_rows: int, batch_size: int) -> int:
    """Return the fewest optimizer steps, at least 1, that see `epochs` times all rows.

    `epochs` counts as the decimal that it is written as: 0.07 of 100 rows are 7 rows, not 7.000000000000001.
    """
    return max(1, math.ceil(Fraction(repr(float(epochs))) * num_rows / batch_size))


def ends_epochs(step: int, epochs: float, num_rows: int, batch_size: int) -> bool:
    """Say whether `step` is the first by which another `epochs` times all rows have been seen."""
    stretch = Fraction(repr(float(epochs))) * num_rows
    return step * batch_size // stretch > (step - 1) * batch_size // stretch


@lru_cache(maxsize=128)  # the runs of a cohort take turns, each with an order of its own
def _permutation(num_rows: int, seed: int, epoch: int) -> torch.Tensor:
    """Return a permutation int64 [num_rows]; the seeds are hashed, so near ones share nothing."""
    digest = hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(num_rows, generator=generator)
