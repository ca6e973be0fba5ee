"""Intervals, paired differences, tests, Pareto fronts and effects, as pure functions of numbers.

Seeds are the replicates: every interval and test here is over seeds (or over blocks, where it says so), never
over the rows of an evaluation. SciPy and Optuna are imported by the functions that need them: together they
take 0.4 s, and most readers of records need neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from analysis.intervals import (
    Interval,
    bootstrap_interval,
    mean_and_deviation,
    mean_interval,
    t_quantile,
)
from harness.records.metrics import Direction

__all__ = [
    "Effect",
    "Interval",
    "Paired",
    "bootstrap_interval",
    "difference_interval",
    "holm",
    "importance",
    "marginal_effects",
    "mean_interval",
    "paired_difference",
    "pareto_front",
    "proportion_standard_error",
    "sign_flip_p_value",
]

EXACT_SIGN_FLIPS = 14
"""Up to this many pairs all 2^n assignments of signs are looked at; beyond it Wilcoxon's test is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The mean of a - b over the seeds that both have."""

    difference: float
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    """Two-sided; None for a single pair."""
    method: str
    """Test that gave the p-value: `sign flips` (exact) or `Wilcoxon`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What changing one factor from one level to another does while the others stay as they are."""

    factor: str
    level: Any
    reference: Any
    change: Paired
    """Over blocks: its n counts combinations of the other factors in which both levels were measured."""


def paired_difference(
    a: Mapping[Any, float], b: Mapping[Any, float], confidence: float = 0.95
) -> Paired:
    """Compare two cells by the seeds that both have: mean of a - b, its t-interval, and a two-sided test.

    The test flips signs exactly up to 14 pairs and is Wilcoxon's signed-rank test beyond. With n pairs the
    exact p-value is at least 2^(1-n): three seeds can show nothing below .25.

    Raises ValueError where no seed is shared or a value is not finite.
    """
    shared = [seed for seed in a if seed in b]
    if not shared:
        raise ValueError(f"no seed is shared: {sorted(map(str, a))} and {sorted(map(str, b))}")
    differences = [a[seed] - b[seed] for seed in shared]
    interval = mean_interval(differences, confidence)
    p_value, method = _tested(differences)
    return Paired(
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        n=len(shared),
        p_value=p_value,
        method=method,
    )


def difference_interval(
    a: Mapping[Any, float], b: Mapping[Any, float], confidence: float = 0.95
) -> Interval | None:
    """Return the interval of mean(a) - mean(b): paired over the seeds that both have, else Welch's (1947).

    None where neither can be had: fewer than two seeds shared, and fewer than two in one of them.
    """
    shared = [seed for seed in a if seed in b]
    if len(shared) >= 2:
        return mean_interval([a[seed] - b[seed] for seed in shared], confidence)
    if min(len(a), len(b)) < 2:
        return None
    (mean_a, deviation_a), (mean_b, deviation_b) = map(
        mean_and_deviation, (list(a.values()), list(b.values()))
    )
    share_a, share_b = ((deviation_a or 0.0) ** 2 / len(a), (deviation_b or 0.0) ** 2 / len(b))
    variance, mean = share_a + share_b, mean_a - mean_b
    if variance == 0:
        half = 0.0
    else:
        squares = share_a**2 / (len(a) - 1) + share_b**2 / (len(b) - 1)
        half = t_quantile(variance**2 / squares, confidence) * math.sqrt(variance)
    return Interval(
        mean=mean, low=mean - half, high=mean + half, n=min(len(a), len(b)), deviation=None
    )


def _tested(differences: Sequence[float]) -> tuple[float | None, str]:
    n = len(differences)
    if n == 1:
        return None, "sign flips"
    if n <= EXACT_SIGN_FLIPS:
        return sign_flip_p_value(differences), "sign flips"
    if not any(differences):
        return 1.0, "Wilcoxon"
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue), "Wilcoxon"  # pyright: ignore[reportAttributeAccessIssue]


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


def proportion_standard_error(share: float, n: int) -> float | None:
    """Return the standard error of an accuracy over `n` independent answers; None for a single one.

    That of the sample mean of zeros and ones, sqrt(p(1-p)/(n-1)), as in the records. Raises ValueError for a
    share outside 0 to 1 or n < 1.
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"expected a share from 0 to 1 and n >= 1, got share={share}, n={n}")
    return None if n == 1 else math.sqrt(share * (1 - share) / (n - 1))


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
    confidence: float = 0.95,
) -> list[Effect]:
    """Return what each change of `factor` does to `metric` with the `others` held fixed.

    Rows in which all `others` are equal (name the seed among them to pair by it) form a block; each pair of
    levels is compared within blocks, and the interval is over blocks: it says how steady the effect is across
    them. Rows without a value are left out; a pair of levels that no block has both of is, too.

    Raises ValueError where two rows of a block have the same level: then something else varies.
    """
    blocks: dict[Any, dict[tuple[Any, ...], float]] = {}
    for row in rows:
        if (value := row.get(metric)) is None or not math.isfinite(value):
            continue
        block = tuple(row.get(key) for key in others)
        of_level = blocks.setdefault(row.get(factor), {})
        if block in of_level:
            raise ValueError(
                f"two rows have {factor}={row.get(factor)} and {dict(zip(others, block, strict=True))}: "
                "name what else varies among `others`"
            )
        of_level[block] = value
    effects = []
    for reference, level in combinations(blocks, 2):
        if blocks[reference].keys() & blocks[level].keys():
            change = paired_difference(blocks[level], blocks[reference], confidence)
            effects.append(Effect(factor=factor, level=level, reference=reference, change=change))
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
    if len(finite) < 4:
        raise ValueError(f"{len(finite)} completed trials of {name}: importance needs 4 or more")
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
