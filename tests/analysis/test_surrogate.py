"""Partial dependence after a biased search: the truth of made functions, gradients by differences."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from analysis.surrogate import Dependence, _loss_and_gradient, partial_dependence

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
