"""Partial dependence after a biased search: the truth of made functions, gradients by differences."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.optimize import check_grad
from scipy.spatial.distance import cdist

from analysis.surrogate import (
    Dependence,
    _Column,
    _loss_and_gradient,
    _Process,
    partial_dependence,
)

stats: Any = scipy_stats
OF_FORMAT = {"none": 0.0, "nf4": 0.05, "int4": 0.4}


def searched(trials: int, seed: int) -> tuple[list[dict[str, str]], list[float]]:
    """Trials that crowd where rates are good, mostly of nf4; int4 got the worst rates."""
    generator = np.random.default_rng(seed)
    points, values = [], []
    for _ in range(trials):
        storage = str(generator.choice(list(OF_FORMAT), p=[0.25, 0.55, 0.2]))
        centre = -2.6 if storage == "int4" else -2.2
        exponent = float(np.clip(generator.normal(centre, 0.3), -3, -1.5))
        point = {"optim.lr": repr(10**exponent), "quant": storage}
        if storage != "none":
            point["quant.double_quant"] = str(generator.choice(["true", "false"]))
        points.append(point)
        values.append(1 + (exponent + 2.2) ** 2 + OF_FORMAT[storage] + generator.normal(0, 0.02))
    return points, values


def by_axis(found: list[Dependence]) -> dict[str, Dependence]:
    return {each.axis: each for each in found}


def test_a_level_that_met_bad_rates_is_not_blamed_for_them() -> None:
    off, crude = [], []
    for seed in range(6):
        points, values = searched(60, seed)
        found = by_axis(partial_dependence(points, values))["quant"]
        means = dict(zip(found.levels, found.mean, strict=True))
        seen = {
            level: np.mean([v for p, v in zip(points, values, strict=True) if p["quant"] == level])
            for level in OF_FORMAT
        }
        off.append(means["int4"] - means["none"] - 0.4)
        crude.append(seen["int4"] - seen["none"] - 0.4)
    assert abs(np.mean(crude)) > 0.1, "int4 met the worse rates"
    assert abs(np.mean(off)) < abs(np.mean(crude)) / 2


def test_an_axis_of_numbers_has_its_minimum_where_the_function_has() -> None:
    found = by_axis(partial_dependence(*searched(60, seed=2)))["optim.lr"]
    assert found.is_numeric
    assert found.is_logarithmic
    best = float(found.levels[int(np.argmin(found.mean))])
    assert -2.4 < np.log10(best) < -2.0


def test_what_does_nothing_is_flat_within_its_interval() -> None:
    found = by_axis(partial_dependence(*searched(60, seed=3)))["quant.double_quant"]
    assert set(found.levels) == {"true", "false"}, "points without the axis are no level of it"
    assert max(found.low) < min(found.high)
    assert max(found.mean) - min(found.mean) < 0.05


def test_intervals_hold_the_truth_and_widen_with_fewer_trials() -> None:
    held, widths = [], {}
    for trials in (30, 90):
        for seed in range(8):
            points, values = searched(trials, seed=10 + seed)
            found = by_axis(partial_dependence(points, values))["quant"]
            rates = [(np.log10(float(p["optim.lr"])) + 2.2) ** 2 for p in points]
            for level, low, high in zip(found.levels, found.low, found.high, strict=True):
                held.append(low <= 1 + np.mean(rates) + OF_FORMAT[str(level)] <= high)
                widths.setdefault(trials, []).append(high - low)
    assert np.mean(held) > 0.8  # a surrogate fitted by its likelihood is a little too sure
    assert np.mean(widths[90]) < np.mean(widths[30])


def test_positive_values_far_apart_are_fitted_by_ratio_and_stay_positive() -> None:
    points, values = searched(40, seed=4)
    wide = [float(np.exp(6 * (value - 1))) for value in values]
    assert all(min(each.low) > 0 for each in partial_dependence(points, wide))


def test_the_likelihoods_gradient_is_that_of_differences() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.random((15, 3)), generator.normal(size=15)
    at = np.array([0.1, -0.4, 0.6, 0.2, -1.5])
    off = check_grad(
        lambda p: _loss_and_gradient(p, x, y)[0], lambda p: _loss_and_gradient(p, x, y)[1], at
    )
    assert off < 1e-4


def test_too_few_trials_or_none_that_vary_say_nothing() -> None:
    points, values = searched(19, seed=5)
    with pytest.raises(
        ValueError, match="19 completed trials over 3 axes: partial dependence needs 20"
    ):
        partial_dependence(points, values)
    with pytest.raises(ValueError, match="same value"):
        partial_dependence(searched(30, seed=5)[0], [1.0] * 30)


def matern_5_2(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rasmussen and Williams 2006, equation 4.17, with a length for each column."""
    r = cdist(a / lengths, b / lengths)
    return (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r)


