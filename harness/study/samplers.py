"""Optuna's samplers and pruners with every setting pinned: a new version of the library changes no search.

In a search that compares levels each combination of them gets as many trials, and learns from its own alone:
best of more trials is better by chance, and a sampler that sees all levels tunes for the best of them. So the
compared levels of a trial are given, in turn, and sampler and pruner see the trials of the same levels.
"""

import math
import warnings
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, assert_never, cast

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
from harness.question.compare import quota_combinations
from harness.question.points import Point
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
        self,
        sampler: BaseSampler,
        axes: Sequence[Axis],
        given: Mapping[str, Any],
        levels: Mapping[str, Any],
        *,
        learns_per_level: bool,
    ) -> None:
        """`levels`: the values of the compared axes, beside which the rest is drawn as ever."""
        self._sampler = sampler
        self._axes = {axis.key: axis for axis in axes}
        self._given = given
        self._levels = levels
        self._learns_per_level = learns_per_level and bool(levels)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the sampler draws together: nothing beside given values, which it may not expect."""
        space = self._sampler.infer_relative_search_space(self._seen(study), trial)
        left = {key: kind for key, kind in space.items() if key not in self._levels}
        return {} if self._given else left

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw several parameters together."""
        drawn = self._sampler.sample_relative(self._seen(study), trial, search_space)
        return {key: rounded(self._axes[key], value) for key, value in drawn.items()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter, or return the given one."""
        for fixed in (self._given, self._levels):
            if param_name in fixed:
                return fixed[param_name]
        seen = self._seen(study)
        drawn = self._sampler.sample_independent(seen, trial, param_name, param_distribution)
        return rounded(self._axes[param_name], drawn)

    def _seen(self, study: Study) -> Study:
        """Return the study as the sampler is to see it: whole, or the trials of these levels."""
        if not self._learns_per_level:
            return study
        return cast(Study, LevelStudy(study, self._levels))

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
                "n_startup_trials": startup_trials(question),
                "n_ei_candidates": 24,
                "multivariate": single,
                "group": single and conditional,
                "constant_liar": True,  # other trials are running while this one is drawn
            }
        case Method.gp:
            return {
                "n_startup_trials": startup_trials(question),
                "deterministic_objective": False,
            }
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


# Levels that are compared --------------------------------------------------------------------------


LEARNS_PER_LEVEL = (Method.tpe, Method.gp)
"""Samplers that are shown the trials of a level alone; a population's generations are kept by study."""
STARTUP_TRIALS = 10


def compared_levels(question: Question) -> list[Point]:
    """Return the combinations between which trials are shared; none where nothing is compared or drawn."""
    if not question.compare or question.search.method is Method.grid:
        return []
    return quota_combinations(question.compare, question.space)


def next_level(levels: Sequence[Point], points: Sequence[Point]) -> Point:
    """Return the combination that the fewest of the trials' points have, the first of several."""
    keys = {key for level in levels for key in level}
    had = Counter(
        tuple((key, point[key]) for key in sorted(keys) if key in point) for point in points
    )
    return min(levels, key=lambda level: had[tuple(sorted(level.items()))])


def startup_trials(question: Question) -> int:
    """Return how many trials a sampler draws at random: of each level at most a third, at least 3."""
    levels = len(compared_levels(question))
    if not levels:
        return STARTUP_TRIALS
    return min(STARTUP_TRIALS, max(3, (question.search.trials or 0) // levels // 3))


class LevelStudy:
    """A study of which only the trials with some parameter values are seen, as Optuna's Hyperband has it."""

    def __init__(self, study: Study, levels: Mapping[str, Any]) -> None:
        self._whole = study
        self._levels = levels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials of the level."""
        return self.get_trials()

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of the level."""
        return self._of_level(self._whole.get_trials(deepcopy=deepcopy, states=states))

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return self._of_level(self._whole._get_trials(deepcopy, states, use_cache))

    def _of_level(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        return [
            trial
            for trial in trials
            if all(trial.params.get(key) == value for key, value in self._levels.items())
        ]
