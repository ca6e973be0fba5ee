"""The reference: the packed pass through transformers' modules and autograd, and nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.config.resources import BackendName
from harness.engine.micro_step import Gradient, Work, packed_gradients

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase


class ReferenceBackend:
    """What computes passes over one base and its adapters: here as they are written, and nothing is kept.

    Quicker backends take the place of what they do otherwise.
    """

    name: BackendName = BackendName.reference

    def __init__(self, shared: "SharedBase") -> None:
        self._shared = shared

    def gradients(self, work: Sequence[Work]) -> list[Gradient]:
        """Return the gradients of one packed pass, in the order of `work`."""
        return packed_gradients(self._shared, work)

    def keep_decoded(self, wanted: bool) -> None:
        """Allow decoded weights to be kept between passes, where that is quicker; costs memory only."""

    def base_was_rewritten(self) -> None:
        """Decode anew what is kept: an adapter's beginning has changed the weights."""

    @contextmanager
    def decoded(self) -> Iterator[None]:
        """Allow it within this context: for an evaluation of a run whose training keeps nothing."""
        yield
