"""A sweep that has begun and is asked for more: further trials, a value more on an axis. Pure.

Whatever was told stays part of the wider question, so nothing is trained again. Must not import torch.
"""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from harness.errors import RequestError, near_names
from harness.question.axes import Axis, CaseAxis, ChoiceAxis, NumberAxis
from harness.question.load import question_of
from harness.question.points import Space
from harness.question.question import Question
from harness.question.settings import MOST, Transfer
from harness.question.values import normalized


def with_trials(question: Question, trials: int) -> Question:
    """Return a question that has at least so many trials in the end.

    Raises RequestError for a grid that has every point, and for a number that no sweep can have.
    """
    search = question.search
    if search.trials is None:
        raise RequestError(
            "a grid has every point of its space already; a value more on an axis gives it further ones"
        )
    if not 1 <= trials <= MOST:
        raise RequestError(f"search.trials={trials} must be from 1 to {MOST:,}")
    return replace(question, search=replace(search, trials=max(trials, search.trials)))


def with_value(question: Question, key: str, value: str) -> Question:
    """Return a question whose axis `key` has a value more, or an end further out; one it has changes nothing.

    Raises RequestError where there is no such axis, or one that cannot have this value.
    """
    axes = {axis.key: axis for axis in question.space.axes}
    if question.search.transfer is not Transfer.none:
        raise RequestError(
            f"search.transfer={question.search.transfer.value}: which points are tried follows from the "
            "rates of the first ranks, so that the space cannot grow; ask it under another name"
        )
    if key not in axes:
        raise RequestError(
            f"{key!r} is no axis of this sweep{near_names(key, axes)}; its axes are {', '.join(axes)}"
        )
    grammar = _grammar_with(axes[key], normalized(value.strip()))
    if grammar is None:
        return question
    wider = question_of(question.tree(), question.name, [f"{key}={grammar}"])
    # A tree leaves out what else there is to keep, as the password of a url.
    return replace(question, space=wider.space, compare=wider.compare)


def _grammar_with(axis: Axis, value: str) -> str | None:
    """Return an axis with a value more in Hydra's grammar; None where it has that value."""
    match axis:
        case CaseAxis():
            raise RequestError(
                f"{axis.key} has cases, which name several keys each; ask for another one in a sweep's file, "
                "under another name"
            )
        case ChoiceAxis():
            if value in axis.values:
                return None
            return replace(axis, values=_ordered([*axis.values, value])).grammar
        case NumberAxis():
            return _range_with(axis, value)


def _ordered(values: Sequence[str]) -> tuple[str, ...]:
    """Return values with the last one in its place, where the others are numbers by their size."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return tuple(values)
    if numbers[:-1] != sorted(numbers[:-1]):
        return tuple(values)
    return tuple(sorted(values, key=float))


def _range_with(axis: NumberAxis, text: str) -> str | None:
    try:
        value = float(text)
    except ValueError:
        raise RequestError(f"{axis.key}={text} is not a number; {axis.described}") from None
    if axis.integer and not value.is_integer():
        raise RequestError(f"{axis.key}={text} is no whole number; {axis.described}")
    if axis.log and value <= 0:
        raise RequestError(f"{axis.key}={text}: a logarithm needs numbers above 0")
    if axis.step is not None:
        away = (Decimal(repr(value)) - Decimal(repr(axis.low))) / Decimal(repr(axis.step))
        if away != away.to_integral_value():
            raise RequestError(f"{axis.key}={text} is on no step of it; {axis.described}")
    if axis.low <= value <= axis.high:
        return None
    return replace(axis, low=min(axis.low, value), high=max(axis.high, value)).grammar


def can_grow_to(question: Question, earlier: Space) -> bool:
    """Whether a sweep that has begun with an earlier space can go on with the question."""
    return question.search.transfer is Transfer.none and contains(question.space, earlier)


def contains(space: Space, earlier: Space) -> bool:
    """Whether every point of an earlier space is one of `space`, whose axes are the same otherwise."""
    if len(space.axes) != len(earlier.axes):
        return False
    return all(_has_all(now, before) for now, before in zip(space.axes, earlier.axes, strict=True))


def _has_all(now: Axis, before: Axis) -> bool:
    if (now.key, now.condition) != (before.key, before.condition):
        return False
    match now, before:
        case ChoiceAxis(), ChoiceAxis():
            return set(before.values) <= set(now.values)
        case CaseAxis(), CaseAxis():
            return before.cases.items() <= now.cases.items()
        case NumberAxis(), NumberAxis():
            same = (now.step, now.log, now.integer) == (before.step, before.log, before.integer)
            aligned = now.choices is None or set(before.choices or ()) <= set(now.choices)
            return same and aligned and now.low <= before.low and now.high >= before.high
        case _:
            return False
