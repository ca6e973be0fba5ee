"""Contrasts, equivalence, the best of several and interaction, against SciPy, tables or numbers by hand."""

import math
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.inference import (
    Method,
    Verdict,
    _is_larger,
    compare_with_best,
    equivalence_p,
    family_of,
    interaction_p,
    interval_of,
    method_for,
    one_sided_many_to_one,
    pairs_needed,
)
from harness.question.power import power_of_paired_t, seeds_for_margin

stats: Any = scipy_stats  # whose results have attributes that its annotations lack
DIFFERENCES = [-0.0377, -0.0482, -0.0410]


def test_a_single_contrast_is_scipys_paired_t_test() -> None:
    (found,) = family_of([DIFFERENCES], None).tested
    theirs = stats.ttest_1samp(DIFFERENCES, 0)
    ends = theirs.confidence_interval(0.95)
    assert found is not None
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.verdict is Verdict.below


def test_an_interval_excludes_zero_exactly_where_the_adjusted_p_is_small() -> None:
    generator = np.random.default_rng(5)
    for _ in range(200):
        shifts = generator.choice([0.0, 1.0, 3.0], size=4)
        family = family_of([list(generator.normal(s, 1.0, 5)) for s in shifts], None)
        for found in family.tested:
            assert found is not None
            assert found.p_value is not None
            assert found.low is not None
            assert found.high is not None
            assert (found.low > 0 or found.high < 0) == (found.p_value < 0.05)


def test_sign_flips_are_taken_only_where_they_can_decide() -> None:
    six, three = [list(np.arange(6) + 1.0)], [[1.0, 2.0, 3.0]]
    assert family_of(six, None).method is Method.sign_flips
    assert family_of(six * 2, None).method is Method.paired_t, "2/64 times 2 is above .05"
    assert family_of(three, None).method is Method.paired_t


@pytest.mark.parametrize(
    ("pairs", "method"),
    [
        ((6,), Method.sign_flips),
        ((14,), Method.sign_flips),
        ((15,), Method.paired_t),
        ((5,), Method.paired_t),
        ((5, 8), Method.paired_t),
        ((8, 15), Method.paired_t),
        ((8, 9, 10), Method.sign_flips),  # 1/128 times 3 is below .05
        ((7, 7, 7, 7), Method.paired_t),  # 1/64 times 4 is above
        ((), Method.paired_t),
    ],
)
def test_every_line_of_a_table_must_be_decidable_by_sign_flips(pairs, method) -> None:
    assert method_for(pairs) is method


