"""Tests that decide: paired contrasts of a family, equivalence, the best of several, interaction. Pure.

Seeds are the replicates and pair the cells. One inference a table: paired t-tests, or exact sign flips where
there are enough pairs for them to decide; Holm's procedure over the family; intervals at the level at which
Holm tested each line, so that an interval excludes 0 exactly where the adjusted p is below .05.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np

from analysis.intervals import Interval, mean_and_deviation, t_quantile
from analysis.statistics import holm, sign_flip_p_value
from harness.question.power import ALPHA, POWER

FEWEST_FOR_EXACT = 6
MOST_FOR_EXACT = 14
MOST_NEEDED = 1000
"""Above so many seeds a number needed is not stated."""
BISECTIONS = 40
POOLED_FROM = 0.5
"""p of Bartlett's test on what is left without the seeds' parts, from which deviations are pooled.

At 5 % it misses, from few seeds, a deviation three times the others': such a cell, pooled, would be
wrongly set apart in 13 % of tables (`bench.inference`).
"""


class Method(Enum):
    """How the differences of a family are tested."""

    paired_t = "paired t"
    sign_flips = "exact sign flips"


class Verdict(Enum):
    """What a contrast shows at the 5 % level, adjusted."""

    above = "above"
    below = "below"
    equivalent = "equivalent"
    undecided = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """One contrast of a family: a mean difference over pairs of seeds, and what it shows."""

    difference: float
    low: float | None
    high: float | None
    confidence: float
    """Of the interval: 1 minus the level at which Holm's procedure tested it."""
    n: int
    p_value: float | None
    """Two-sided, Holm-adjusted; None for a single pair."""
    equivalence_p: float | None
    """Of two one-sided tests against the margin (Schuirmann 1987), Holm-adjusted; None without a margin."""
    verdict: Verdict
    within_margin: bool
    """Whether the difference is shown to be smaller than the margin, whichever side of 0 it is on."""
    needed: int | None
    """Seeds that would probably (8 in 10) decide it; None where it is decided or nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Contrasts that are tested together."""

    method: Method
    tested: tuple[Tested | None, ...]
    """None for a contrast without a pair."""


def family_of(families: Sequence[Sequence[float]], margin: float | None) -> Family:
    """Test each contrast's differences, one per pair of seeds, against 0 and against a margin."""
    testable = [len(each) for each in families if len(each) >= 2]
    method = method_for(testable)
    raw = [two_sided_p(each, method) if len(each) >= 2 else None for each in families]
    adjusted, levels = holm(raw), _levels(raw)
    equal: list[float | None] = [None] * len(families)
    if margin is not None:
        equal = holm([equivalence_p(d, margin, method) if len(d) >= 2 else None for d in families])
    tested = [
        _tested(differences, method, p, level, p_equal, margin) if differences else None
        for differences, p, level, p_equal in zip(families, adjusted, levels, equal, strict=True)
    ]
    return Family(method=method, tested=tuple(tested))


def method_for(pairs: Sequence[int]) -> Method:
    """Return exact sign flips where pairs are enough for their least p to pass Holm's first step."""
    if not pairs or min(pairs) < FEWEST_FOR_EXACT or max(pairs) > MOST_FOR_EXACT:
        return Method.paired_t
    least = 2.0 ** (1 - min(pairs))
    return Method.sign_flips if least * len(pairs) < ALPHA else Method.paired_t


def _levels(p_values: Sequence[float | None]) -> list[float]:
    """Return the level at which Holm's procedure tested each; those after its stop share the last."""
    given = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    levels = [ALPHA] * len(p_values)
    level, stopped = ALPHA, False
    for rank, (p, index) in enumerate(given):
        if not stopped:
            level = ALPHA / (len(given) - rank)
            stopped = p >= level
        levels[index] = level
    return levels


