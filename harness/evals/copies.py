"""Copies of a model that differ in their adapters only: they are evaluated on the same rows side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copies:
    """How many copies there are, and how a batch is divided among some of them."""

    count: int
    sharing: Callable[[Sequence[int], int], AbstractContextManager[None]]
    """`sharing(chosen, n)`: in forward passes inside, rows [i·n, (i+1)·n) belong to the i-th chosen copy."""

    def parts(self, at_most: int) -> Iterator[range]:
        """Yield the copies in order, in parts of `at_most`."""
        size = max(1, at_most)
        for start in range(0, self.count, size):
            yield range(start, min(start + size, self.count))


def _whole_batch(chosen: Sequence[int], rows: int) -> AbstractContextManager[None]:
    return nullcontext()


ALONE = Copies(1, _whole_batch)
"""The model as it is."""
