"""The law of learning rates against scipy and numpy; the grid that uses it, by hand."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.question.rate_law import (
    best_rate,
    fit_law,
    transfer_count,
    transfer_stages,
    transferred,
)
from tests.question.asking import ask, refusal, space_of

POINTS = [(2, 1.1e-2), (2, 0.8e-2), (8, 0.7e-2), (8, 0.6e-2), (32, 0.42e-2), (64, 0.3e-2)]


def test_the_law_is_the_line_of_least_squares() -> None:
    law = fit_law(POINTS)
    assert law is not None
    xs, ys = np.log([rank for rank, _ in POINTS]), np.log([rate for _, rate in POINTS])
    line: Any = scipy.stats.linregress(xs, ys)
    assert law.slope == pytest.approx(line.slope)
    assert law.intercept == pytest.approx(line.intercept)
    t = scipy.stats.t.ppf(0.975, len(POINTS) - 2)
    assert law.slope_interval() == pytest.approx(
        (line.slope - t * line.stderr, line.slope + t * line.stderr)
    )


def test_the_prediction_is_the_textbooks() -> None:
    law = fit_law(POINTS)
    assert law is not None
    xs, ys = np.log([rank for rank, _ in POINTS]), np.log([rate for _, rate in POINTS])
    design = np.column_stack([np.ones_like(xs), xs])
    beta, *_ = np.linalg.lstsq(design, ys, rcond=None)
    rest = ys - design @ beta
    new = np.array([1.0, math.log(128)])
    variance = (rest @ rest) / (len(xs) - 2) * (1 + new @ np.linalg.inv(design.T @ design) @ new)
    half = scipy.stats.t.ppf(0.975, len(xs) - 2) * math.sqrt(variance)
    assert law.predicted(128) == pytest.approx(math.exp(new @ beta))
    assert law.prediction_interval(128) == pytest.approx(
        (math.exp(new @ beta - half), math.exp(new @ beta + half))
    )


def test_a_law_of_two_points_has_no_interval_and_one_rank_no_law() -> None:
    law = fit_law([(2, 1e-2), (8, 0.25e-2)])
    assert law is not None
    assert law.slope == pytest.approx(-1)
    assert law.predicted(32) == pytest.approx(1e-2 / 16)
    assert law.slope_interval() is None
    assert law.prediction_interval(16) is None
    assert fit_law([(2, 1e-2), (2, 2e-2)]) is None


def test_the_best_rate_is_the_parabolas_lowest_point() -> None:
    losses = {1e-3: 0.9, 3e-3: 0.4, 1e-2: 0.3, 3e-2: 0.8}
    a, b, _ = np.polyfit(np.log([3e-3, 1e-2, 3e-2]), [0.4, 0.3, 0.8], 2)
    best = best_rate(losses)
    assert best.rate == pytest.approx(math.exp(-b / (2 * a)))
    assert not best.at_edge


def test_a_best_rate_at_an_edge_says_so_and_infinite_losses_are_no_neighbours() -> None:
    assert best_rate({1e-3: 0.1, 1e-2: 0.2}).at_edge
    assert best_rate({1e-3: 0.1, 1e-2: 0.2}).rate == 1e-3
    beside = best_rate({1e-3: 0.3, 3e-3: 0.2, 1e-2: math.inf})
    assert (beside.rate, beside.at_edge) == (3e-3, False)


@given(
    rates=st.lists(st.integers(1, 10_000), min_size=3, max_size=6, unique=True),
    losses=st.lists(st.integers(0, 20), min_size=6, max_size=6),
)
def test_a_best_rate_is_numpys_parabola_or_an_edge_or_the_first_of_a_flat(
    rates: list[int], losses: list[int]
) -> None:
    given_losses = {float(rate): loss / 7 for rate, loss in zip(rates, losses, strict=False)}
    best, ordered = best_rate(given_losses), sorted(given_losses)
    ys = [given_losses[rate] for rate in ordered]
    place = ys.index(min(ys))
    assert best.at_edge is (place in (0, len(ys) - 1))
    near = slice(place - 1, place + 2)
    if best.at_edge or len(set(ys[near])) == 1:
        assert best.rate == ordered[place]
        return
    a, b, _ = np.polyfit(np.log(ordered[near]), ys[near], 2)
    assert math.log(best.rate) == pytest.approx(-b / (2 * a), rel=1e-6, abs=1e-6)


def test_intervals_are_as_wide_as_their_confidence() -> None:
    law = fit_law(POINTS)
    assert law is not None
    xs, ys = np.log([rank for rank, _ in POINTS]), np.log([rate for _, rate in POINTS])
    line: Any = scipy.stats.linregress(xs, ys)
    t = scipy.stats.t.ppf(0.9, len(POINTS) - 2)
    low, high = law.slope_interval(0.8) or (0, 0)
    assert (low, high) == pytest.approx(
        (line.slope - t * line.stderr, line.slope + t * line.stderr)
    )
    narrow, wide = law.prediction_interval(64, 0.8), law.prediction_interval(64)
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < law.predicted(64) < narrow[1] < wide[1]
    ratio = math.log(wide[1] / law.predicted(64)) / math.log(narrow[1] / law.predicted(64))
    assert ratio == pytest.approx(scipy.stats.t.ppf(0.975, len(POINTS) - 2) / t)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_a_law_of_so_many_points_has_two_degrees_of_freedom_less(count: int) -> None:
    chosen = [POINTS[0], *POINTS[2:], POINTS[1]][:count]
    law = fit_law(chosen)
    assert law is not None
    line: Any = scipy.stats.linregress(*np.log(np.array(chosen)).T)
    t = scipy.stats.t.ppf(0.975, count - 2)
    assert law.n == count
    assert law.slope_interval() == pytest.approx(
        (line.slope - t * line.stderr, line.slope + t * line.stderr)
    )


RATES = "choice(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)"


def test_a_grid_with_transfer_tries_the_rates_near_the_predicted_one(tmp_path) -> None:
    space = space_of(tmp_path, lora__rank="choice(2, 8, 32, 128)", optim__lr=RATES)
    first, third, fourth = transfer_stages(space)
    assert {point["lora.rank"] for point in first} == {"2", "8"}
    assert len(first) == 10
    assert transfer_count(space) == 10 + 3 + 3
    # Best at 1e-2 for rank 2 and at 1e-3 for rank 8: a law that reaches 1e-4 at rank 32.
    best = {"2": 1e-2, "8": 1e-3}
    told = [
        (point, abs(math.log(float(point["optim.lr"]) / best[point["lora.rank"]])))
        for point in first
    ]
    chosen = list(transferred(third, told))
    assert [float(point["optim.lr"]) for point in chosen] == [1e-4, 3e-4, 1e-3]
    assert {point["lora.rank"] for point in chosen} == {"32"}
    assert len(fourth) == 5


def test_ranks_come_by_their_size_however_they_are_written(tmp_path) -> None:
    space = space_of(tmp_path, lora__rank="choice(128, 2, 32, 8)", optim__lr=RATES)
    stages = [{point["lora.rank"] for point in stage} for stage in transfer_stages(space)]
    assert stages == [{"2", "8"}, {"32"}, {"128"}]


def test_every_combination_of_the_other_axes_has_its_own_law(tmp_path) -> None:
    space = space_of(
        tmp_path, quant="choice(none, nf4)", lora__rank="choice(2, 8, 32)", optim__lr=RATES
    )
    first, third = transfer_stages(space)
    best = {("none", "2"): 1e-2, ("none", "8"): 1e-2, ("nf4", "2"): 1e-3, ("nf4", "8"): 3e-4}
    told = [
        (p, abs(math.log(float(p["optim.lr"]) / best[p["quant"], p["lora.rank"]]))) for p in first
    ]
    chosen = list(transferred(third, told))
    rates = {
        quant: [float(p["optim.lr"]) for p in chosen if p["quant"] == quant]
        for quant in ("none", "nf4")
    }
    assert rates["none"] == [1e-3, 3e-3, 1e-2]
    assert rates["nf4"] == [1e-4, 3e-4, 1e-3]


def test_what_a_transfer_needs_is_said(tmp_path) -> None:
    space = {"lora.rank": "choice(2, 8, 32)", "optim.lr": RATES}
    search = {"transfer": "lr"}
    assert ask(tmp_path, space=space, search=search).search.transfer.value == "lr"
    random = {"transfer": "lr", "method": "random", "trials": 3}
    assert "would be ignored by search.method=random" in refusal(
        tmp_path, space=space, search=random
    )
    few = {"lora.rank": "choice(2, 8)", "optim.lr": RATES}
    assert "needs an axis lora.rank=choice(…) of 3 or more" in refusal(
        tmp_path, space=few, search=search
    )
    assert "optim.lr=choice(…) of 4 or more values, and there is none" in refusal(
        tmp_path, space={"lora.rank": "choice(2, 8, 32)"}, search=search
    )
