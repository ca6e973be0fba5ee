"""Outcomes as a Gaussian process is shown them: their transform, and the ends that are foreseen."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import GPSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import stats

from harness.study.warping import WarpedSampler, expected_end, fitted_warp, shown

MINIMIZE = [StudyDirection.MINIMIZE]
LR: dict[str, BaseDistribution] = {"lr": FloatDistribution(1e-3, 1e-1, log=True)}


def trial(
    number: int, end: float | None, reports: dict[int, float] | None = None, lr: float = 1e-2
) -> FrozenTrial:
    """Return a trial that has ended, or was pruned after its last report."""
    made = create_trial(
        state=TrialState.PRUNED if end is None else TrialState.COMPLETE,
        value=end,
        params={"lr": lr},
        distributions=LR,
        intermediate_values=reports or {},
    )
    made.number = number
    return made


def values(trials: list[FrozenTrial]) -> list[float]:
    return [each.values[0] for each in trials if each.values is not None]


# The transform -----------------------------------------------------------------------------------


def test_losses_over_decades_are_spread_as_their_logarithms_would_be():
    losses = np.exp(np.random.default_rng(0).normal(-5, 2, 200))
    warp = fitted_warp(losses.tolist())
    assert np.corrcoef(warp(losses), np.log(losses))[0, 1] > 0.99
    assert abs(stats.skew(warp(losses))) < 0.3 < 3 < stats.skew(losses)


def test_what_is_even_stays_as_it_is():
    even = np.random.default_rng(1).normal(10, 1, 2000).tolist()
    assert np.corrcoef(fitted_warp(even)(np.array(even)), even)[0, 1] > 0.999


@pytest.mark.parametrize("below", [[], [-3.0, 0.0]], ids=["positive", "any sign"])
def test_order_is_kept(below):
    numbers = sorted([*below, *np.random.default_rng(2).lognormal(0, 2, 30)])
    assert (np.diff(fitted_warp(numbers)(np.array(numbers))) > 0).all()


def test_a_report_below_zero_can_be_warped_though_no_end_is():
    warp = fitted_warp([1.0, 2.0, 30.0], others=[-1.0])
    assert np.isfinite(warp(np.array([-1.0, 2.0]))).all()


@pytest.mark.parametrize("few", [[], [1.0], [1.0, 2.0, 1.0]])
def test_too_few_values_are_left_alone(few):
    assert fitted_warp(few)(np.array([1.0, 7.0])).tolist() == [1.0, 7.0]


# Ends that are foreseen --------------------------------------------------------------------------


def test_an_end_is_read_off_the_line_through_the_others():
    assert expected_end(4.0, [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == pytest.approx(40.0)


def test_a_worse_report_never_promises_a_better_end():
    assert expected_end(9.0, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(2.0)


def test_two_others_promise_nothing():
    assert expected_end(1.0, [1.0, 2.0], [1.0, 2.0]) is None


def test_pruned_trials_are_shown_in_the_order_of_their_reports():
    done = [trial(n, end, {10: 30 * end}) for n, end in enumerate([0.001, 0.01, 0.1, 1.0])]
    pruned = [trial(4, None, {10: 15.0}), trial(5, None, {10: 60.0})]
    seen = shown([*done, *pruned], MINIMIZE, foresees=True)
    assert [each.state for each in seen] == [TrialState.COMPLETE] * 6
    worst, middle, beyond = (seen[number].values[0] for number in (3, 4, 5))
    assert seen[2].values[0] < middle < worst < beyond
    assert [each.values for each in done] == [[0.001], [0.01], [0.1], [1.0]]  # the study's own


@pytest.mark.parametrize(
    ("reports", "foresees"),
    [({10: 1.0}, False), ({}, True), ({5: 1.0}, True), ({10: math.inf}, True)],
    ids=["not asked", "no report", "a step of its own", "diverged"],
)
def test_a_pruned_trial_whose_end_nobody_can_tell_stays_pruned(reports, foresees):
    done = [trial(n, end, {10: end}) for n, end in enumerate([0.1, 0.2, 0.4])]
    seen = shown([*done, trial(3, None, reports)], MINIMIZE, foresees=foresees)
    assert seen[3].state is TrialState.PRUNED


def test_what_diverged_counts_as_the_worst_that_did_not():
    seen = shown(
        [trial(n, end) for n, end in enumerate([1.0, math.inf, 2.0, 4.0])], MINIMIZE, foresees=True
    )
    assert seen[1].values == seen[3].values
    seen = shown([trial(0, math.inf)], MINIMIZE, foresees=True)
    assert values(seen) == [0.0]


def test_several_objectives_are_warped_each_by_itself():
    both = [create_trial(values=[10.0**n, float(n)]) for n in range(-4, 4)]
    for number, each in enumerate(both):
        each.number = number
    directions = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    first, second = np.array([each.values for each in shown(both, directions, foresees=False)]).T
    assert np.ptp(np.diff(first)) < 0.05 * np.diff(first).mean()  # decades lie evenly
    assert (np.diff(second) > 0).all()


# In a search -------------------------------------------------------------------------------------


def searched(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """Search a valley over a rate, whose runs are pruned at step 10 unless they are the best so far."""
    study = optuna.create_study(sampler=sampler)
    best = math.inf
    for _ in range(24):
        asked = study.ask()
        lr = asked.suggest_float("lr", 1e-3, 1e-1, log=True)
        loss = 1e-3 * math.exp(4 * abs(math.log10(lr / 2e-2)))
        asked.report(20 * loss, 10)
        if loss > 3 * best:
            study.tell(asked, state=TrialState.PRUNED)
        else:
            best = min(best, loss)
            study.tell(asked, loss)
    return study


def test_a_process_that_sees_pruned_trials_wastes_fewer_on_where_they_were():
    def pruned(foresees: bool) -> int:
        inner = GPSampler(seed=3, n_startup_trials=5, warn_independent_sampling=False)
        study = searched(WarpedSampler(inner, foresees=foresees))
        return sum(each.state is TrialState.PRUNED for each in study.trials)

    assert pruned(foresees=True) < pruned(foresees=False)


def test_what_is_drawn_alone_is_drawn_from_the_study_itself():
    study = searched(WarpedSampler(RandomSampler(seed=0), foresees=True))
    plain = searched(RandomSampler(seed=0))
    assert [each.params for each in study.trials] == [each.params for each in plain.trials]
