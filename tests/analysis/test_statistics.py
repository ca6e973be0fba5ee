"""Intervals, tests, fronts and effects, against SciPy or numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    holm,
    importance,
    marginal_effects,
    mean_interval,
    pareto_front,
    sign_flip_p_value,
)
from harness.records.metrics import Direction

VALUES = [2.31, 2.28, 2.44, 2.39, 2.30]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_t_interval_is_scipys(confidence: float) -> None:
    interval = mean_interval(VALUES, confidence)
    low, high = stats.t.interval(
        confidence, len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES)
    )
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.mean == pytest.approx(np.mean(VALUES), rel=1e-12)
    assert interval.deviation == pytest.approx(np.std(VALUES, ddof=1), rel=1e-12)
    assert interval.low is not None
    assert interval.high is not None
    below, above = interval.low - 1e-9, interval.high + 1e-9
    inside = [interval.contains(x) for x in (below, interval.low, interval.high, above)]
    assert inside == [False, True, True, False]


def test_one_value_has_a_mean_and_no_interval() -> None:
    interval = mean_interval([2.5])
    assert (interval.mean, interval.n) == (2.5, 1)
    assert interval.low is interval.high is interval.deviation is interval.half_width is None
    assert not interval.contains(2.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected finite values"):
        mean_interval(values)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flips_are_scipys_exact_permutation_test(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.6, size=n)
    theirs = stats.permutation_test(
        (differences, np.zeros(n)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,  # more than 2^n, so all of them
    )
    assert sign_flip_p_value(list(differences)) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_sign_flips_are_the_same_in_every_unit(unit: float) -> None:
    """Of eight sums 0, 0, ±0.2, ±0.4 and ±0.6 of the unit: all, two, and six lie as far out."""
    differences = [0.1 * unit, 0.2 * unit, -0.3 * unit]
    assert sign_flip_p_value(differences) == 1.0
    assert sign_flip_p_value([0.1 * unit, 0.2 * unit, 0.3 * unit]) == 2 / 8
    assert sign_flip_p_value([0.1 * unit, -0.2 * unit, 0.3 * unit]) == 6 / 8


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1 = .04, .06, .06, .04; never falling: .04, .06, .06, .06.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([None]) == [None]


def test_the_front_is_what_nothing_else_beats() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0), (3.0, 1.0), (2.0, 4.0), (math.nan, 0.0)]
    assert pareto_front(points, [Direction.minimize, Direction.minimize]) == [0, 1, 3, 4]
    assert pareto_front(points, ["minimize", "maximize"]) == [0, 2]
    assert pareto_front([], ["minimize"]) == []
    with pytest.raises(ValueError, match="neither"):
        pareto_front(points, [Direction.neither, Direction.minimize])


def test_the_front_is_the_brute_force_one() -> None:
    points = np.random.default_rng(0).integers(0, 12, (200, 3)).astype(float)
    dominated = [
        any((other <= point).all() and (other < point).any() for other in points)
        for point in points
    ]
    expected = [index for index, is_dominated in enumerate(dominated) if not is_dominated]
    assert pareto_front(points.tolist(), ["minimize"] * 3) == expected


def test_a_marginal_effect_holds_the_others_fixed() -> None:
    # Rank 8 is better by 1 at each learning rate, though its runs are worse on average.
    found = [(2, 1, 5.0), (2, 2, 9.0), (8, 2, 8.0), (2, 3, 11.0), (8, 3, 10.0)]
    rows = [{"rank": rank, "lr": lr, "loss": loss} for rank, lr, loss in found]
    (effect,) = marginal_effects(rows, "rank", "loss", ["lr"])
    assert (effect.reference, effect.level) == (2, 8)
    assert effect.by_seed == {None: -1.0}
    assert effect.num_blocks == 2
    with pytest.raises(ValueError, match="name what else varies"):
        marginal_effects([*rows, rows[0]], "rank", "loss", ["lr"])


def test_blocks_of_one_seed_are_one_value() -> None:
    losses = {(0, 2, 1): 5.0, (0, 8, 1): 4.0, (0, 2, 2): 9.0, (0, 8, 2): 6.0}
    losses |= {(1, 2, 1): 5.0, (1, 8, 1): 5.5, (1, 2, 2): 9.0, (1, 8, 2): 8.5}
    losses |= {(0, 2, 3): 7.0, (0, 8, 3): 1.0, (1, 2, 3): 7.0}  # seed 1 lacks a level there
    rows = [{"seed": s, "rank": r, "lr": lr, "loss": v} for (s, r, lr), v in losses.items()]
    (effect,) = marginal_effects(rows, "rank", "loss", ["lr"])
    assert effect.by_seed == {0: -2.0, 1: 0.0}
    assert effect.num_blocks == 2


def test_importance_finds_the_parameter_that_decides(tmp_path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(
        study_name="s",
        storage=url,
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    study.set_metric_names(["eval/loss", "memory/peak_bytes"])
    for number in range(24):
        trial = study.ask()
        x, y = trial.suggest_float("optim.lr", 0, 1), trial.suggest_float("lora.dropout", 0, 1)
        study.tell(trial, [math.inf if number == 5 else (x - 0.5) ** 2, y])
    shares = importance(url, "s")
    assert shares["eval/loss"]["optim.lr"] > 0.8
    assert shares["memory/peak_bytes"]["lora.dropout"] > 0.8
    assert sum(shares["eval/loss"].values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="no study other"):
        importance(url, "other")
    few = optuna.create_study(study_name="few", storage=url)
    for _ in range(19):
        few.tell(few.ask({"optim.lr": optuna.distributions.FloatDistribution(0, 1)}), 0.0)
    with pytest.raises(ValueError, match=r"19 completed trials of few over 1 axes.* needs 20"):
        importance(url, "few")


def test_rows_without_a_finite_value_are_no_part_of_an_effect() -> None:
    rows = [{"rank": 8, "loss": None}, {"rank": 8, "loss": math.nan}, {"rank": 2, "loss": math.inf}]
    rows += [{"rank": rank, "loss": loss} for rank, loss in ((2, 5.0), (8, 4.0), (32, 1.0))]
    found = marginal_effects(rows, "rank", "loss", [])
    assert [(each.reference, each.level) for each in found] == [(2, 8), (2, 32), (8, 32)]
    assert [each.by_seed[None] for each in found] == [-1.0, -4.0, -3.0]
    assert [each.num_blocks for each in found] == [1, 1, 1]
    assert marginal_effects(rows[:4], "rank", "loss", []) == []
