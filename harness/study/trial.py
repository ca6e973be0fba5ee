"""A trial as the harness sees it: a point, and what was told of it; and its axes as Optuna sees them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as OptunaTrial

from harness.errors import RequestError
from harness.question.axes import Axis, CaseAxis, ChoiceAxis, NumberAxis
from harness.question.points import Point
from harness.question.question import Question


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
    """One per objective, of a completed trial; infinite where the run diverged or did not fit."""
    violations: tuple[float, ...]
    """One per constraint, at most 0 where it is kept; empty before the trial is completed."""
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


# Axes as parameters -------------------------------------------------------------------------------

SIGNIFICANT_DIGITS = 4
"""Digits of a number drawn from an interval: nobody reads more, and nothing depends on them."""


def exists(axis: Axis, point: Point) -> bool:
    """Whether a point, in which the earlier axes are known, has this axis."""
    return axis.condition is None or axis.condition.holds(point)


def distribution_of(axis: Axis) -> BaseDistribution:
    """Return Optuna's parameter for an axis: numbers are numbers, choices are categories."""
    match axis:
        case ChoiceAxis():
            return CategoricalDistribution(_typed(axis.values))
        case CaseAxis():
            return CategoricalDistribution(list(axis.cases))
        case NumberAxis():
            return _number_distribution(axis)
        case unknown:
            assert_never(unknown)


def suggest(trial: OptunaTrial, axis: Axis) -> str:
    """Let a trial of Optuna's choose a value of an axis; return it as it is spelled."""
    match distribution_of(axis):
        case IntDistribution(low=low, high=high, step=step, log=log):
            return spelled(axis, trial.suggest_int(axis.key, low, high, step=step, log=log))
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return spelled(axis, trial.suggest_float(axis.key, low, high, step=step, log=log))
        case CategoricalDistribution(choices=choices):
            return spelled(axis, trial.suggest_categorical(axis.key, choices))
        case unknown:
            raise AssertionError(unknown)


def value_of(axis: Axis, text: str) -> Any:
    """Return the parameter's value for a spelled value."""
    match axis:
        case ChoiceAxis():
            return _typed(axis.values)[axis.values.index(text)]
        case CaseAxis():
            return text
        case NumberAxis():
            return int(text) if axis.integer else float(text)
        case unknown:
            assert_never(unknown)


def spelled(axis: Axis, value: Any) -> str:
    """Return the text of a parameter's value; reading it back gives exactly that value."""
    match axis:
        case ChoiceAxis():
            return axis.values[_typed(axis.values).index(value)]
        case CaseAxis():
            return value
        case NumberAxis():
            return axis.spelled(value)
        case unknown:
            assert_never(unknown)


def point_of(axes: Iterable[Axis], parameters: Mapping[str, Any]) -> Point | None:
    """Return the point that a trial's parameters spell, or None where a parameter is missing."""
    point: Point = {}
    for axis in axes:
        if not exists(axis, point):
            continue
        if axis.key not in parameters:
            return None
        point[axis.key] = spelled(axis, parameters[axis.key])
    return point


def rounded(axis: Axis, value: Any) -> Any:
    """Return a drawn value with the digits that are worth storing, still inside its axis.

    A narrow interval gets as many more digits as its bounds have in common.
    """
    if not isinstance(axis, NumberAxis) or axis.integer:
        return value
    if axis.step is not None:
        value = _on_step(axis.low, axis.step, round((value - axis.low) / axis.step))
    elif axis.high > axis.low:
        common = math.log10(max(abs(axis.low), abs(axis.high)) / (axis.high - axis.low))
        value = _with_digits(value, SIGNIFICANT_DIGITS + max(0, math.floor(common)))
    return min(max(value, axis.low), axis.high)


def _number_distribution(axis: NumberAxis) -> BaseDistribution:
    if axis.integer:
        step = int(axis.step or 1)
        high = int(axis.low) + (int(axis.high) - int(axis.low)) // step * step
        return IntDistribution(int(axis.low), high, log=axis.log and step == 1, step=step)
    if axis.step is None:
        return FloatDistribution(axis.low, axis.high, log=axis.log)
    count = math.floor((axis.high - axis.low) / axis.step + 1e-9)
    return FloatDistribution(axis.low, _on_step(axis.low, axis.step, count), step=axis.step)


def _on_step(low: float, step: float, count: int) -> float:
    """Return low + count * step without the last bits, which are the sum's error."""
    return _with_digits(low + count * step, 12)


def _with_digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")


def _typed(values: tuple[str, ...]) -> list[bool | int | float | str]:
    """Return choices as the values that they spell, or as texts where two would be equal (1, true, 1.0)."""
    typed = [_read(text) for text in values]
    return typed if len(set(typed)) == len(typed) else list(values)


def _read(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            value = read(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text