def test_the_loss_is_minus_scipys_density_and_the_priors() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.random((12, 2)), generator.normal(size=12)

    def expected(logs: np.ndarray) -> float:
        kernel = math.exp(logs[2]) * matern_5_2(x, x, np.exp(logs[:2]))
        density = stats.multivariate_normal(cov=kernel + math.exp(logs[3]) * np.eye(12)).logpdf(y)
        middles, widths = (0.0, 0.0, 0.0, math.log(0.1)), (1.5, 1.5, 1.0, 2.0)
        priors = [stats.norm(m, w).logpdf(v) for m, w, v in zip(middles, widths, logs, strict=True)]
        return -float(density + sum(priors))

    one, other = np.array([0.3, -0.6, 0.4, -1.0]), np.array([-1.2, 0.8, -0.5, -3.0])
    found = _loss_and_gradient(one, x, y)[0] - _loss_and_gradient(other, x, y)[0]
    assert found == pytest.approx(expected(one) - expected(other), rel=1e-6)


def test_the_mean_over_places_and_its_deviation_are_those_of_the_joint_posterior() -> None:
    generator = np.random.default_rng(2)
    x, y, at = generator.random((14, 2)), generator.normal(size=14), generator.random((5, 2))
    fitted = _Process.fitted(x, y)
    noisy = fitted.lower_NN @ fitted.lower_NN.T
    known = fitted.signal * matern_5_2(x, x, fitted.lengths_D)
    noise = np.diag(noisy) - np.diag(known)
    assert noisy - np.diag(noise) == pytest.approx(known, abs=1e-9)
    assert 1e-4 < noise[0] < 2
    across = fitted.signal * matern_5_2(at, x, fitted.lengths_D)
    inverse = np.linalg.inv(noisy)
    covariance = fitted.signal * matern_5_2(at, at, fitted.lengths_D) - across @ inverse @ across.T
    mean, deviation = fitted.averaged(at)
    assert mean == pytest.approx((across @ inverse @ y).mean(), rel=1e-6)
    assert deviation == pytest.approx(math.sqrt(covariance.mean()), rel=1e-6)
    found = np.concatenate(
        [np.log(fitted.lengths_D), [math.log(fitted.signal), math.log(noise[0])]]
    )
    assert np.abs(_loss_and_gradient(found, x, y)[1]).max() < 1e-2, "a minimum inside of the bounds"


@pytest.mark.parametrize(
    ("numbers", "levels"),
    [
        ([float(n) for n in range(1, 10)], [float(n) for n in range(1, 10)]),
        ([float(n) for n in range(10)], list(np.linspace(0, 9, 17))),
        ([float(2**n) for n in range(10)], list(np.geomspace(1, 512, 17))),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    ],
)
def test_few_numbers_are_levels_and_of_many_17_places_are_taken(numbers, levels) -> None:
    points = [{"x": repr(number)} for number in numbers * 9]
    (found,) = partial_dependence(points, [float(p["x"]) for p in points])
    assert found.levels == pytest.approx(levels)
    assert found.is_logarithmic is (numbers[0] > 0 and numbers[-1] >= 4 * numbers[0])
    assert found.mean == pytest.approx(levels, rel=0.05, abs=0.3)


def test_of_very_many_trials_the_best_are_fitted() -> None:
    """400 good ones fill the axis' left half; the bad ones would have made it longer."""
    numbers = np.linspace(0, 1, 400).tolist()
    points = [{"x": repr(number)} for number in [*numbers, *(5 + n for n in numbers[:10])]]
    values = [*numbers, *(100 + n for n in numbers[:10])]
    (found,) = partial_dependence(points, values)
    assert max(float(level) for level in found.levels) == 1.0


def test_an_axis_that_not_every_trial_has_leaves_those_without_it_alone() -> None:
    """Half of the trials have no x, and 7 for their value: the mean at a level is half of the others'."""
    points = [{"x": repr(float(n % 3)), "kind": "a"} for n in range(30)] + [{"kind": "b"}] * 30
    values = [float(n % 3) for n in range(30)] + [7.0] * 30
    found = by_axis(partial_dependence(points, values))["x"]
    assert found.levels == (0.0, 1.0, 2.0)
    assert found.mean == pytest.approx([3.5, 4.0, 4.5], abs=0.15)


def test_intervals_reach_1_96_posterior_deviations_in_the_objectives_own_unit() -> None:
    generator = np.random.default_rng(3)
    x = np.repeat([0.0, 1.0, 2.0], 10)
    y = 5 + 2 * x + generator.normal(0, 0.5, 30)
    (found,) = partial_dependence([{"x": repr(float(v))} for v in x], y.tolist())
    fitted = _Process.fitted(x[:, None] / 2, (y - y.mean()) / y.std())
    for place, level in enumerate((0.0, 0.5, 1.0)):
        mean, deviation = fitted.averaged(np.full((30, 1), level))
        half = stats.norm.ppf(0.975) * deviation * y.std()
        assert found.mean[place] == pytest.approx(mean * y.std() + y.mean(), rel=1e-6)
        assert found.low[place] == pytest.approx(found.mean[place] - half, rel=1e-5)
        assert found.high[place] == pytest.approx(found.mean[place] + half, rel=1e-5)


