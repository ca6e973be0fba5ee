"""A trial as the harness sees it: a point, and what has been told of it."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from harness.errors import RequestError
from harness.question.points import Point
from harness.question.question import Question
from harness.study.parameters import point_of


class TrialStatus(Enum):
    """Where a trial stands."""

    running = "running"
    completed = "completed"
    pruned = "pruned"
    failed = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point that was asked for, and what has been told of it."""

    number: int
    point: Point
    status: TrialStatus
    values: tuple[float, ...] | None
    """Values of a completed trial, one per objective; infinite where the run diverged or did not fit."""
    violations: tuple[float, ...]
    """Violations, one per constraint, at most 0 where it is kept; empty before the trial is completed."""
    reports: dict[int, float]
    """The first objective while it trained, by step."""
    notes: dict[str, Any]


_STATUS = {
    TrialState.RUNNING: TrialStatus.running,
    TrialState.COMPLETE: TrialStatus.completed,
    TrialState.PRUNED: TrialStatus.pruned,
    TrialState.FAIL: TrialStatus.failed,
}


def trial_of(trial: FrozenTrial, question: Question, given: Point) -> Trial:
    """Return a trial of Optuna's; where its point was given, as it was written (`1e-3`, not `0.001`).

    Raises:
        RequestError: another program has made the trial.
    """
    point = point_of(question.space.axes, trial.params)
    if trial.state is TrialState.WAITING or point is None:
        raise RequestError(
            f"trial {trial.number} of the study {question.name} was made by another program; points to"
            " begin with stand in search.starts; give the sweep another name"
        )
    status = _STATUS[trial.state]
    is_completed = status is TrialStatus.completed
    violations = trial.constraints
    return Trial(
        number=trial.number,
        point={key: given.get(key, text) for key, text in point.items()},
        status=status,
        values=tuple(trial.values or ()) if is_completed else None,
        violations=tuple(
            violations[constraint.metric] for constraint in question.constraints if is_completed
        ),
        reports=dict(trial.intermediate_values),
        notes=dict(trial.user_attrs),
    )
