"""Copies of a model that differ in their adapters only: they are evaluated on the same rows side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from harness.data.rows import Batch
    from harness.engine.cuda.decoding import DecodingSize


class QuickCopies(Protocol):
    """Something that scores and answers for copies of a model as the model would, and is quicker."""

    def score(self, chosen: Sequence[int], batch: "Batch") -> "list[torch.Tensor]":
        """Return for each chosen copy [2, M]: the cross-entropy of each position of the batch that carries
        loss, and 1.0 where its most likely token is the right one."""
        ...

    def at_once(self, size: "DecodingSize") -> int:
        """Return how many copies may answer together."""
        ...

    def answers(
        self,
        chosen: Sequence[int],
        prompts: Sequence[Sequence[int]],
        size: "DecodingSize",
        stop_ids: Sequence[int],
    ) -> list[list[list[int]]]:
        """Return each chosen copy's greedy continuation of each prompt, after a stop token anything.

        `size`: of the largest batch that will be asked.
        """
        ...


@dataclass(frozen=True, slots=True)
class Copies:
    """How many copies there are, and how a batch is divided among some of them."""

    count: int
    sharing: Callable[[Sequence[int], int], AbstractContextManager[None]]
    """`sharing(chosen, n)`: in forward passes inside, rows [i·n, (i+1)·n) belong to the i-th chosen copy."""
    quick: "QuickCopies | None" = None
    """What computes them instead of the model, where there is something quicker."""

    def parts(self, at_most: int) -> Iterator[range]:
        """Yield the copies in order, in parts of `at_most`."""
        size = max(1, at_most)
        for start in range(0, self.count, size):
            yield range(start, min(start + size, self.count))


def _whole_batch(chosen: Sequence[int], rows: int) -> AbstractContextManager[None]:
    return nullcontext()


ALONE = Copies(1, _whole_batch)
"""The model as it is."""
