"""What seeds can show: against SciPy's noncentral t distribution, a simulation, and the published formula."""

import numpy as np
import pytest
import scipy.stats

from harness.question.power import (
    FEWEST_SEEDS,
    described_power,
    power_of_paired_t,
    seeds_for_margin,
)


@pytest.mark.parametrize("pairs", [2, 3, 7])
@pytest.mark.parametrize("difference", [0.0, 0.5, -1.5, 3.0])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_power_is_that_of_the_noncentral_t(pairs: int, difference: float, alpha: float) -> None:
    """A difference of two cells deviates by sqrt(2) times as much as a cell."""
    critical = scipy.stats.t.ppf(1 - alpha / 2, pairs - 1)
    statistic = scipy.stats.nct(pairs - 1, abs(difference) / 2**0.5 * pairs**0.5)
    expected = statistic.sf(critical) + statistic.cdf(-critical)
    assert power_of_paired_t(pairs, difference, alpha) == pytest.approx(expected, abs=1e-9)
    if alpha == 0.05:
        assert power_of_paired_t(pairs, difference) == power_of_paired_t(pairs, difference, alpha)
    if difference == 0:
        assert expected == pytest.approx(alpha)


def test_power_is_how_often_a_t_test_finds_the_difference() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (2, 20_000, 5))
    found = scipy.stats.ttest_rel(one + 1.5, other, axis=1).pvalue < 0.05
    assert power_of_paired_t(5, 1.5) == pytest.approx(found.mean(), abs=0.012)


def test_a_single_pair_finds_nothing() -> None:
    assert power_of_paired_t(1, 100.0) == 0
    assert power_of_paired_t(2, 100.0) > 0.9


@pytest.mark.parametrize("deviation", [0.01, 0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_seeds_for_a_margin_are_julious(deviation: float, alpha: float) -> None:
    """The first n from 3 on with n >= 2 (s/m)^2 (t(1 - a) + t(0.9))^2, for power 0.8."""
    t = scipy.stats.t.ppf
    needed = [
        n
        for n in range(3, 60)
        if n >= 2 * (deviation / 1.1) ** 2 * (t(1 - alpha, n - 1) + t(0.9, n - 1)) ** 2
    ]
    assert seeds_for_margin(deviation, 1.1, 60, alpha) == needed[0]
    assert seeds_for_margin(0.011, 1.1, 60) == FEWEST_SEEDS == 3
    assert seeds_for_margin(2.0, 1.1, 10) == 10, "no more than at most"


def test_what_seeds_can_show_is_said_in_per_cent() -> None:
    assert "with 1 seed nothing can be tested" in described_power(1)
    shares = [100 * power_of_paired_t(4, size) for size in (1, 2, 3)]
    shown = ", ".join(f"{n} in {share:.0f} %" for n, share in zip((1, 2, 3), shares, strict=True))
    assert (
        f"with 4 seeds a paired t-test finds a difference of so many seed deviations: {shown}"
        in (described_power(4))
    )
    assert described_power(2).startswith("with 2 seeds")
