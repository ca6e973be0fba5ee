"""Sizers of passes that do not go by time, so that a test knows which runs share a pass."""

import random
from collections.abc import Sequence

from harness.training.entry import RunEntry
from harness.training.pass_size import PassSizer


class SideBySide(PassSizer):
    """All runs in one pass, or in as few as memory allows."""

    def __init__(self, slots: int) -> None:
        super().__init__(max_slots=slots)
        self.most = slots

    @property
    def slots(self) -> int:
        return self.max_slots

    def groups(self, entries: Sequence[RunEntry]) -> list[list[RunEntry]]:
        return [
            list(entries[start : start + self.most]) for start in range(0, len(entries), self.most)
        ]

    def ran_out(self, group: Sequence[RunEntry]) -> int:
        self.most = super().ran_out(group)
        return self.most


class Restless(SideBySide):
    """Other runs share a pass each time, and some make none."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self._random = random.Random(0)

    def groups(self, entries: Sequence[RunEntry]) -> list[list[RunEntry]]:
        moving = [entry for entry in entries if self._random.random() < 0.8] or list(entries)
        self._random.shuffle(moving)
        cut = self._random.randint(0, len(moving))
        return [group for group in (moving[:cut], moving[cut:]) if group]