def test_an_interval_of_sign_flips_holds_what_they_do_not_reject() -> None:
    differences = [1.2, 0.4, 2.2, 1.9, 0.8, 1.1, -0.3]
    low, high = interval_of(differences, Method.sign_flips, 0.95)
    for shift, inside in ((low + 1e-6, True), (low - 1e-3, False), (high + 1e-3, False)):
        theirs = stats.permutation_test(
            (np.array(differences) - shift, np.zeros(7)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=10_000,
        )
        assert (theirs.pvalue >= 0.05) == inside


def test_equivalence_is_two_one_sided_tests() -> None:
    p = equivalence_p(DIFFERENCES, 0.06, Method.paired_t)
    lower = stats.ttest_1samp(DIFFERENCES, -0.06, alternative="greater").pvalue
    upper = stats.ttest_1samp(DIFFERENCES, 0.06, alternative="less").pvalue
    assert p == pytest.approx(max(lower, upper))
    (found,) = family_of([[0.001, -0.001, 0.0005]], 0.01).tested
    assert found is not None
    assert found.verdict is Verdict.equivalent
    (both,) = family_of([DIFFERENCES], 0.08).tested
    assert both is not None
    assert (both.verdict, both.within_margin) == (Verdict.below, True)


def test_what_is_not_decided_says_how_many_seeds_would() -> None:
    (found,) = family_of([[0.5, -0.2, 0.1]], 0.2).tested
    assert found is not None
    assert found.verdict is Verdict.undecided
    deviation = float(np.std([0.5, -0.2, 0.1], ddof=1))
    n = found.needed
    assert n is not None
    power = stats.nct(n - 1, 0.2 / deviation * np.sqrt(n)).sf(stats.t(n - 1).ppf(0.975))
    assert power == pytest.approx(0.8, abs=0.03)
    assert pairs_needed(0.0, 0.1) is None


def test_one_pair_has_a_difference_and_no_test() -> None:
    one, none = family_of([[0.5], []], 0.1).tested
    assert one is not None
    assert (one.difference, one.p_value, one.low, one.verdict) == (
        0.5,
        None,
        None,
        Verdict.undecided,
    )
    assert none is None


@pytest.mark.parametrize(("count", "freedom"), [(1, 10), (4, 20), (7, 14)])
def test_critical_values_are_those_of_the_multivariate_t(count: int, freedom: int) -> None:
    critical = one_sided_many_to_one(count, freedom)
    correlation = np.full((count, count), 0.5) + 0.5 * np.eye(count)
    joint = stats.multivariate_t(shape=correlation, df=freedom, seed=0)
    inside = joint.cdf(np.full(count, critical)) if count > 1 else stats.t(freedom).cdf(critical)
    assert inside == pytest.approx(0.95, abs=0.002)


def test_the_true_best_is_kept_in_at_least_95_of_100_tables() -> None:
    generator = np.random.default_rng(1)
    lost = 0
    for _ in range(300):
        seeds = generator.normal(0, 1, 3)
        cells = [dict(enumerate(seeds + generator.normal(0, 1, 3))) for _ in range(8)]
        found = compare_with_best(cells, smaller_is_better=True)
        assert found is not None
        lost += not found[0][0].may_be_best  # all are equal, so the first is a best one
    assert lost / 300 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_a_best_cell_that_varies_more_than_the_others_is_kept_likewise() -> None:
    generator = np.random.default_rng(2)
    lost = 0
    for _ in range(300):
        cells = [
            dict(enumerate(generator.normal(0, 3.0 if index == 0 else 1.0, 3)))
            for index in range(8)
        ]
        found = compare_with_best(cells, smaller_is_better=True)
        assert found is not None
        lost += not found[0][0].may_be_best
    assert lost / 300 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)  # pooled: 0.13


def test_a_cell_that_is_far_off_is_set_apart_also_where_spreads_differ() -> None:
    near = {0: 1.0, 1: 1.1, 2: 0.9}
    far = {0: 5.0, 1: 5.2, 2: 4.9}
    wild = {0: 90.0, 1: 300.0, 2: 150.0}
    found = compare_with_best([near, far], smaller_is_better=True)
    assert found is not None
    assert [each.may_be_best for each in found[0]] == [True, False]
    largest = compare_with_best([near, far], smaller_is_better=False)
    assert largest is not None
    assert [each.may_be_best for each in largest[0]] == [False, True]
    unlike = compare_with_best([near, far, wild], smaller_is_better=True)
    assert unlike is not None
    assert [each.may_be_best for each in unlike[0][:2]] == [True, False]


def test_what_is_counted_is_best_or_not() -> None:
    found = compare_with_best([{0: 3.0, 1: 3.0}, {5: 1.0, 6: 1.0}], smaller_is_better=True)
    assert found is not None
    assert [each.may_be_best for each in found[0]] == [False, True]


def test_an_interaction_of_two_levels_is_a_paired_t_test_of_the_differences() -> None:
    table = [[0.1, 0.5], [0.2, 0.4], [0.0, 0.6], [0.15, 0.7]]
    gaps = [b - a for a, b in table]
    assert interaction_p(table) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    assert interaction_p([[0.1, 0.2]]) is None


def test_false_interactions_are_rare() -> None:
    generator = np.random.default_rng(2)
    found = [interaction_p(generator.normal(size=(5, 4)).tolist()) for _ in range(1000)]
    share = sum(p is not None and p < 0.05 for p in found) / 1000
    assert share < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_power_is_that_of_simulated_pairs() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(2.0, 1, (20_000, 3)), generator.normal(0.0, 1, (20_000, 3))
    found = float((stats.ttest_rel(a, b, axis=1).pvalue < 0.05).mean())
    assert power_of_paired_t(3, 2.0) == pytest.approx(found, abs=0.012)
    assert 0.28 < power_of_paired_t(3, 2.0) < 0.30


