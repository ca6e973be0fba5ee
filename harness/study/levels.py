"""A search that compares levels: each combination of them gets as many trials, and learns from its own alone.

Best of more trials is better by chance, and a sampler that sees all levels tunes for the best of them. So the
compared levels of a trial are given, in turn, and sampler and pruner see the trials of the same levels.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.question.compare import quota_combinations
from harness.question.points import Point
from harness.question.question import Question
from harness.question.settings import Method

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
