"""Intervals over seeds and rows against SciPy, analysis of variance by hand, and simulated coverage."""

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.crossed import Crossed, crossed, crossed_difference, crossed_of_means
from harness.records.scores import RowScores

stats: Any = scipy_stats


def scores(values: Any, weights: Any = None) -> list[RowScores]:
    table = np.asarray(values, dtype=float)
    ones = np.ones(table.shape[1], dtype=int) if weights is None else np.asarray(weights)
    return [
        RowScores(rows=tuple(range(len(row))), sums=tuple(row * ones), weights=tuple(ones.tolist()))
        for row in table
    ]


def test_the_variance_is_that_of_the_mean_squares_by_hand() -> None:
    """Two seeds, three rows: mean squares 6 (seeds), 18 (rows) and 2 (rest)."""
    found = crossed(scores([[1, 5, 6], [3, 5, 10]]))
    assert found is not None
    assert found.mean == 5
    # Rows' means 2, 5, 8: 2 * 18 / 2; seeds' 4, 6: 3 * 2 / 1; in all 46 = 36 + 6 + 4.
    by_row, by_seed, rest = 18, 6, 2
    assert found.variance == pytest.approx((by_row + by_seed - rest) / 6)
    satterthwaite = 22**2 / (18**2 / 2 + 6**2 / 1 + 2**2 / 2)
    assert found.freedom == pytest.approx(satterthwaite)
    interval = found.interval()
    half = stats.t(satterthwaite).ppf(0.975) * np.sqrt(22 / 6)
    assert (interval.low, interval.high) == pytest.approx((5 - half, 5 + half))


def test_where_seeds_agree_on_every_row_the_rows_are_all_there_is() -> None:
    row = [0.2, 1.4, 0.9, 0.5, 2.0, 1.1]
    found = crossed(scores([row, row, row]))
    assert found is not None
    theirs = stats.ttest_1samp(row, 0).confidence_interval(0.95)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))


def test_where_rows_agree_the_seeds_are_all_there_is() -> None:
    of_seed = [0.2, 1.4, 0.9]
    found = crossed(scores([[value] * 50 for value in of_seed]))
    assert found is not None
    theirs = stats.ttest_1samp(of_seed, 0).confidence_interval(0.95)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))


def test_rows_of_unlike_weight_are_the_ratio_estimator() -> None:
    """Seeds that agree: the standard error of the record, Cochran's eq. 6.13, times one number."""
    values, weights = np.array([0.5, 1.0, 2.0, 0.1]), np.array([4, 1, 2, 8])
    found = crossed(scores([values, values], weights))
    assert found is not None
    ratio = float(values @ weights / weights.sum())
    assert found.mean == pytest.approx(ratio)
    residual = weights * (values - ratio)
    assert found.variance == pytest.approx(4 / 3 * (residual @ residual) / weights.sum() ** 2)


@pytest.mark.parametrize("right", [0, 40])
def test_a_share_without_exception_has_wilsons_interval_of_its_rows(right: int) -> None:
    row = [float(index < right) for index in range(40)]
    found = crossed(scores([row] * 3))
    assert found is not None
    interval = found.share_interval()
    theirs = stats.binomtest(right, 40).proportion_ci(0.95, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))


def test_a_share_of_rows_on_which_seeds_agree_is_nearly_wilsons() -> None:
    row = [float(index % 10 < 9) for index in range(400)]
    found = crossed(scores([row] * 3))
    assert found is not None
    interval = found.share_interval()
    theirs = stats.binomtest(360, 400).proportion_ci(0.95, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=5e-4)


def test_a_difference_takes_each_row_with_itself() -> None:
    hard = np.linspace(0, 9, 30)  # rows differ by far more than the cells do
    a, b = scores([hard + 0.1, hard + 0.3]), scores([hard, hard])
    found = crossed_difference(list(zip(a, b, strict=True)))
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    theirs = stats.ttest_1samp([0.1, 0.3], 0).confidence_interval(0.95)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))