def test_seeds_for_a_margin_show_equal_cells_to_be_equivalent() -> None:
    n = seeds_for_margin(1.0, 1.5, 100)
    generator = np.random.default_rng(4)
    differences = generator.normal(0, np.sqrt(2), (4000, n))
    low = stats.ttest_1samp(differences, -1.5, axis=1, alternative="greater").pvalue
    high = stats.ttest_1samp(differences, 1.5, axis=1, alternative="less").pvalue
    share = float((np.maximum(low, high) < 0.05).mean())
    assert share > 0.78
    assert seeds_for_margin(1.0, 0.01, 12) == 12


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_equivalence_by_sign_flips_counts_every_assignment(margin: float) -> None:
    differences = [0.3, -0.2, 0.9, 0.1, -0.6, 0.4]

    def share(shifted: list[float]) -> float:
        """Of all signs those with a sum at least as large, one by one."""
        sums = [
            sum(sign * each for sign, each in zip(signs, shifted, strict=True))
            for signs in product((1, -1), repeat=len(shifted))
        ]
        return sum(each >= sum(shifted) - 1e-9 for each in sums) / len(sums)

    expected = max(
        share([d + margin for d in differences]), share([margin - d for d in differences])
    )
    assert equivalence_p(differences, margin, Method.sign_flips) == expected


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_equivalence_by_sign_flips_is_the_same_in_every_unit(unit: float) -> None:
    differences = [0.3, -0.2, 0.9, 0.1, -0.6, 0.4]
    scaled = equivalence_p([unit * d for d in differences], unit, Method.sign_flips)
    assert scaled == equivalence_p(differences, 1.0, Method.sign_flips)
    # Two ones to the margin: of four sums the one of both is the largest; of -1 and 1 three are at least 0.
    assert equivalence_p([0.15 * unit, 0.1 * unit], 0.25 * unit, Method.sign_flips) == 1 / 4
    assert equivalence_p([0.5 * unit, 0.0], 0.25 * unit, Method.sign_flips) == 3 / 4


def test_equivalence_of_what_never_varies_is_certain_or_refuted() -> None:
    assert equivalence_p([0.125] * 3, 0.25, Method.paired_t) == 0.0
    assert equivalence_p([0.5] * 3, 0.25, Method.paired_t) == 1.0
    assert equivalence_p([0.25] * 3, 0.25, Method.paired_t) == 0.5


def test_cells_without_common_seeds_are_compared_by_welch() -> None:
    one, other = [3.0, 3.4, 2.9, 3.6], [2.1, 2.0, 2.6]
    a, b = dict(enumerate(one)), dict(enumerate(other, start=10))
    p = stats.ttest_ind(one, other, equal_var=False, alternative="greater").pvalue
    assert _is_larger(a, b, p * 1.001)
    assert not _is_larger(a, b, p * 0.999)
    assert not _is_larger(b, a, 0.5)
    paired = stats.ttest_rel(one[:3], other, alternative="greater").pvalue
    shared = dict(enumerate(other))
    assert _is_larger(a, shared, paired * 1.001)
    assert not _is_larger(a, shared, paired * 0.999)
    assert _is_larger(a, {0: 2.1, 11: 2.0, 12: 2.6}, p * 1.001), "one pair is no test of pairs"


def test_counted_cells_without_common_seeds_are_larger_or_not() -> None:
    assert _is_larger({0: 2.0, 1: 2.0}, {2: 1.0, 3: 1.0}, 0.05)
    assert not _is_larger({0: 1.0, 1: 1.0}, {2: 1.0, 3: 1.0}, 0.05)


@pytest.mark.parametrize("smaller_is_better", [True, False])
def test_what_is_counted_is_best_where_it_is_least_or_most(smaller_is_better: bool) -> None:
    cells = [{0: v, 1: v} for v in (2.0, 1.0, 3.0, 1.0)]
    found = compare_with_best(cells, smaller_is_better=smaller_is_better)
    assert found is not None
    best = 1.0 if smaller_is_better else 3.0
    assert [each.may_be_best for each in found[0]] == [cell[0] == best for cell in cells]
    assert found[1] == "nothing varies"
    assert compare_with_best(cells[:1], smaller_is_better=True) is None
    assert compare_with_best([{0: 1.0}, {0: 2.0, 1: 3.0}], smaller_is_better=True) is None


