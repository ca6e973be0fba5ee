"""From the `space` of a sweep's file to axes: values, conditions and cases. Must not import torch.

An entry is a text in Hydra's sweep grammar, or a mapping:

    quant.double_quant: {values: "choice(true, false)", when: {quant.format: [nf4, fp4]}}
    lora.alpha:         {values: "choice(8, 32)", unless: {scale: by_rank}}
    targets:            {cases: {qv: [lora=qv, lora.rank=43], all: [lora=all_linear, lora.rank=8]}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.config.compose import parse_override, prepare_overrides
from harness.errors import RequestError, near_names
from harness.question.axes import Axis, CaseAxis, Condition, NumberAxis
from harness.question.grammar import FORMS, axis_from_text, cases_of
from harness.question.keys import check_axis_key, check_label
from harness.question.values import normalized

_PARTS = ("values", "cases", "when", "unless")


@dataclass(slots=True, kw_only=True)
class Entries:
    """The axes of a question as they were written, and what the command line has made of them."""

    axes: dict[str, Any] = field(default_factory=dict)
    """Key -> a text in Hydra's grammar, or a mapping."""
    fixed: dict[str, str] = field(default_factory=dict)
    """Key -> the value of an axis that is none any more; conditions on it are decided."""
    replaced: set[str] = field(default_factory=set)
    """Axes with other values than in the file; conditions on values that are gone are kept out."""
    where: str = ""
    """Beginning of every message about an axis of the file."""


def read_axes(entries: Entries) -> tuple[Axis, ...]:
    """Return the axes in order; one whose condition can never hold is left out.

    Raises RequestError that names file, axis, what was given, and near names.
    """
    found: dict[str, Axis | None] = {}
    labels = [
        k for k, entry in entries.axes.items() if isinstance(entry, dict) and "cases" in entry
    ]
    for key, entry in entries.axes.items():
        try:
            axis = _axis(key, entry, labels)
            condition = _condition(entry, entries, found)
        except RequestError as error:
            where = "" if key in entries.replaced else entries.where
            raise RequestError(f"{where}space: {error}") from error
        found[key] = None if condition is _NEVER else replace(axis, condition=condition)
    return tuple(axis for axis in found.values() if axis is not None)


def _axis(key: str, entry: Any, labels: Sequence[str]) -> Axis:
    if isinstance(entry, str):
        check_axis_key(key, labels)
        return axis_from_text(key, entry)
    if not isinstance(entry, dict):
        raise RequestError(
            f"{key}: {normalized(entry)} is no axis; write a text such as {FORMS}, or a mapping with "
            f"{', '.join(_PARTS)}"
        )
    for part in entry:
        if part not in _PARTS:
            raise RequestError(
                f"{key}: unknown key {part!r}{near_names(str(part), _PARTS)}; an axis has "
                f"{', '.join(_PARTS)}"
            )
    values, cases = entry.get("values"), entry.get("cases")
    if cases is not None:
        axis = _case_axis(key, cases)
        return axis if values is None else cases_of(axis, _text(key, values))
    check_axis_key(key, labels)
    return axis_from_text(key, _text(key, values))


def _text(key: str, values: Any) -> str:
    if not isinstance(values, str):
        given = "nothing" if values is None else normalized(values)
        raise RequestError(f"{key}: values must be a text such as {FORMS}, got {given}")
    return values


# Cases -------------------------------------------------------------------------------------------


def _case_axis(key: str, cases: Any) -> CaseAxis:
    check_label(key)
    if not isinstance(cases, dict) or not cases:
        raise RequestError(f"{key}: cases must be a mapping such as {{a: [lora=qv, lora.rank=8]}}")
    read = {_case_label(key, label): _case(key, label, given) for label, given in cases.items()}
    for label, overrides in read.items():
        same = [other for other in read if other != label and read[other] == overrides]
        if same:
            raise RequestError(f"{key}: the cases {label} and {same[0]} are the same")
    return CaseAxis(key, read)


def _case_label(key: str, label: Any) -> str:
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise RequestError(f"{key}: the case {label!r} must be a name; put it in quotes")
    text = str(label)
    if normalized(text) != text:
        raise RequestError(f"{key}: the case {text!r} must be a plain word, such as fixed_alpha")
    return text


def _case(key: str, label: Any, overrides: Any) -> tuple[str, ...]:
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise RequestError(
            f"{key}: the case {label} must be a list of overrides such as [lora=qv, lora.rank=8], got "
            f"{overrides!r}"
        )
    try:
        prepare_overrides(overrides)
        for text in overrides:
            check_axis_key(parse_override(text)[1].key_or_group)
    except RequestError as error:
        raise RequestError(f"{key}: the case {label}: {error}") from error
    return tuple(overrides)


# Conditions --------------------------------------------------------------------------------------

_NEVER = Condition("", frozenset())


def _condition(
    entry: Any, entries: Entries, earlier: Mapping[str, Axis | None]
) -> Condition | None:
    """Return the condition of an axis, decided where its axis is fixed; `_NEVER` if it cannot hold."""
    given = (
        {k: entry[k] for k in ("when", "unless") if k in entry} if isinstance(entry, dict) else {}
    )
    if not given:
        return None
    if len(given) == 2:
        raise RequestError(f"{_shown(given)}: give when or unless, not both")
    ((word, condition),) = given.items()
    if not isinstance(condition, dict) or len(condition) != 1:
        raise RequestError(
            f"{_shown(given)}: a condition names one earlier axis and some of its values"
        )
    ((key, values),) = condition.items()
    named = [normalized(value) for value in (values if isinstance(values, list) else [values])]
    if key in entries.fixed:
        return None if (entries.fixed[key] in named) == (word == "when") else _NEVER
    choices = _choices(key, entries, earlier)
    if choices is None:
        return _NEVER
    for name in named:
        if name not in choices and key not in entries.replaced:
            raise RequestError(
                f"{_shown(given)}: {key} is never {name}{near_names(name, choices)}; its values are "
                f"{', '.join(choices)}"
            )
    kept = [choice for choice in choices if (choice in named) == (word == "when")]
    if not kept and key not in entries.replaced:
        raise RequestError(f"{_shown(given)} never holds; {key} is one of {', '.join(choices)}")
    return Condition(key, frozenset(kept)) if kept else _NEVER


def _choices(
    key: str, entries: Entries, earlier: Mapping[str, Axis | None]
) -> tuple[str, ...] | None:
    """Return the values of the axis that a condition names; None if that axis has been left out."""
    if key not in earlier and key in entries.axes:
        raise RequestError(f"a condition names {key}, which stands later; move it up")
    if key not in earlier:
        raise RequestError(
            f"a condition names {key!r}, which is no axis{near_names(str(key), entries.axes)}; axes "
            f"before it: {', '.join(earlier) or 'none'}"
        )
    axis = earlier[key]
    if isinstance(axis, NumberAxis):
        raise RequestError(f"a condition needs an axis of choices or cases, and {key} has numbers")
    return None if axis is None else axis.choices


def _shown(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{word}: {condition}" for word, condition in given.items())
