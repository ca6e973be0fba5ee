"""Copies of a model that differ in their adapters only: they are evaluated on the same rows side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from harness.data.rows import Batch


@dataclass(frozen=True, slots=True)
class Copies:
    """How many copies there are, and how a batch is divided among some of them."""

    count: int
    sharing: Callable[[Sequence[int], int], AbstractContextManager[None]]
    """`sharing(chosen, n)`: in forward passes inside, rows [i·n, (i+1)·n) belong to the i-th chosen copy."""
    score: "Callable[[Sequence[int], Batch], list[torch.Tensor]] | None" = None
    """`score(chosen, batch)`, where something quicker than the model computes it: for each chosen copy [2, M]
    the cross-entropy of each position of the batch that carries loss, and 1.0 where its top token is it."""

    def parts(self, at_most: int) -> Iterator[range]:
        """Yield the copies in order, in parts of `at_most`."""
        size = max(1, at_most)
        for start in range(0, self.count, size):
            yield range(start, min(start + size, self.count))


def _whole_batch(chosen: Sequence[int], rows: int) -> AbstractContextManager[None]:
    return nullcontext()


ALONE = Copies(1, _whole_batch)
"""The model as it is."""
