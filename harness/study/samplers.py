"""Optuna's samplers and pruners with every setting pinned: a new version of the library changes no search."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, assert_never

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.errors import RequestError
from harness.question.axes import Axis, NumberAxis
from harness.question.question import Question
from harness.question.settings import Method, PrunerName
from harness.study.trial import rounded

_MEANT = (
    "Clip non-finite values",  # gp takes the worst finite value for a run that diverged: as it should
    "Constraints have been set, but CmaEsSampler",  # they still decide what is best
)


class PointSampler(BaseSampler):
    """Another sampler whose numbers are rounded before they are stored, with some values given, not drawn."""

    def __init__(
        self, sampler: BaseSampler, axes: Sequence[Axis], given: Mapping[str, Any]
    ) -> None:
        self._sampler = sampler
        self._axes = {axis.key: axis for axis in axes}
        self._given = given

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the sampler draws together: nothing beside given values, which it may not expect."""
        space = self._sampler.infer_relative_search_space(study, trial)
        return {} if self._given else space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw several parameters together."""
        drawn = self._sampler.sample_relative(study, trial, search_space)
        return {key: rounded(self._axes[key], value) for key, value in drawn.items()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter, or return the given one."""
        if param_name in self._given:
            return self._given[param_name]
        drawn = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return rounded(self._axes[param_name], drawn)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the sampler prepare."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the sampler learn of an outcome."""
        self._sampler.after_trial(study, trial, state, values)


def sampler_settings(question: Question) -> dict[str, Any]:
    """Return a method's settings, by the names of Optuna's arguments.

    Raises:
        RequestError: the method cannot search this space.
    """
    axes = question.space.axes
    single = len(question.objectives) == 1
    match question.search.method:
        case Method.grid | Method.random:
            return {}
        case Method.tpe:
            # As Optuna itself chooses: jointly for one objective, each parameter alone for several.
            # Jointly and with conditions, the groups of parameters that occur together.
            conditional = any(axis.condition is not None for axis in axes)
            return {
                "n_startup_trials": 10,
                "n_ei_candidates": 24,
                "multivariate": single,
                "group": single and conditional,
                "constant_liar": True,  # other trials are running while this one is drawn
            }
        case Method.gp:
            return {"n_startup_trials": 10, "deterministic_objective": False}
        case Method.nsga2:
            # Optuna's population of 50 would leave a usual sweep in its random first generation.
            return {
                "population_size": 20,
                "mutation_prob": None,
                "crossover_prob": 0.9,
                "swapping_prob": 0.5,
            }
        case Method.cmaes:
            return _cmaes_settings(axes, single)
        case unknown:
            assert_never(unknown)


def _cmaes_settings(axes: Sequence[Axis], single: bool) -> dict[str, Any]:
    numbers = [a for a in axes if isinstance(a, NumberAxis) and a.condition is None]
    if not single:
        raise RequestError(
            "search.method=cmaes searches one objective; several: search.method=nsga2, tpe or gp"
        )
    if not numbers:
        raise RequestError(
            "search.method=cmaes learns from numbers only, and the space has no interval or range that"
            " exists at every point; choices: search.method=tpe"
        )
    if find_spec("cmaes") is None:
        raise RequestError("search.method=cmaes needs a package of that name: pip install cmaes")
    return {
        "n_startup_trials": 1,
        "popsize": 4 + math.floor(3 * math.log(len(numbers))),  # Hansen 2016, table 1
        "consider_pruned_trials": False,
        "use_separable_cma": False,
        "with_margin": False,
        "lr_adapt": False,
    }


def build_sampler(method: Method, settings: Mapping[str, Any], seed: int) -> BaseSampler:
    """Build Optuna's sampler for a method; a grid's sampler is never asked."""
    match method:
        case Method.grid | Method.random:
            return RandomSampler(seed=seed, **settings)
        case Method.tpe:
            return TPESampler(seed=seed, **settings)
        case Method.gp:
            return GPSampler(seed=seed, warn_independent_sampling=False, **settings)
        case Method.nsga2:
            return NSGAIISampler(seed=seed, **settings)
        case Method.cmaes:
            return CmaEsSampler(seed=seed, warn_independent_sampling=False, **settings)
        case unknown:
            assert_never(unknown)


def seed_of_trial(sampler_seed: int, number: int) -> int:
    """Return the seed with which a trial's point is drawn: a resumed study draws no point again."""
    return int(np.random.SeedSequence((sampler_seed, number)).generate_state(1)[0])


def pruner_settings(
    question: Question, eval_every_steps: int | None, total_steps: int | None
) -> dict[str, Any]:
    """Return a pruner's settings, by the names of Optuna's arguments; its resource is the step.

    Raises:
        RequestError: there are no evaluations to prune by.
    """
    search = question.search
    if search.pruner is PrunerName.none:
        return {}
    if len(question.objectives) > 1:
        raise RequestError(
            f"search.pruner={search.pruner.value} compares one objective and"
            f" {len(question.objectives)} are asked for; give one, or search.pruner=none"
        )
    if eval_every_steps is None:
        raise RequestError(
            f"search.pruner={search.pruner.value} needs evaluations during the training; set"
            " eval.every_steps, or search.pruner=none"
        )
    match search.pruner:
        case PrunerName.asha:
            return {
                "min_resource": eval_every_steps,
                "reduction_factor": search.reduction_factor,
                "min_early_stopping_rate": 0,
                "bootstrap_count": 0,
            }
        case PrunerName.hyperband:
            if total_steps is None or total_steps < eval_every_steps:
                raise RequestError(
                    "search.pruner=hyperband needs one number of steps for all runs, at least"
                    f" eval.every_steps; got {total_steps} and {eval_every_steps}; search.pruner=asha"
                    " needs none"
                )
            return {
                "min_resource": eval_every_steps,
                "max_resource": total_steps,
                "reduction_factor": search.reduction_factor,
                "bootstrap_count": 0,
            }
        case PrunerName.median:
            return {
                "n_startup_trials": 5,
                "n_warmup_steps": 0,
                "interval_steps": eval_every_steps,
                "n_min_trials": 1,
            }
        case unknown:
            assert_never(unknown)


def build_pruner(pruner: PrunerName, settings: Mapping[str, Any]) -> BasePruner:
    """Build Optuna's pruner."""
    match pruner:
        case PrunerName.none:
            return NopPruner()
        case PrunerName.asha:
            return SuccessiveHalvingPruner(**settings)
        case PrunerName.hyperband:
            return HyperbandPruner(**settings)
        case PrunerName.median:
            return MedianPruner(**settings)
        case unknown:
            assert_never(unknown)


@contextmanager
def without_optuna_warnings() -> Iterator[None]:
    """Keep back what Optuna says about settings that are pinned and outcomes that are meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for message in _MEANT:
            warnings.filterwarnings("ignore", message)
        yield