def _tested(
    differences: Sequence[float],
    method: Method,
    p: float | None,
    level: float,
    p_equal: float | None,
    margin: float | None,
) -> Tested:
    mean, deviation = mean_and_deviation(differences)
    low = high = None
    if deviation is not None:
        low, high = interval_of(differences, method, 1 - level)
    is_equal = p_equal is not None and p_equal < ALPHA
    if p is not None and p < ALPHA:
        verdict = Verdict.above if mean > 0 else Verdict.below
    else:
        verdict = Verdict.equivalent if is_equal else Verdict.undecided
    target = margin if margin is not None else abs(mean)
    needed = pairs_needed(deviation, target) if verdict is Verdict.undecided else None
    return Tested(
        difference=mean,
        low=low,
        high=high,
        confidence=1 - level,
        n=len(differences),
        p_value=p,
        equivalence_p=p_equal,
        verdict=verdict,
        within_margin=is_equal,
        needed=None if needed is None or needed <= len(differences) else needed,
    )


def two_sided_p(differences: Sequence[float], method: Method) -> float:
    """Return the p-value of the mean of two or more differences."""
    if method is Method.sign_flips:
        return sign_flip_p_value(differences)
    return min(1.0, 2 * _upper_tail(differences, 0.0, by_size=True))


def equivalence_p(differences: Sequence[float], margin: float, method: Method) -> float:
    """Return the larger p of the two one-sided tests that the mean is above -margin and below +margin."""
    if method is Method.paired_t:
        return max(
            _upper_tail(differences, -margin), _upper_tail([-d for d in differences], -margin)
        )
    return max(
        _one_sided_flips([d + margin for d in differences]),
        _one_sided_flips([margin - d for d in differences]),
    )


def _upper_tail(differences: Sequence[float], at: float, *, by_size: bool = False) -> float:
    """Return P(T >= t) of the mean against `at`; `by_size` takes the size of t."""
    from scipy.special import stdtr

    mean, deviation = mean_and_deviation(differences)
    assert deviation is not None, "one pair is not tested"
    shift = abs(mean - at) if by_size else mean - at
    if deviation == 0:
        return 0.5 if shift == 0 else float(shift < 0)
    n = len(differences)
    return float(stdtr(n - 1, -shift * math.sqrt(n) / deviation))


def _one_sided_flips(differences: Sequence[float]) -> float:
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    observed = math.fsum(differences)
    rounding = 1e-12 * math.fsum(map(abs, differences))
    return float(np.count_nonzero(sums >= observed - rounding)) / len(sums)


def interval_of(
    differences: Sequence[float], method: Method, confidence: float
) -> tuple[float, float]:
    """Return the interval of the mean of two or more differences that goes with the test.

    That of sign flips holds every shift that the test does not reject.
    """
    mean, deviation = mean_and_deviation(differences)
    assert deviation is not None, "one pair has no interval"
    if method is Method.paired_t:
        half = (
            t_quantile(len(differences) - 1, confidence) * deviation / math.sqrt(len(differences))
        )
        return mean - half, mean + half
    reach = max(abs(each - mean) for each in differences)
    return tuple(  # pyright: ignore[reportReturnType]
        _end(differences, mean, side * 2 * reach, 1 - confidence) for side in (-1, 1)
    )


def _end(differences: Sequence[float], mean: float, away: float, level: float) -> float:
    """Return the farthest shift towards mean + away that is not rejected, by bisection."""
    kept, rejected = 0.0, away
    for _ in range(BISECTIONS):
        middle = (kept + rejected) / 2
        p = sign_flip_p_value([each - mean - middle for each in differences])
        if p >= level:
            kept = middle
        else:
            rejected = middle
    return mean + kept


def pairs_needed(deviation: float | None, target: float) -> int | None:
    """Return the pairs with which a paired t-test finds a difference of `target` in 8 cases of 10.

    `deviation` is that of the differences, from pairs that are few: a rough figure. None where it is unknown,
    zero, or above 1,000.
    """
    from scipy.special import stdtrit

    if not deviation or not target:
        return None
    for pairs in range(2, MOST_NEEDED):
        reach = stdtrit(pairs - 1, 1 - ALPHA / 2) + stdtrit(pairs - 1, POWER)
        if pairs >= (deviation / target * reach) ** 2:
            return pairs
    return None


