"""Whether two questions ask the same: the one judge for a study, a sweep's directory and multirun. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import zip_longest
from typing import Any

from harness.errors import RequestError
from harness.question.keys import ANYWHERE
from harness.question.points import Space
from harness.question.question import Question, in_file
from harness.question.settings import APART, Constraint, Objective
from harness.records.redact import redact_tree


def comparable(question: Question) -> dict[str, Any]:
    """Return all that makes the trials of one study comparable, as JSON, by the names in a sweep's file.

    Every field of a question counts, and of its sections every field, unless its metadata say `APART`.
    Without secrets: a study and a file keep it.
    """
    found: dict[str, Any] = {}
    for key, value in _counting(question).items():
        if is_dataclass(value) and not isinstance(value, Space):
            found |= {f"{key}.{inner}": _spelled(each) for inner, each in _counting(value).items()}
        else:
            found[key] = _spelled(value)
    found["base"] = _with_effect(question.base)
    return redact_tree({in_file(key): value for key, value in found.items()})


def _counting(parts: Any) -> dict[str, Any]:
    return {
        each.name: getattr(parts, each.name) for each in fields(parts) if each.metadata != APART
    }


def _spelled(value: Any) -> Any:
    match value:
        case Space():
            return [axis.described for axis in value.axes]
        case Objective():
            return f"{value.metric}: {value.direction.value}"
        case Constraint():
            return f"{value.metric}: at_most={value.at_most}, at_least={value.at_least}"
        case Enum():
            return value.value
        case Mapping():
            return dict(value)
        case tuple():
            return [_spelled(each) for each in value]
        case _:
            return value


def _with_effect(base: Sequence[str]) -> list[str]:
    """Leave out what changes no result, and may differ between the machines of a sweep."""
    return [override for override in base if not override.startswith(ANYWHERE)]


def refuse_another(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RequestError where `comparable` of two questions differs, with the first part that does.

    `before` may be of an earlier version; `name` says what has been asked, as in "the study rank".
    """
    for key in [*before, *now]:
        there, here = before.get(key), now.get(key)
        if key == "base":  # written by a version that kept all of it
            there = _with_effect(there or ())
        if there != here:
            there, here = _differing(there, here)
            raise RequestError(
                f"{name} was asked with {key} {there}, and now with {here}: its trials would not be "
                "comparable; ask as before, or give the sweep another name with name=OTHER"
            )


def _differing(before: Any, now: Any) -> tuple[str, str]:
    """Return two values in one line each; of lists, the first entries that differ."""
    if isinstance(before, list) and isinstance(now, list):
        pairs = zip_longest(before, now, fillvalue="nothing more")
        before, now = next(pair for pair in pairs if pair[0] != pair[1])
    return _shown(before), _shown(now)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
