"""Every pinned setting is Optuna's own default, but for those that the code gives a reason for."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import CmaEsSampler, GPSampler, NSGAIISampler, TPESampler

from harness.errors import RequestError
from harness.question.axes import NumberAxis
from harness.question.question import Question
from harness.question.settings import Method, PrunerName
from harness.study.samplers import pruner_settings, sampler_settings, seed_of_trial
from tests.study.test_study import AXES, EXACT, LOSS, asked

PLAIN = tuple(axis for axis in AXES if axis.condition is None)


def defaults(of: Callable[..., Any]) -> dict[str, Any]:
    found = inspect.signature(of.__init__).parameters.values()  # type: ignore[misc]
    return {each.name: each.default for each in found}


@pytest.mark.parametrize(
    ("method", "sampler", "chosen"),
    [
        (Method.tpe, TPESampler, {"multivariate": True, "group": True}),
        (Method.gp, GPSampler, {}),
        (Method.nsga2, NSGAIISampler, {"population_size": 20}),
        (Method.cmaes, CmaEsSampler, {"popsize": 7}),  # of three numbers: 4 + 3 ln 3
    ],
)
def test_settings_are_the_defaults_and_what_is_chosen(method, sampler, chosen) -> None:
    own = defaults(sampler)
    found = sampler_settings(asked(method))
    assert found == {key: own[key] for key in found} | chosen
    assert found.keys() <= own.keys()


def test_tpe_draws_together_for_one_objective_and_in_groups_where_axes_have_conditions() -> None:
    def chosen(**parts: Any) -> tuple[bool, bool]:
        found = sampler_settings(asked(Method.tpe, **parts))
        return found["multivariate"], found["group"]

    assert chosen(axes=PLAIN) == (True, False)
    assert chosen(objectives=(LOSS, EXACT)) == (False, False)
    assert sampler_settings(asked(Method.random)) == sampler_settings(asked(Method.grid)) == {}


@pytest.mark.parametrize("count", [2, 3, 5, 9, 20])
def test_the_population_of_cma_es_is_that_of_its_authors(count: int) -> None:
    cma = pytest.importorskip("cmaes").CMA(mean=np.zeros(count), sigma=1.0)
    axes = tuple(NumberAxis(key=f"axis{n}", low=0.0, high=1.0) for n in range(count))
    question = asked(Method.cmaes, axes=axes)
    assert sampler_settings(question)["popsize"] == cma.population_size
    with pytest.raises(RequestError, match="searches one objective"):
        sampler_settings(asked(Method.cmaes, axes=axes, objectives=(LOSS, EXACT)))


def halving(pruner: PrunerName) -> Question:
    question = asked(Method.random, pruner=pruner)
    return replace(question, search=replace(question.search, reduction_factor=5))


@pytest.mark.parametrize(
    ("name", "pruner", "chosen"),
    [
        (PrunerName.asha, SuccessiveHalvingPruner, {"min_resource": 6, "reduction_factor": 5}),
        (
            PrunerName.hyperband,
            HyperbandPruner,
            {"min_resource": 6, "max_resource": 90, "reduction_factor": 5},
        ),
        (PrunerName.median, MedianPruner, {"interval_steps": 6}),
    ],
)
def test_pruners_go_by_steps_of_evaluations(name, pruner, chosen) -> None:
    found = pruner_settings(halving(name), 6, 90)
    assert found == {key: defaults(pruner)[key] for key in found} | chosen
    assert pruner_settings(halving(PrunerName.none), None, None) == {}


def test_what_a_pruner_lacks_is_refused() -> None:
    hyperband = halving(PrunerName.hyperband)
    assert pruner_settings(hyperband, 6, 6)["max_resource"] == 6
    for total in (None, 5):
        with pytest.raises(RequestError, match="one number of steps for all runs"):
            pruner_settings(hyperband, 6, total)
    with pytest.raises(RequestError, match="needs evaluations during the training"):
        pruner_settings(hyperband, None, 90)
    two = replace(hyperband, objectives=(LOSS, EXACT))
    with pytest.raises(RequestError, match="compares one objective and 2 are asked for"):
        pruner_settings(two, 6, 90)


def test_every_trial_is_drawn_with_a_seed_of_its_own_from_numpys_sequence() -> None:
    seeds = {(s, n): seed_of_trial(s, n) for s in range(4) for n in range(30)}
    assert len(set(seeds.values())) == 120
    assert seeds[3, 7] == np.random.SeedSequence((3, 7)).generate_state(1)[0]