@pytest.mark.parametrize(
    ("least", "most", "by_ratio"),
    [(1.0, 10.0, False), (1.0, 10.5, True), (-1.0, 10.5, False), (0.0, 10.5, False)],
)
def test_only_positive_values_more_than_tenfold_apart_are_fitted_by_ratio(
    least: float, most: float, by_ratio: bool
) -> None:
    points = [{"x": repr(float(n % 2))} for n in range(24)]
    values = [(least, most)[n % 2] for n in range(24)]
    (found,) = partial_dependence(points, values)
    for low, mean, high in zip(found.low, found.mean, found.high, strict=True):
        if by_ratio:
            assert mean / low == pytest.approx(high / mean)
        else:
            assert mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize(("axes", "needed"), [(1, 20), (4, 20), (5, 25)])
def test_an_axis_takes_five_trials_and_all_of_them_twenty(axes: int, needed: int) -> None:
    generator = np.random.default_rng(0)
    points = [
        {f"a{n}": repr(float(generator.random())) for n in range(axes)} for _ in range(needed)
    ]
    values = generator.random(needed).tolist()
    with pytest.raises(
        ValueError, match=rf"{needed - 1} completed trials over {axes} axes: .* {needed} or"
    ):
        partial_dependence(points[:-1], values[:-1])
    fixed = [point | {"fixed": "1"} for point in points]
    assert len(partial_dependence(fixed, values)) == axes, "what never varied is no axis"


def test_nothing_that_varies_is_no_dependence() -> None:
    with pytest.raises(ValueError, match="over 0 axes"):
        partial_dependence([{"x": "1"}] * 30, [float(n) for n in range(30)])


@pytest.mark.parametrize(
    ("spelled", "encoded", "is_numeric", "is_logarithmic"),
    [
        (["0", "1", "4"], [[0.0], [0.25], [1.0]], True, False),
        (["1", "2", "4"], [[0.0], [0.5], [1.0]], True, True),  # fourfold: by ratio
        (["1", "2", "3.9"], [[0.0], [1 / 2.9], [1.0]], True, False),
        (["-4", "-1", "0"], [[0.0], [0.75], [1.0]], True, False),
        (["1", None, "3"], [[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]], True, False),
        (["b", "a", "b"], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], False, False),
        (["b", None, "a"], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], False, False),
        (["1", "a", "2"], np.eye(3).tolist(), False, False),  # one word: all are names
        (["7", "7", None], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], False, False),
    ],
)
def test_an_axis_is_a_number_from_0_to_1_or_a_column_a_name(
    spelled, encoded, is_numeric, is_logarithmic
) -> None:
    column = _Column.of("x", spelled)
    np.testing.assert_allclose(column.encoded_ND, encoded)
    assert (column.is_numeric, column.is_logarithmic) == (is_numeric, is_logarithmic)


def test_points_are_moved_to_a_level_but_for_those_without_the_axis() -> None:
    number = _Column.of("x", ["1", None, "3"])
    np.testing.assert_allclose(number.at(2.0), [[0.5, 0.0], [0.5, 1.0], [0.5, 0.0]])
    np.testing.assert_allclose(number.at(3.0), [[1.0, 0.0], [0.5, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(_Column.of("x", ["1", "3"]).at(3.0), [[1.0], [1.0]])
    named = _Column.of("x", ["b", None, "a"])
    assert named.levels == ["b", "a"]
    np.testing.assert_allclose(named.at("a"), [[0, 1, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(_Column.of("x", ["b", "a"]).at("b"), [[1, 0], [1, 0]])
    np.testing.assert_allclose(number.encoded_ND[0], [0.0, 0.0], err_msg="and stay where they were")


def test_an_axis_that_does_nothing_is_long_and_one_that_does_much_is_short() -> None:
    generator = np.random.default_rng(4)
    x = generator.random((60, 2))
    fitted = _Process.fitted(x, np.sin(9 * x[:, 0]) * math.sqrt(2))
    assert fitted.lengths_D[0] < 0.5
    assert fitted.lengths_D[1] > 2


def test_prior_deviation_far_from_every_point_is_that_of_the_signal() -> None:
    fitted = _Process.fitted(np.zeros((4, 1)), np.array([1.0, -1.0, 0.5, -0.5]))
    mean, deviation = fitted.averaged(np.full((3, 1), 1e6))
    assert mean == pytest.approx(0.0, abs=1e-12)
    assert deviation == pytest.approx(math.sqrt(fitted.signal))
