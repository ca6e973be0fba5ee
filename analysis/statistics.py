"""Intervals, paired differences, tests, Pareto fronts and effects, as pure functions of numbers.

Seeds are the replicates: every interval and test here is over seeds, never over the rows of an evaluation
(tests of several comparisons: `analysis.inference`). SciPy and Optuna are imported by the functions that need
them: together they take 0.4 s, and most readers of records need neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from analysis.intervals import Interval, mean_interval
from harness.records.metrics import Direction

__all__ = [
    "Effect",
    "Interval",
    "holm",
    "importance",
    "marginal_effects",
    "mean_interval",
    "pareto_front",
    "sign_flip_p_value",
]


LEAST_TRIALS, TRIALS_PER_AXIS = 20, 5
"""Fewer trials say nothing of importance: its best tenth would be one or two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What changing one factor from one level to another does while the others stay as they are."""

    factor: str
    level: Any
    reference: Any
    by_seed: dict[Any, float]
    """Seed -> the mean change over the blocks."""
    num_blocks: int
    """Combinations of the other factors in which every seed has measured both levels."""


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the share of all 2^n assignments of signs whose mean is at least as far from 0 (Fisher 1935)."""
    n = len(differences)
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    observed = abs(math.fsum(differences))
    rounding = 1e-12 * math.fsum(map(abs, differences))
    return float(np.count_nonzero(np.abs(sums) >= observed - rounding)) / 2**n


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values (1979) in the given order; a missing one stays and does not count."""
    given = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(given):
        highest = max(highest, min(1.0, (len(given) - rank) * p))
        adjusted[index] = highest
    return adjusted


def pareto_front(
    points: Sequence[Sequence[float]], directions: Sequence[Direction | str]
) -> list[int]:
    """Return the indices of the points that no other is better than, in the given order.

    A point is dominated by one that is nowhere worse and somewhere better, so equal points stay together. A
    point with a NaN is on no front. Raises ValueError for a direction that is neither up nor down.
    """
    signs = [_sign(direction) for direction in directions]
    if not len(points):
        return []
    costs = np.asarray(points, dtype=float) * signs
    left = np.flatnonzero(~np.isnan(costs).any(axis=1))
    left = left[np.lexsort(costs[left].T[::-1])]  # none is dominated by a later one
    front: list[int] = []
    while left.size:
        first = costs[left[0]]
        equal = (costs[left] == first).all(axis=1)
        front += left[equal].tolist()
        left = left[(costs[left] < first).any(axis=1)]
    return sorted(front)


def _sign(direction: Direction | str) -> float:
    match Direction(direction):
        case Direction.minimize:
            return 1.0
        case Direction.maximize:
            return -1.0
        case Direction.neither:
            raise ValueError("a Pareto front needs a direction for each objective, got neither")


def marginal_effects(
    rows: Sequence[Mapping[str, Any]],
    factor: str,
    metric: str,
    others: Sequence[str],
) -> list[Effect]:
    """Return what each change of `factor` does to `metric` with the `others` held fixed, seed by seed.

    Rows in which all `others` are equal form a block. A seed's runs have data order and initialisation in
    common, so that its blocks are no replicates: their mean is one value, and the seeds are what can be
    tested over. Only blocks that every seed has measured at both levels count. Rows without a value are left
    out.

    Raises ValueError where two rows of a block and seed have the same level: then something else varies.
    """
    blocks: dict[Any, dict[tuple[Any, ...], dict[Any, float]]] = {}
    for row in rows:
        if (value := row.get(metric)) is None or not math.isfinite(value):
            continue
        block = tuple(row.get(key) for key in others)
        of_block = blocks.setdefault(row.get(factor), {}).setdefault(block, {})
        if row.get("seed") in of_block:
            raise ValueError(
                f"two rows have {factor}={row.get(factor)} and {dict(zip(others, block, strict=True))}: "
                "name what else varies among `others`"
            )
        of_block[row.get("seed")] = value
    effects = []
    for reference, level in combinations(blocks, 2):
        a, b = blocks[level], blocks[reference]
        seeds = dict.fromkeys(each for block in (*a.values(), *b.values()) for each in block)
        shared = [k for k in a if k in b and all(each in a[k] and each in b[k] for each in seeds)]
        if shared:
            by_seed = {
                each: math.fsum(a[block][each] - b[block][each] for block in shared) / len(shared)
                for each in seeds
            }
            effects.append(
                Effect(
                    factor=factor,
                    level=level,
                    reference=reference,
                    by_seed=by_seed,
                    num_blocks=len(shared),
                )
            )
    return effects


def importance(storage_url: str, name: str) -> dict[str, dict[str, float]]:
    """Return each parameter's share of what decides over the best trials, by objective (PED-ANOVA).

    Watanabe, Bansal and Hutter (2023), as in Optuna; fANOVA would need scikit-learn. Trials that did not
    complete or whose value is not finite are left out. Shares sum to 1 over the parameters.

    Raises ValueError where there is no such study or too few trials to say anything.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        stored = optuna.load_study(study_name=name, storage=storage_url)
    except KeyError:
        raise ValueError(f"{storage_url} holds no study {name}") from None
    complete = stored.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    names = stored.metric_names or [f"objective {i}" for i in range(len(stored.directions))]
    finite = [trial for trial in complete if all(map(math.isfinite, trial.values))]
    axes = {key for trial in finite for key in trial.params}
    needed = max(LEAST_TRIALS, TRIALS_PER_AXIS * len(axes))
    if len(finite) < needed:
        raise ValueError(
            f"{len(finite)} completed trials of {name} over {len(axes)} axes: importance needs "
            f"{needed} or more"
        )
    shares = {}
    for index, (objective, direction) in enumerate(zip(names, stored.directions, strict=True)):
        study = optuna.create_study(direction=direction)
        study.add_trials([_single(trial, trial.values[index]) for trial in finite])
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
        shares[objective] = {key: float(share) for key, share in found.items()}
    return shares


def _single(trial: Any, value: float) -> Any:
    """Return a trial with one of its values as its only one."""
    import optuna

    return optuna.trial.create_trial(
        params=trial.params, distributions=trial.distributions, value=value
    )
