"""Seeded random draws that give the same values on every machine and Python version.

Python promises reproducible sequences for `Random.random()` alone, so every draw is built on it.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A stream of draws named by a text seed; two streams with one name are equal."""

    def __init__(self, name: str) -> None:
        # A text seed goes through SHA-512 (seeding version 2), never through hash().
        self._unit = random.Random(name).random

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both ends included."""
        return low + int(self._unit() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of `items`, uniformly."""
        return items[int(self._unit() * len(items))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._unit() < probability

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different positions of `items` in random order (partial Fisher-Yates)."""
        pool = list(items)
        for i in range(count):
            j = self.integer(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All of `items` in random order."""
        return self.sample(items, len(items))