def test_other_rows_or_weights_are_not_crossed() -> None:
    one, other = scores([[1, 2, 3]])[0], scores([[1, 2, 3]], [1, 1, 2])[0]
    elsewhere = RowScores(rows=(0, 1, 7), sums=(1, 2, 3), weights=(1, 1, 1))
    assert crossed([one, other]) is None
    assert crossed([one, elsewhere]) is None
    assert crossed([one]) is None
    assert crossed([]) is None


def test_means_and_their_errors_alone_give_no_narrower_an_interval() -> None:
    generator = np.random.default_rng(3)
    chance = 1 / (1 + np.exp(-generator.normal(1, 1, 80)))
    table = (generator.random((4, 80)) < chance).astype(float)
    whole = crossed(scores(table))
    means, errors = table.mean(1), table.std(1, ddof=1) / np.sqrt(80)
    rough = crossed_of_means(means.tolist(), errors.tolist(), 80)
    assert whole is not None
    assert rough is not None
    assert rough.mean == pytest.approx(whole.mean)
    assert rough.variance >= whole.variance


def test_nineteen_of_twenty_intervals_hold_the_truth_of_other_seeds_and_rows() -> None:
    generator = np.random.default_rng(0)
    tables, held = 400, 0
    for _ in range(tables):
        table = generator.normal(0, 0.3, (5, 1)) + generator.normal(0, 1, 60)
        found = crossed(scores(table + generator.normal(0, 0.5, (5, 60))))
        assert found is not None
        held += found.interval().contains(0.0)
    assert abs(held / tables - 0.95) < 3 * np.sqrt(0.05 * 0.95 / tables)


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """The shares p that lie z of their own standard errors from what was found (Wilson 1927)."""
    # (share - p)^2 = z^2 p (1 - p) / n, a quadratic in p
    low, high = sorted(np.roots([1 + z**2 / n, -2 * share - z**2 / n, share**2]).real)
    return float(low), float(high)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_a_share_has_wilsons_interval_of_its_effective_number_of_answers(confidence: float) -> None:
    """Kish 1965: p(1 - p) over the variance; Korn and Graubard 1998: times (z/t)^2."""
    table = [[1, 1, 0, 1, 0, 1, 1, 1], [1, 0, 0, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1, 0, 1]]
    found = crossed(scores(table))
    assert found is not None
    p = float(np.mean(table))
    z, t = stats.norm.ppf((1 + confidence) / 2), stats.t(found.freedom).ppf((1 + confidence) / 2)
    n = p * (1 - p) / found.variance * (z / t) ** 2
    assert n < 24
    interval = found.share_interval(confidence)
    assert (interval.low, interval.high) == pytest.approx(wilson(p, n, z))
    assert (interval.mean, interval.n, interval.deviation) == (pytest.approx(p), 3, None)


def test_answers_count_at_most_once_each() -> None:
    """Seeds and rows that balance out: less than binomial variance is no more answers than there are."""
    found = Crossed(mean=0.5, variance=1e-6, freedom=1e9, seeds=3, rows=8)
    z = stats.norm.ppf(0.975)
    interval = found.share_interval()
    assert (interval.low, interval.high) == pytest.approx(wilson(0.5, 24, z), rel=1e-6)


def test_a_share_on_which_every_seed_and_row_agree_is_that_of_the_rows() -> None:
    found = crossed(scores([[0.25] * 8] * 3))
    assert found is not None
    assert found.variance == 0
    interval = found.share_interval()
    expected = wilson(0.25, 8, stats.norm.ppf(0.975))
    assert (interval.low, interval.high) == pytest.approx(expected)


