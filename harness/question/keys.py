"""What can be an axis: configuration keys and groups, and the values that they take.

Judged before anything is composed. Must not import torch, transformers or wandb.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin

from harness.config.compose import (
    FREE_GROUP,
    group_options,
    known_keys,
    parse_override,
    text_as_it_is,
    types_of_keys,
)
from harness.errors import RequestError, near_names
from harness.question.question import PARTS, TEXTS
from harness.question.values import spelled

WITHOUT_EFFECT = ("tracker", "checkpoint", "resources", "paths")
"""Sections that change no result (the identity leaves them out): their values would be one run."""

NAME = r"[A-Za-z0-9][\w.+-]{0,99}"
"""What names a sweep, its directory and its study."""
NAME_WANTED = "use letters, digits, -, _, + and dots, at most 100, with a letter or digit first"


QUESTION_SECTIONS = tuple(p for p in PARTS if p not in (*TEXTS, "base", "space", "resources"))
"""Parts that an override gives by their name; the keys of `resources` tell a sweep's from a run's."""


def key_of(override: str) -> str:
    """Return the key or group that an override sets. Raises RequestError if it is no override."""
    return parse_override(text_as_it_is(override))[1].key_or_group


def is_group(key: str) -> bool:
    """Whether `key` is a config group, whose values are options."""
    return key in group_options()


@cache
def field_types() -> dict[str, Any]:
    """Return the declared type of every configuration key."""
    return dict(types_of_keys())


def known_axis_keys() -> list[str]:
    """Return every key and group that can be an axis."""
    keys = [key for key in known_keys() if key.split(".")[0] not in WITHOUT_EFFECT]
    groups = [group for group in group_options() if group not in WITHOUT_EFFECT]
    return [key for key in (*groups, *keys) if key != "seed"]


def check_axis_key(key: str, labels: Iterable[str] = ()) -> None:
    """Refuse a key that no axis can have; `labels` are names that would be right, too."""
    if key in known_axis_keys():
        return
    section = key.split(".")[0]
    if key == "seed":
        raise RequestError("seed is no axis: every cell runs with the seeds in search.seeds")
    if key in field_types() or key in group_options() or key in WITHOUT_EFFECT:
        raise RequestError(
            f"{key} is no axis: {section} does not change a result; give it in base, for every run"
        )
    inside = [known for known in known_axis_keys() if known.startswith(f"{key}.")]
    if inside:
        raise RequestError(f"{key} is a section; axes are its keys: {', '.join(inside)}")
    raise RequestError(
        f"unknown key {key!r}{near_names(key, [*known_axis_keys(), *labels])}; an axis is a key or group "
        "of `harness run --help`, or a label of your own over `cases`"
    )


def check_label(label: str) -> None:
    """Refuse a name for an axis of cases that is, or looks like, a key of something else."""
    taken = (*field_types(), *group_options(), *QUESTION_SECTIONS, *TEXTS)
    sections = {key.split(".")[0] for key in field_types()}
    if label in taken or label in sections:
        raise RequestError(
            f"{label} names an axis of cases and is a key already; give another name"
        )
    if not label.isidentifier():
        raise RequestError(
            f"{label!r} cannot name an axis of cases; use letters, digits and underscores"
        )


def check_values(key: str, values: Sequence[str]) -> None:
    """Refuse values that the key cannot take, with near names."""
    if is_group(key):
        _check_options(key, values)
        return
    declared = field_types()[key]
    for text in values:
        value = parse_override(f"{key}={text}")[1].value()
        if not _fits(value, declared):
            raise RequestError(f"{key}={text}: {_wanted(text, declared)}")


def is_integer(key: str) -> bool:
    """Whether a key takes whole numbers only."""
    return _alternatives(field_types().get(key, NoneType)) == (int,)


def is_number(key: str) -> bool:
    """Whether a key takes numbers."""
    return not is_group(key) and _alternatives(field_types()[key]) in ((int,), (float,))


def _check_options(group: str, values: Sequence[str]) -> None:
    options = group_options()[group]
    for text in values:
        value = parse_override(f"{group}={text}")[1].value()
        free = group == FREE_GROUP and isinstance(value, str) and value.strip() != ""
        if value not in options and not free:
            raise RequestError(
                f"{group}={text} is no option of {group}{near_names(text, options)}; give some of "
                f"{', '.join(options)}"
            )


def _alternatives(declared: Any) -> tuple[Any, ...]:
    """Return the types of a key, without None: `int | None` is (int,)."""
    return tuple(kind for kind in (get_args(declared) or (declared,)) if kind is not NoneType)


def _fits(value: Any, declared: Any) -> bool:
    if get_origin(declared) is list:
        return isinstance(value, list)
    if value is None:
        return NoneType in get_args(declared)
    (kind,) = _alternatives(declared)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if issubclass(kind, Enum):
        return value in kind.__members__
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return not isinstance(value, (list, dict))


def _wanted(text: str, declared: Any) -> str:
    if get_origin(declared) is list:
        return f"must be a list; write [{text}]"
    (kind,) = _alternatives(declared)
    if get_origin(kind) is dict:
        return "must be a mapping such as {q_proj: 8}, or null"
    if issubclass(kind, Enum):
        names = list(kind.__members__)
        return f"is none of {', '.join(names)}{near_names(text, names)}"
    names = {bool: f"{spelled(True)} or {spelled(False)}", int: "a whole number", float: "a number"}
    return f"must be {names.get(kind, 'a text')}" + (
        ", or null" if NoneType in get_args(declared) else ""
    )
