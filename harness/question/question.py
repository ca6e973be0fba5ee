"""A sweep as it is asked: one checked, typed question. Pure; `harness.question.load` reads it from files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from harness.errors import RequestError
from harness.question.axes import Axis, CaseAxis
from harness.question.compare import Compare
from harness.question.points import Space
from harness.question.settings import (
    APART,
    Confirmation,
    Constraint,
    LauncherSettings,
    Objective,
    SearchSettings,
    StudySettings,
    WorkerSettings,
    has_password,
)
from harness.records.redact import redact_tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Everything that a sweep is; `comparable` judges by the fields' metadata whether two ask the same."""

    name: str = field(metadata=APART)
    """Name of the sweep, of its directory and of its study."""
    question: str = field(metadata=APART)
    expect: str = field(metadata=APART)
    """The expected answer, written before anything is trained."""
    base: tuple[str, ...]
    """Overrides of every run."""
    space: Space
    search: SearchSettings
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    compare: tuple[Compare, ...] = field(default=(), metadata=APART)
    """The contrasts that answer it."""
    margin: float | None = field(default=None, metadata=APART)
    """The largest difference of the first objective that counts as none, in its unit."""
    confirm: Confirmation | None = field(metadata=APART)
    resources: WorkerSettings = field(metadata=APART)
    study: StudySettings = field(metadata=APART)
    launcher: LauncherSettings | None = field(default=None, metadata=APART)
    """Launcher that starts the members; none: this command is the one that trains."""
    published: tuple[str, ...] = field(default=(), metadata=APART)
    """Published tables (analysis/published) that its answers stand beside; `compare.expected` is their
    claim.
    """
    plan: tuple[str, ...] = field(default=(), metadata=APART)
    """Settings `plan.…` of its plan, where the command line gives none."""

    def tree(self) -> dict[str, Any]:
        """Return the question as plain values without secrets; a file of them asks the same.

        The password of a storage url is left out: PGPASSWORD and ~/.pgpass are where it belongs.
        """
        tree = {key: _plain(value) for key, value in parts_of(self).items()}
        tree["objective"] = {each.metric: each.direction.value for each in self.objectives}
        tree["constraints"] = {each.metric: _limits(each) for each in self.constraints}
        tree["compare"] = [each.tree() for each in self.compare] or None
        for key in ("published", "plan"):
            tree[key] = tree[key] or None
        tree["study"]["storage"] = _without_password(self.study.storage)
        return redact_tree(tree)


def in_file(name: str) -> str:
    """Return the key of a sweep's file that a field of `Question` stands under."""
    return "objective" if name == "objectives" else name


def parts_of(question: Question) -> dict[str, Any]:
    """Return the parts of a question by the keys of a sweep's file."""
    return {in_file(each.name): getattr(question, each.name) for each in fields(question)}


PARTS = tuple(in_file(each.name) for each in fields(Question))
"""Keys of a sweep's file."""
TEXTS = tuple(each.name for each in fields(Question) if each.type is str)
"""Those that are said in words."""


def _plain(value: Any) -> Any:
    match value:
        case Space():
            return {axis.key: _axis_tree(axis) for axis in value.axes}
        case Enum():
            return value.value
        case Mapping():
            return dict(value)
        case tuple():
            return [_plain(each) for each in value]
        case _ if is_dataclass(value):
            return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
        case _:
            return value


def _axis_tree(axis: Axis) -> str | dict[str, Any]:
    if isinstance(axis, CaseAxis):
        tree: dict[str, Any] = {"cases": {label: list(o) for label, o in axis.cases.items()}}
    else:
        tree = {"values": axis.grammar}
    condition = axis.condition
    if condition is not None:
        tree["when"] = {condition.key: sorted(condition.values)}
    elif "values" in tree:
        return tree["values"]
    return tree


def _limits(constraint: Constraint) -> dict[str, float]:
    limits = {"at_most": constraint.at_most, "at_least": constraint.at_least}
    return {key: limit for key, limit in limits.items() if limit is not None}


def _without_password(url: str | None) -> str | None:
    parts = urlsplit(url or "")
    if url is None or not has_password(url):
        return url
    query = "&".join(p for p in parts.query.split("&") if not p.startswith("password="))
    parts = parts._replace(query=query)
    account, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account.partition(':')[0]}{at}{host}"))


# Whether two questions ask the same: the one judge for a study, a sweep's directory and multirun

ANYWHERE = ("paths.", "tracker.", "tracker=", "resources.", "checkpoint.")
"""Overrides that change no result, and may differ between the machines of a sweep."""


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
        each.name: getattr(parts, each.name)
        for each in fields(parts)
        if not each.metadata.get("apart")
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
    for key in before:  # an earlier version knew of no others
        there, here = before[key], now.get(key)
        if key == "base":  # written by a version that kept all of it
            there = _with_effect(there or ())
        if there != here:
            there, here = _differing(there, here)
            raise RequestError(
                f"{name} was asked with {key} {there}, and now with {here}; its trials would not be "
                "comparable: ask as before, or give the sweep another name with name=OTHER"
            )


def _differing(before: Any, now: Any) -> tuple[str, str]:
    """Return two values in one line each; of lists, the first entries that differ."""
    if isinstance(before, list) and isinstance(now, list):
        pairs = zip_longest(before, now, fillvalue="nothing more")
        before, now = next(pair for pair in pairs if pair[0] != pair[1])
    return _shown(before), _shown(now)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
