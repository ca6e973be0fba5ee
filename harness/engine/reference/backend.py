"""The reference: the packed pass through transformers' modules and autograd, and nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.config.resources import BackendName
from harness.engine.micro_step import Gradient, Work, packed_gradients

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase


class ReferenceBackend:
    """Computes every pass as it is written."""

    name = BackendName.reference
    tolerance = 0.0

    def __init__(self, shared: "SharedBase") -> None:
        self._shared = shared

    def gradients(self, work: Sequence[Work]) -> list[Gradient]:
        """Return the gradients of one packed pass, in the order of `work`."""
        return packed_gradients(self._shared, work)

    def keep_decoded(self, wanted: bool) -> None:
        """Keep nothing."""

    def base_was_rewritten(self) -> None:
        """Nothing is kept."""

    @contextmanager
    def decoded(self) -> Iterator[None]:
        """Keep nothing."""
        yield
