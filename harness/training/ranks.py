"""What the training loop knows of the processes that share a run: how many they are, and their gradients."""

from collections.abc import Sequence
from typing import Protocol

from harness.engine.micro_step import Gradient, Work
from harness.engine.shared_base import SharedBase
from harness.errors import RunFailed
from harness.training.slot import Slot


class Ranks(Protocol):
    """The processes that train a run, seen from the one that decides; each computes some of its rows."""

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def gradients(
        self, shared: SharedBase, slots: Sequence[Slot], work: Sequence[Work]
    ) -> list[Gradient]:
        """Return the gradients of one packed pass: `work` is what each of `slots` has next.

        Raises what has gone wrong in any process; then nothing has been changed.
        """
        ...


def check_size(asked: int, running: int) -> None:
    """Raise RunFailed unless a run is trained by as many processes as it asks for."""
    if asked != running:
        raise RunFailed(
            f"resources.data_parallel={asked} asks for {asked} processes, and {running} would train this "
            "run; `harness run` starts as many as are asked for"
        )