def test_an_interaction_that_nothing_tells_is_none() -> None:
    assert interaction_p([[1.0, 2.0]]) is None
    assert interaction_p([[1.0], [2.0]]) is None
    assert interaction_p([]) is None
    assert interaction_p([[1.0, 2.0], [2.0, 3.0]]) is None, "the rest is nothing"


@pytest.mark.parametrize(("seeds", "levels"), [(5, 3), (6, 4), (4, 5)])
def test_an_interaction_of_more_levels_is_the_corrected_analysis_of_variance(seeds, levels) -> None:
    """Epsilon from the eigenvalues of orthonormal contrasts (Box 1954), F from the table of squares."""
    generator = np.random.default_rng(seeds)
    table = generator.normal(size=(seeds, levels)) * np.arange(1, levels + 1) + generator.normal(
        size=(seeds, 1)
    )
    helmert = np.linalg.qr(np.column_stack([np.ones(levels), np.eye(levels)[:, 1:]]))[0][:, 1:]
    scores = table @ helmert
    values = np.linalg.eigvalsh(np.cov(scores, rowvar=False))
    epsilon = values.sum() ** 2 / ((levels - 1) * (values**2).sum())
    between = seeds * (scores.mean(0) ** 2).sum() / (levels - 1)
    within = ((scores - scores.mean(0)) ** 2).sum() / ((levels - 1) * (seeds - 1))
    freedoms = epsilon * (levels - 1), epsilon * (levels - 1) * (seeds - 1)
    assert 1 / (levels - 1) < epsilon < 1
    assert interaction_p(table) == pytest.approx(stats.f.sf(between / within, *freedoms))


# Numbers of pairs and ends of intervals, by hand ---------------------------------------------------


@pytest.mark.parametrize(
    ("deviation", "target"), [(1.0, 0.5), (1.0, 2.0), (0.3, 0.01), (2.0, 0.15)]
)
def test_the_pairs_needed_are_the_fewest_whose_quantiles_reach(
    deviation: float, target: float
) -> None:
    pairs = np.arange(2, 1000)
    reach = stats.t.ppf(0.975, pairs - 1) + stats.t.ppf(0.8, pairs - 1)
    enough = pairs[pairs >= (deviation / target * reach) ** 2]
    assert pairs_needed(deviation, target) == (enough[0] if len(enough) else None)


def test_above_999_pairs_no_number_is_named() -> None:
    reach = stats.t(998).ppf(0.975) + stats.t(998).ppf(0.8)
    last = reach / np.sqrt(999)
    assert pairs_needed(1.0, last * 1.0001) == 999
    assert pairs_needed(1.0, last * 0.9999) is None
    assert pairs_needed(None, 0.1) is None
    assert pairs_needed(1.0, 0.0) is None


def test_what_would_already_be_enough_is_not_asked_for() -> None:
    """Ten pairs that miss 5 % by a hair: with their deviation, ten would find the difference in 8 of 10."""
    differences = [1.0 + 0.8 * (-1) ** n for n in range(5)] + [-3.0]
    (found,) = family_of([differences], 3.0).tested
    assert found is not None
    deviation = float(np.std(differences, ddof=1))
    asked = pairs_needed(deviation, 3.0)
    assert asked is not None
    assert found.needed == (asked if asked > 6 and found.verdict is Verdict.undecided else None)
    (of_mean,) = family_of([[0.5, -0.4, 0.3]], None).tested
    assert of_mean is not None
    assert of_mean.needed == pairs_needed(float(np.std([0.5, -0.4, 0.3], ddof=1)), 0.4 / 3)


