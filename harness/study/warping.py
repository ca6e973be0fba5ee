"""Outcomes as a Gaussian process learns from them best: evenly spread, and those of runs given up foreseen.

Losses crowd near zero and reach far up; a process fitted to them as they are sees the far ones only. Warping
the outcomes before fitting is from HEBO (Cowen-Rivers et al. 2020, arXiv 2012.03826).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

EXPONENTS = np.linspace(-1.0, 1.0, 21)
"""Exponents of the power transforms that are tried: from 1/x over log x (0) to x as it is (1)."""
FEWEST_ENDS = 3
"""Completed trials with a report at a step, from which ends are foreseen."""

Warp = Callable[[np.ndarray], np.ndarray]


def fitted_warp(values: Sequence[float], others: Sequence[float] = ()) -> Warp:
    """Return the increasing power transform after which finite `values` are most nearly normal.

    Box-Cox (1964) where all of them, and all `others` that it is to take, are above zero; else Yeo-Johnson
    (2000). The exponent is the likeliest of `EXPONENTS`. Fewer than three different values stay as they are.
    """
    known = np.asarray(values, dtype=float)
    if len(np.unique(known)) < FEWEST_ENDS:
        return np.asarray
    is_positive = min(*values, *others) > 0
    likelihood = stats.boxcox_llf if is_positive else stats.yeojohnson_llf
    transform = stats.boxcox if is_positive else stats.yeojohnson
    with np.errstate(all="ignore"):
        likelihoods = np.array([likelihood(exponent, known) for exponent in EXPONENTS])
    likelihoods[~np.isfinite(likelihoods)] = -np.inf
    exponent = float(EXPONENTS[likelihoods.argmax()])
    return lambda numbers: np.asarray(transform(numbers, exponent))


def expected_end(report: float, reports: Sequence[float], ends: Sequence[float]) -> float | None:
    """Return the end of a run by the least-squares line through others' reports and ends, never falling.

    All are warped, the reports of one step. None with fewer than `FEWEST_ENDS` others.
    """
    if len(ends) < FEWEST_ENDS:
        return None
    x, y = np.asarray(reports), np.asarray(ends)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    return float(y.mean() + max(0.0, slope) * (report - x.mean()))


class WarpedSampler(BaseSampler):
    """Another sampler that draws together, shown outcomes warped and pruned trials at their expected ends.

    Unless it `foresees`, pruned trials stay as they are.
    """

    def __init__(self, sampler: BaseSampler, *, foresees: bool) -> None:
        self._sampler = sampler
        self._foresees = foresees
        self._shown: tuple[int, Study] | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the sampler draws together."""
        return self._sampler.infer_relative_search_space(self._view(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw several parameters together."""
        view = self._view(study, trial)
        itself = view.get_trials(deepcopy=False)[trial.number]
        return self._sampler.sample_relative(view, itself, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def _view(self, study: Study, trial: FrozenTrial) -> Study:
        """Return the study as the sampler is to see it; made once for a trial."""
        if self._shown is None or self._shown[0] != trial.number:
            view = optuna.create_study(directions=study.directions)
            known = study.get_trials(deepcopy=False)
            view.add_trials(shown(known, study.directions, foresees=self._foresees))
            self._shown = trial.number, view
        return self._shown[1]


def shown(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], *, foresees: bool
) -> list[FrozenTrial]:
    """Return trials with outcomes warped, and pruned ones as if they had come to their expected ends."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    pruned = [trial for trial in trials if foresees and trial.state is TrialState.PRUNED]
    reports = [value for trial in (*done, *pruned) for value in trial.intermediate_values.values()]
    warps: list[Warp] = []
    columns: list[np.ndarray] = []
    for index, direction in enumerate(directions):
        ends = _finite([(trial.values or [])[index] for trial in done], direction)
        warps.append(fitted_warp(ends, [report for report in reports if math.isfinite(report)]))
        columns.append(warps[index](np.array(ends)))
    seen = {trial.number: [float(column[i]) for column in columns] for i, trial in enumerate(done)}
    known = [(trial.intermediate_values, seen[trial.number][0]) for trial in done]
    for trial in pruned:
        end = _end_of(trial.intermediate_values, known, warps[0])
        if end is not None:
            seen[trial.number] = [end]
    return [_with_values(trial, seen.get(trial.number)) for trial in trials]


def _end_of(
    reports: Mapping[int, float],
    known: Sequence[tuple[Mapping[int, float], float]],
    warp: Warp,
) -> float | None:
    """Return the warped end that a trial's last report promises, by others' reports and warped ends."""
    if not reports:
        return None
    step = max(reports)
    pairs = [(others.get(step, math.nan), end) for others, end in known]
    pairs = [(report, end) for report, end in pairs if math.isfinite(report)]
    if not pairs or not math.isfinite(reports[step]):
        return None
    own, *others = warp(np.array([reports[step], *(report for report, _ in pairs)])).tolist()
    return expected_end(own, others, [end for _, end in pairs])


def _finite(values: Sequence[float], direction: StudyDirection) -> list[float]:
    """Return values with the worst finite one in the place of what diverged."""
    finite = [value for value in values if math.isfinite(value)]
    worst = max if direction is StudyDirection.MINIMIZE else min
    instead = worst(finite, default=0.0)
    return [value if math.isfinite(value) else instead for value in values]


def _with_values(trial: FrozenTrial, values: list[float] | None) -> FrozenTrial:
    if values is None:
        return trial
    other = copy.copy(trial)
    other.state, other.values = TrialState.COMPLETE, values
    return other
