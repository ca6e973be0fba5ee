"""From Hydra's sweep grammar to an axis without a condition. Must not import torch.

`choice(a, b)` or `a,b`, `glob(int4*)` over a group's options, `range(2, 10, 2)` without its stop as Hydra has
it, `interval(1e-4, 1e-2)` with both ends as Optuna has it, `int(…)` for whole numbers, `sort(…)`, and
`tag(log, interval(…))` for an interval that is searched by its logarithm.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from harness.config.compose import group_options
from harness.config.overrides import read_override
from harness.errors import RequestError, near_names
from harness.question.axes import CaseAxis, ChoiceAxis, NumberAxis
from harness.question.keys import check_values, is_group, is_integer, is_number
from harness.question.values import reason_of, spelled

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

FORMS = (
    "choice(a, b), range(start, stop, step), interval(low, high), int(interval(low, high)) or "
    "tag(log, interval(low, high))"
)
_LOG = "log"
MAX_RANGE = 10_000
"""Values of one range; every one of them may become a run."""


def is_sweep(value: str) -> bool:
    """Whether the text after `key=` gives several values. Text that cannot be read gives none."""
    from hydra.errors import HydraException

    try:
        return read_override(f"key={value}").is_sweep_override()
    except HydraException:
        return value.lstrip().startswith(FUNCTIONS)


FUNCTIONS = ("choice(", "range(", "interval(", "tag(", "glob(", "sort(", "shuffle(")
"""What a value begins with that gives several in words."""


def axis_from_text(key: str, text: str) -> ChoiceAxis | NumberAxis:
    """Return the axis that `text` describes for the key or group `key`, which is known to be one.

    Raises RequestError for text that is no sweep, an empty or repeated choice, a value or option that the
    key cannot take, bounds that leave nothing, a tag without a meaning.
    """
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep

    match _sweep_from_text(key, text):
        case ChoiceSweep() as sweep:
            _check_order(key, text, sweep)
            return _choice_axis(key, text, sweep.list)
        case Glob() as glob:
            return _choice_axis(key, text, _options(key, text, glob))
        case RangeSweep() as sweep:
            _check_order(key, text, sweep)
            return _range_axis(key, text, sweep)
        case IntervalSweep() as sweep:
            return _interval_axis(key, text, sweep)
        case value:
            shown = spelled(value)
            raise RequestError(
                f"{key}={shown} is one value, not an axis; write {FORMS}, or give {key}={shown} in base"
            )


def cases_of(axis: CaseAxis, text: str) -> CaseAxis:
    """Return an axis of cases with those that `text` chooses of it, e.g. `choice(qv, mlp)`."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob

    match _sweep_from_text(axis.key, text):
        case ChoiceSweep() as sweep:
            labels = [spelled(each) for each in sweep.list]
        case Glob() as glob:
            labels = glob.filter(list(axis.cases))
        case _:
            raise RequestError(f"{axis.key}={text}: cases are chosen by choice(a, b) or a,b")
    for label in labels:
        if label not in axis.cases:
            raise RequestError(
                f"{axis.key}={label} is none of its cases{near_names(label, axis.cases)}; there are "
                f"{', '.join(axis.cases)}"
            )
    _check_distinct(axis.key, text, labels)
    return replace(axis, cases={label: axis.cases[label] for label in labels})


def _sweep_from_text(key: str, text: str) -> Any:
    from hydra.errors import HydraException

    try:
        return read_override(f"{key}={text}").value()
    except HydraException as error:
        null = "; a choice with null is written a,null" if "NoneType" in str(error) else ""
        raise RequestError(
            f"{key}={text} cannot be read: {reason_of(error)}{null}; write {FORMS}"
        ) from error


def _check_order(key: str, text: str, sweep: Any) -> None:
    if sweep.shuffle:
        raise RequestError(
            f"{key}={text}: an order drawn anew each time could not be resumed; leave shuffle out"
        )
    if sweep.tags:
        raise RequestError(
            f"{key}={text}: tag({', '.join(sorted(sweep.tags))}, …) would be ignored; it belongs to "
            "an interval: tag(log, interval(low, high))"
        )


