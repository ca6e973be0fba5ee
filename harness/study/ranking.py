"""Which of several results are better, with one objective or many. Pure."""

from collections.abc import Sequence

import numpy as np

from harness.records.metrics import Direction


def ranked(values: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Return the indices of `values`, best first.

    The Pareto front comes first, then the front of what is left, and so on (the non-dominated sorting of
    Deb et al. 2002); within a front the first objective decides, then the order given.
    """
    if not values:
        return []
    signs = [-1.0 if direction is Direction.maximize else 1.0 for direction in directions]
    costs = np.asarray(values, dtype=float) * signs
    fronts = front_of_each(costs)
    return sorted(range(len(costs)), key=lambda index: (fronts[index], costs[index, 0]))


def front_of_each(costs: np.ndarray) -> list[int]:
    """Return the number of each row's front, 0 for the rows that no other is better than; less is better."""
    if costs.shape[1] == 1:
        return np.unique(costs[:, 0], return_inverse=True)[1].tolist()
    no_worse = (costs[:, None, :] <= costs[None, :, :]).all(axis=-1)
    better = (costs[:, None, :] < costs[None, :, :]).any(axis=-1)
    dominates = np.logical_and(no_worse, better)
    fronts = np.full(len(costs), -1)
    number = 0
    while (left := fronts < 0).any():
        fronts[left & ~dominates[left].any(axis=0)] = number
        number += 1
    return fronts.tolist()