def test_holm_s_levels_are_those_at_which_each_was_tested() -> None:
    """p of .001 at .05/3, of .02 at .05/2, of .9 at .05; nothing is tested after the first that fails."""

    def pairs(t: float) -> list[float]:
        return [t / math.sqrt(3) + d for d in (-1.0, 0.0, 1.0)]

    low, middle, high = (float(stats.t(2).isf(p / 2)) for p in (0.001, 0.02, 0.9))
    found = family_of([pairs(high), pairs(low), [1.0], pairs(middle)], None).tested
    assert [each.confidence for each in found if each is not None] == pytest.approx(
        [0.95, 1 - 0.05 / 3, 0.95, 1 - 0.05 / 2]
    )
    stopped = family_of([pairs(high), pairs(low), pairs(high)], None).tested
    assert [each.confidence for each in stopped if each is not None] == pytest.approx(
        [1 - 0.05 / 2, 1 - 0.05 / 3, 1 - 0.05 / 2]
    )
    none = family_of([pairs(high), pairs(0.1)], None).tested
    assert [each.confidence for each in none if each is not None] == pytest.approx([0.975, 0.975])


# Comparisons with the best, by hand ----------------------------------------------------------------


@pytest.mark.parametrize("smaller_is_better", [True, False])
def test_of_two_cells_the_interval_is_the_constrained_one_of_their_pairs(smaller_is_better) -> None:
    one, other = [1.0, 1.4, 0.9, 1.3], [1.2, 1.5, 1.3, 1.4]
    found = compare_with_best(
        [dict(enumerate(one)), dict(enumerate(other))], smaller_is_better=smaller_is_better
    )
    assert found is not None
    assert found[1] == "Hsu's comparisons with the best, seeds as blocks"
    ends = stats.ttest_rel(one, other).confidence_interval(0.90)  # one-sided 5 % on each side
    difference = float(np.mean(one) - np.mean(other))
    for each, sign in zip(found[0], (1, -1), strict=True):
        assert each.interval is not None
        low, high = sorted((sign * ends.low, sign * ends.high))
        assert each.interval.mean == pytest.approx(sign * difference)
        assert each.interval.low == pytest.approx(min(0.0, low), abs=1e-4)
        assert each.interval.high == pytest.approx(max(0.0, high), abs=1e-4)
        assert each.interval.n == 4
    assert [each.may_be_best for each in found[0]] == [smaller_is_better, not smaller_is_better]


def test_of_two_cells_without_common_seeds_it_is_that_of_the_pooled_t_test() -> None:
    one, other = [1.0, 1.4, 0.9, 1.3], [1.3, 1.5, 1.2]
    cells = [dict(enumerate(one)), dict(enumerate(other, start=10))]
    found = compare_with_best(cells, smaller_is_better=True)
    assert found is not None
    assert found[1] == "Hsu's comparisons with the best, seeds not shared"
    ends = stats.ttest_ind(one, other).confidence_interval(0.90)
    first, second = found[0]
    assert first.interval is not None
    assert second.interval is not None
    assert (first.interval.low, first.interval.high) == pytest.approx(
        (min(0.0, ends.low), max(0.0, ends.high)), abs=1e-4
    )
    assert (second.interval.low, second.interval.high) == pytest.approx(
        (min(0.0, -ends.high), max(0.0, -ends.low)), abs=1e-4
    )
    assert first.may_be_best
    assert second.may_be_best, "its interval holds 0"


def test_of_more_cells_the_allowance_is_dunnetts() -> None:
    generator = np.random.default_rng(7)
    samples = [generator.normal(mean, 1.0, 6) for mean in (0.0, 0.4, 2.5)]
    cells = [dict(enumerate(each, start=10 * n)) for n, each in enumerate(samples)]
    found = compare_with_best(cells, smaller_is_better=True)
    assert found is not None
    for index, each in enumerate(found[0]):
        others = [sample for place, sample in enumerate(samples) if place != index]
        theirs = stats.dunnett(
            *others, control=samples[index], alternative="greater", rng=np.random.default_rng(0)
        )
        reach = (
            theirs.statistic * 0
        )  # the allowance: how far the lower end lies below the difference
        reach = np.array([s.mean() for s in others]) - samples[index].mean()
        reach = reach - theirs.confidence_interval(0.95).low
        gaps = np.array([samples[index].mean() - s.mean() for s in others])
        assert each.interval is not None
        assert each.interval.mean == pytest.approx(gaps.max())
        assert each.interval.low == pytest.approx(min(0.0, (gaps - reach).max()), abs=0.02)
        assert each.interval.high == pytest.approx(max(0.0, (gaps + reach).max()), abs=0.02)
        assert each.may_be_best is bool((gaps - reach).max() <= 0)