# Choices -----------------------------------------------------------------------------------------


def _choice_axis(key: str, text: str, elements: Sequence[Any]) -> ChoiceAxis:
    from hydra.core.override_parser.types import Sweep

    for element in elements:
        if isinstance(element, (Sweep, dict)):
            raise RequestError(
                f"{key}={text}: a choice is between plain values; several keys at once are `cases`"
            )
    values = [spelled(element) for element in elements]
    _check_distinct(key, text, values)
    check_values(key, values)
    return ChoiceAxis(key, tuple(values))


def _check_distinct(key: str, text: str, values: Sequence[str]) -> None:
    if not values:
        raise RequestError(f"{key}={text} chooses from nothing; give at least one value")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise RequestError(f"{key}={text} gives {', '.join(twice)} twice; give each value once")


def _options(key: str, text: str, glob: Any) -> list[str]:
    if not is_group(key):
        raise RequestError(
            f"{key}={text}: glob chooses from the options of a group ({', '.join(group_options())}), "
            f"and {key} is none"
        )
    options = group_options()[key]
    found = glob.filter(options)
    if not found:
        raise RequestError(f"{key}={text} matches no option; {key} has {', '.join(options)}")
    return found


# Numbers -----------------------------------------------------------------------------------------


def _range_axis(key: str, text: str, sweep: "RangeSweep") -> NumberAxis:
    """Return the axis of a range, from its least value up, whichever way it was written."""
    assert sweep.start is not None
    assert sweep.stop is not None
    start, stop, step = (Decimal(repr(part)) for part in (sweep.start, sweep.stop, sweep.step))
    if step == 0 or not all(part.is_finite() for part in (start, stop, step)):
        raise RequestError(f"{key}={text}: a range needs finite numbers and a step that is not 0")
    count = math.ceil((stop - start) / step)
    if count < 1:
        raise RequestError(
            f"{key}={text} is empty: from {start} by {step} there is nothing to {stop}"
        )
    if count > MAX_RANGE:
        raise RequestError(
            f"{key}={text} has {count:,} values, and a range at most {MAX_RANGE:,}; write a larger step, or "
            f"{'int(' if is_integer(key) else ''}interval({start}, {stop}){')' if is_integer(key) else ''} "
            "with an adaptive or random search"
        )
    last = start + (count - 1) * step
    integer = all(isinstance(part, int) for part in (sweep.start, sweep.stop, sweep.step))
    _check_kind(key, text, integer)
    low, high, size = (float(part) for part in (min(start, last), max(start, last), abs(step)))
    return NumberAxis(key, low, high, step=size, integer=integer)


def _interval_axis(key: str, text: str, sweep: "IntervalSweep") -> NumberAxis:
    assert sweep.start is not None
    assert sweep.end is not None
    low, high, tags = sweep.start, sweep.end, sweep.tags
    unknown = sorted(tags - {_LOG})
    if unknown:
        near = near_names(unknown[0], [_LOG])
        raise RequestError(f"{key}={text}: the tag {unknown[0]} has no meaning{near}; there is log")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RequestError(
            f"{key}={text}: an interval goes from a number to a larger one, got {low} and {high}"
        )
    if tags and low <= 0:
        raise RequestError(f"{key}={text}: a logarithm needs numbers above 0, got {low}")
    integer = isinstance(low, int)
    _check_kind(key, text, integer)
    return NumberAxis(key, float(low), float(high), log=bool(tags), integer=integer)


def _check_kind(key: str, text: str, integer: bool) -> None:
    if not is_number(key):
        kind = "a group" if is_group(key) else "not a number"
        raise RequestError(f"{key}={text}: {key} is {kind}; write {key}=choice(a, b)")
    if is_integer(key) and not integer:
        raise RequestError(f"{key}={text}: {key} takes whole numbers; write int({text})")