# Interaction --------------------------------------------------------------------------------------


def interaction_p(differences_by_seed: Sequence[Sequence[float]]) -> float | None:
    """Return the p-value that a difference is the same at every level of another factor.

    A row per seed, a column per level: repeated-measures analysis of variance over the levels, its degrees of
    freedom corrected for unlike covariances (Greenhouse and Geisser 1959). None for fewer than two seeds or
    levels, or where nothing varies.
    """
    from scipy.special import fdtrc

    table_SL = np.asarray(differences_by_seed, dtype=float)
    if table_SL.ndim != 2 or min(table_SL.shape) < 2:
        return None
    seeds, levels = table_SL.shape
    of_level_L = table_SL.mean(axis=0) - table_SL.mean()
    rest_SL = (
        table_SL - table_SL.mean(axis=0) - table_SL.mean(axis=1, keepdims=True) + table_SL.mean()
    )
    error = float((rest_SL**2).sum()) / ((levels - 1) * (seeds - 1))
    if error == 0:
        return None
    ratio = seeds * float((of_level_L**2).sum()) / (levels - 1) / error
    shared_LL = rest_SL.T @ rest_SL
    epsilon = float(np.trace(shared_LL)) ** 2 / (float((shared_LL**2).sum()) * (levels - 1))
    freedom = epsilon * (levels - 1)
    return float(fdtrc(freedom, freedom * (seeds - 1), ratio))


# The best of several ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AmongBest:
    """What comparisons with the best say of one of several cells."""

    may_be_best: bool
    interval: Interval | None
    """Of its mean minus that of the best of the others, constrained to reach 0; None without Hsu's method."""


def compare_with_best(
    cells: Sequence[Mapping[Any, float]], *, smaller_is_better: bool
) -> tuple[list[AmongBest], str] | None:
    """Say of each cell (value by seed) whether it may be the best, with 5 % error for the whole set.

    Hsu's multiple comparisons with the best (1984), the deviation pooled over cells, seeds as blocks
    where all cells have the same; and the pair's own differences must agree at the 5 % level. Where
    Bartlett's test does not speak for like deviations, each pair of cells by its own: one is set apart if
    some other is better at level .05/(k - 1) (Gupta's subset). Returns None for fewer than two cells or
    seeds, else a line per cell and the method's name.
    """
    if len(cells) < 2 or min(map(len, cells)) < 2:
        return None
    sign = 1.0 if smaller_is_better else -1.0
    values = [{seed: sign * value for seed, value in cell.items()} for cell in cells]
    pooled = _pooled(values)
    if pooled is None:
        return None
    deviation, freedom, residuals, blocked = pooled
    if all(len(set(cell.values())) == 1 for cell in values):  # counted, not measured
        least = min(next(iter(cell.values())) for cell in values)
        exact = [next(iter(cell.values())) == least for cell in values]
        return [AmongBest(may_be_best=best, interval=None) for best in exact], "nothing varies"
    raw = [list(cell.values()) for cell in values]
    if deviation > 0 and _alike(raw, ALPHA) and (len(cells) == 2 or _alike(residuals, POOLED_FROM)):
        found = _hsu(values, deviation, freedom, sign)
        how = "seeds as blocks" if blocked else "seeds not shared"
        return found, f"Hsu's comparisons with the best, {how}"
    return _subset(values), "each pair by its own spread, 5 %/(k - 1) one-sided"


def _pooled(
    cells: Sequence[Mapping[Any, float]],
) -> tuple[float, int, list[list[float]], bool] | None:
    """Return the deviation within cells, its degrees of freedom, what it is of, and if seeds are blocks."""
    seeds = list(cells[0])
    blocked = all(set(cell) == set(seeds) for cell in cells)
    if blocked:
        table_KS = np.array([[cell[seed] for seed in seeds] for cell in cells])
        rest_KS = table_KS - table_KS.mean(1, keepdims=True) - table_KS.mean(0) + table_KS.mean()
        freedom = (len(cells) - 1) * (len(seeds) - 1)
        deviation = math.sqrt(float((rest_KS**2).sum()) / freedom)
        return deviation, freedom, rest_KS.tolist(), True
    squares = math.fsum(
        (mean_and_deviation(list(c.values()))[1] or 0.0) ** 2 * (len(c) - 1) for c in cells
    )
    freedom = sum(len(cell) - 1 for cell in cells)
    return math.sqrt(squares / freedom), freedom, [list(cell.values()) for cell in cells], False