@pytest.mark.parametrize(("mean", "end"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_share_of_none_or_all_ends_there(mean: float, end: float) -> None:
    interval = Crossed(mean=mean, variance=0.0, freedom=2.0, seeds=3, rows=7).share_interval()
    z = stats.norm.ppf(0.975)
    assert interval.low is not None
    assert interval.high is not None
    far = z**2 / (7 + z**2)  # where (0 - p)^2 = z^2 p (1 - p) / 7
    assert (interval.low, interval.high) == pytest.approx((0, far) if end == 0 else (1 - far, 1))
    assert end in (interval.low, interval.high)


def test_means_with_their_errors_by_hand() -> None:
    found = crossed_of_means([1.0, 2.0, 6.0], [0.1, 0.2, 0.4], 11)
    assert found is not None
    of_seeds, of_rows = 7 / 3, (0.01 + 0.04 + 0.16) / 3
    assert found.mean == 3.0
    assert found.variance == pytest.approx(of_seeds + of_rows)
    freedom = (of_seeds + of_rows) ** 2 / (of_seeds**2 / 2 + of_rows**2 / 10)
    assert found.freedom == pytest.approx(freedom)
    assert (found.seeds, found.rows) == (3, 11)
    nothing = crossed_of_means([1.0, 1.0], [0.0, 0.0], 11)
    assert nothing is not None
    assert (nothing.variance, nothing.freedom) == (0.0, 10.0)
    assert crossed_of_means([1.0], [0.1], 11) is None
    assert crossed_of_means([1.0, 2.0], [0.1, 0.1], 1) is None
    assert crossed_of_means([1.0, 2.0], [0.1, 0.1], 2) is not None


def test_rows_without_weight_are_no_rows() -> None:
    weights = [2, 0, 1, 1]
    table = np.array([[1.0, 9.0, 3.0, 2.0], [1.5, 7.0, 2.0, 2.5]])
    found, without = (
        crossed(scores(table, weights)),
        crossed(scores(table[:, [0, 2, 3]], [2, 1, 1])),
    )
    assert found == without
    assert found is not None
    assert found.rows == 3
    assert crossed(scores(table[:, :2], [2, 0])) is None, "one row is left"
    assert crossed(scores(table[:, [0, 2]], [2, 1])) is not None


@pytest.mark.parametrize("seed", range(6))
def test_the_variance_of_any_table_is_that_of_its_sums_of_squares(seed: int) -> None:
    """The rest by difference: all squares less those of seeds and rows (Searle and others 1992)."""
    generator = np.random.default_rng(seed)
    seeds, rows = 3 + seed % 2, 7
    table = generator.normal(0, 1.3, (seeds, 1)) * (seed != 4) + generator.normal(0, 0.9, rows) * (
        seed != 5
    )
    table = table + generator.normal(0, 0.6, (seeds, rows)) + 5
    whole = table.mean()
    of_seeds = rows * sum((row.mean() - whole) ** 2 for row in table)
    of_rows = seeds * sum((column.mean() - whole) ** 2 for column in table.T)
    rest = sum((value - whole) ** 2 for value in table.ravel()) - of_seeds - of_rows
    freedoms = (seeds - 1, rows - 1, (seeds - 1) * (rows - 1))
    by_seed, by_row, left = (
        s / f for s, f in zip((of_seeds, of_rows, rest), freedoms, strict=True)
    )
    joint = by_seed + by_row - left
    found = crossed(scores(table))
    assert found is not None
    if joint > max(by_seed, by_row):
        terms = by_seed**2 / freedoms[0] + by_row**2 / freedoms[1] + left**2 / freedoms[2]
        expected = joint / (seeds * rows), joint**2 / terms
    elif by_seed >= by_row:
        expected = by_seed / (seeds * rows), freedoms[0]
    else:
        expected = by_row / (seeds * rows), freedoms[1]
    assert (found.variance, found.freedom) == pytest.approx(expected)
    assert (found.seeds, found.rows, found.mean) == (seeds, rows, pytest.approx(whole))