def test_a_cell_that_never_varies_is_not_pooled_with_one_that_does() -> None:
    cells = [{0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.5, 1: 1.1, 2: 1.4}]
    found = compare_with_best(cells, smaller_is_better=True)
    assert found is not None
    assert found[1] == "each pair by its own spread, 5 %/(k - 1) one-sided"
    assert [each.interval for each in found[0]] == [None, None]
    p = stats.ttest_1samp([0.5, 0.1, 0.4], 0, alternative="greater").pvalue
    assert found[0][1].may_be_best is bool(p >= 0.05)


def test_each_pair_by_its_own_spread_is_tested_at_a_share_of_five_percent() -> None:
    """The second is worse than the first at p = .03: enough among two cells, not among four (.05/3)."""
    base = {0: 0.0, 1: 0.0, 2: 0.0}
    t = float(stats.t(2).isf(0.03))
    near = {seed: (t / math.sqrt(3) + d) for seed, d in enumerate((-1.0, 0.0, 1.0))}
    wild = [{0: 50.0, 1: 9000.0, 2: -300.0}, {0: 70.0, 1: -9000.0, 2: 700.0}]
    two = compare_with_best([base, near], smaller_is_better=True)
    four = compare_with_best([base, near, *wild], smaller_is_better=True)
    assert two is not None
    assert four is not None
    assert (two[0][1].may_be_best, four[0][1].may_be_best) == (False, True)


def test_counted_cells_are_compared_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _is_larger({0: 2.0, 1: 2.0}, {2: 1.0, 3: 1.0}, 0.05)
        assert not _is_larger({0: 1.0, 1: 1.0}, {2: 1.0, 3: 1.0}, 0.05)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(("shift", "unit"), [(100.0, 1.0), (-3.0, 1.0), (0.0, 1e-6), (0.0, 1e6)])
def test_an_interval_moves_and_grows_with_what_it_is_of(
    method: Method, shift: float, unit: float
) -> None:
    differences = [1.2, 0.4, 2.2, 1.9, 0.8, 1.1, -0.3]
    low, high = interval_of(differences, method, 0.95)
    moved = interval_of([unit * d + shift for d in differences], method, 0.95)
    assert moved == pytest.approx((unit * low + shift, unit * high + shift), abs=1e-9 * unit)
    turned = interval_of([-d for d in differences], method, 0.95)
    assert turned == pytest.approx((-high, -low), abs=1e-9)


def test_an_interval_of_sign_flips_is_that_of_an_exhaustive_search() -> None:
    """The ends are means of pairs of halves: beyond the last shift that is not rejected, by a fine grid."""
    differences = [1.2, 0.4, 2.2, 1.9, 0.8, 1.1, -0.3]
    low, high = interval_of(differences, Method.sign_flips, 0.9)

    def p(shift: float) -> float:
        shifted = [d - shift for d in differences]
        sums = [
            abs(sum(sign * d for sign, d in zip(signs, shifted, strict=True)))
            for signs in product((1, -1), repeat=7)
        ]
        return sum(each >= abs(sum(shifted)) - 1e-9 for each in sums) / len(sums)

    for inside, outside in ((low + 1e-5, low - 1e-5), (high - 1e-5, high + 1e-5)):
        assert p(inside) >= 0.1
        assert p(outside) < 0.1


@pytest.mark.parametrize("pairs", [2, 3, 4, 7, 20])
def test_so_many_pairs_are_needed_from_the_target_on_that_they_reach(pairs: int) -> None:
    """Both quantiles have n - 1 degrees of freedom: at the target where n pairs reach it, to a millionth."""
    reach = stats.t(pairs - 1).ppf(0.975) + stats.t(pairs - 1).ppf(0.8)
    target = reach / math.sqrt(pairs)
    assert pairs_needed(1.0, target * (1 + 1e-6)) == pairs
    assert pairs_needed(1.0, target * (1 - 1e-6)) == pairs + 1