def _alike(groups: Sequence[Sequence[float]], least_p: float) -> bool:
    """Whether Bartlett's test (1937) finds the groups' deviations so like that its p is at least that."""
    from scipy.stats import bartlett

    if any(
        len(set(group)) == 1 for group in groups
    ):  # one that varies is unlike one that never does
        return False
    return bool(bartlett(*groups).pvalue >= least_p)  # pyright: ignore[reportAttributeAccessIssue]


def _hsu(
    cells: Sequence[Mapping[Any, float]], deviation: float, freedom: int, sign: float
) -> list[AmongBest]:
    means = [math.fsum(cell.values()) / len(cell) for cell in cells]
    critical = one_sided_many_to_one(len(cells) - 1, freedom)
    found = []
    for index, mean in enumerate(means):
        others = [other for other in range(len(cells)) if other != index]
        reach = {
            o: critical * deviation * math.sqrt(1 / len(cells[index]) + 1 / len(cells[o]))
            for o in others
        }
        distance = mean - min(means[o] for o in others)
        low = max(
            min(0.0, gap) if gap > 0 and not _is_larger(cells[index], cells[o], ALPHA) else gap
            for o in others
            for gap in [mean - means[o] - reach[o]]
        )
        high = max(mean - means[o] + reach[o] for o in others)
        ends = sorted((sign * min(0.0, low), sign * max(0.0, high)))
        interval = Interval(
            mean=sign * distance, low=ends[0], high=ends[1], n=len(cells[index]), deviation=None
        )
        found.append(AmongBest(may_be_best=low <= 0, interval=interval))
    return found


@lru_cache(maxsize=64)
def one_sided_many_to_one(count: int, freedom: int, level: float = ALPHA) -> float:
    """Return Dunnett's (1955) one-sided critical value for `count` groups against one of equal size."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    spread, of_spread = _scaled_chi(freedom)

    def within(critical: float) -> float:
        inside = ndtr(nodes[None, :] + math.sqrt(2) * critical * spread[:, None]) ** count
        return float(of_spread @ (inside @ weights))

    return float(brentq(lambda critical: within(critical) - (1 - level), 0.0, 200.0))  # pyright: ignore


def _scaled_chi(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights of s/sigma: the square root of a chi-square over its degrees of freedom."""
    from scipy.special import chdtri

    shares = (np.arange(2000) + 0.5) / 2000
    return np.sqrt(chdtri(freedom, 1 - shares) / freedom), np.full(2000, 1 / 2000)


def _subset(cells: Sequence[Mapping[Any, float]]) -> list[AmongBest]:
    level = ALPHA / (len(cells) - 1)
    found = []
    for index, cell in enumerate(cells):
        beaten = any(
            _is_larger(cell, other, level) for place, other in enumerate(cells) if place != index
        )
        found.append(AmongBest(may_be_best=not beaten, interval=None))
    return found


def _is_larger(a: Mapping[Any, float], b: Mapping[Any, float], level: float) -> bool:
    """Whether a's mean is above b's: paired over shared seeds, else Welch's test (1947)."""
    from scipy.stats import ttest_ind

    shared = [a[seed] - b[seed] for seed in a if seed in b]
    if len(shared) >= 2:
        return _upper_tail(shared, 0.0) < level
    one, other = list(a.values()), list(b.values())
    if len(set(one)) == len(set(other)) == 1:
        return one[0] > other[0]
    welch = ttest_ind(one, other, equal_var=False, alternative="greater")
    return bool(welch.pvalue < level)  # pyright: ignore[reportAttributeAccessIssue]
