"""JSON, YAML and paths that others wrote: read whole and in the expected shape, or refused in a sentence.

Sizes are counted before anything is expanded. Must not import torch, transformers or wandb.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from harness.errors import RequestError

MAX_DEPTH = 60
"""Brackets inside brackets; what people write has fewer than ten."""
MAX_NODES = 200_000
"""Values of a YAML text, each alias counted as all that it stands for."""
MAX_YAML_CHARACTERS = 20_000_000
MAX_NUMBER = 60
"""Characters of a number in a YAML text: longer ones cannot be printed, or made a float."""
_NUMBER = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|[0-9_:.]+)")
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How our files spell the numbers that JSON has no word for."""


class Unreadable(ValueError):
    """A text that is no JSON or YAML, too much of it, or of another shape; the message says why."""


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises Unreadable."""
    try:
        return json.loads(text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or an integer of more than 4,300 digits
        raise Unreadable(_one_line(error)) from None


def home_path(text: str) -> Path:
    """Return a path with its `~` written out. Raises RequestError for what is none, or an unknown home."""
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except UnicodeEncodeError:  # half of a character, which YAML and JSON can write
        raise RequestError(f"{text!r} is no path: no file's name can hold it") from None
    except RuntimeError:  # no such user, or neither HOME nor an entry for this one
        raise RequestError(
            f"{text} begins with a home directory that is not known here; write the path out"
        ) from None


# YAML --------------------------------------------------------------------------------------------


def read_yaml(text: str | bytes, loader: Any = None) -> Any:
    """Return the value of a YAML text as plain values. Raises Unreadable.

    `loader`: a subclass of yaml.SafeLoader; the quickest one where none is given.
    """
    import yaml  # 20 ms that readers of records need not spend

    quick = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        if len(text) > MAX_YAML_CHARACTERS:
            raise Unreadable(f"{len(text):,} characters, at most {MAX_YAML_CHARACTERS:,} are read")
        _count(yaml.parse(text, quick))
        return yaml.load(text, loader or quick)
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    # Constructors of tags raise whatever their values make them: KeyError for `!!bool x`, AttributeError
    # for `!!timestamp x`, IndexError for `!!int ''`, ValueError for 2001-99-99, TypeError for `? {a: b}`.
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise Unreadable(_one_line(error)) from None


def _count(events: Any) -> None:
    """Refuse more values than `MAX_NODES`, or deeper ones than `MAX_DEPTH`, before any is built."""
    from yaml.events import (
        AliasEvent,
        MappingEndEvent,
        MappingStartEvent,
        ScalarEvent,
        SequenceEndEvent,
        SequenceStartEvent,
    )

    total = 0
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    for event in events:
        match event:
            case ScalarEvent():
                total += 1
                if len(event.value) > MAX_NUMBER and _NUMBER.fullmatch(event.value):
                    raise Unreadable(f"it has a number of {len(event.value):,} characters")
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            case AliasEvent():
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise Unreadable(f"*{event.anchor} stands inside what it stands for")
                total += sizes.get(event.anchor, 1)
            case MappingStartEvent() | SequenceStartEvent():
                open_nodes.append((event.anchor, total))
                total += 1
            case MappingEndEvent() | SequenceEndEvent():
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = total - before
            case _:
                pass
        if len(open_nodes) > MAX_DEPTH:
            raise Unreadable(f"it is nested more than {MAX_DEPTH} deep")
        if total > MAX_NODES:
            raise Unreadable(f"it has more than {MAX_NODES:,} values, aliases written out")


# Shapes ------------------------------------------------------------------------------------------


def shaped(kind: Any, value: Any, at: str = "") -> Any:
    """Return a JSON value as `kind` describes it: a dataclass, an enum, a list, a mapping, a scalar, a union.

    Numbers that are not finite may be spelled as our files do. Raises Unreadable that names the place `at`
    which something else stands.
    """
    if kind is Any:
        return value
    if get_origin(kind) in (Union, UnionType):
        return _shaped_as_one_of(get_args(kind), value, at)
    if get_origin(kind) is list:
        (each,) = get_args(kind)
        _expect(isinstance(value, list), "a list", value, at)
        return [shaped(each, one, f"{at}[{index}]") for index, one in enumerate(value)]
    if get_origin(kind) is dict:
        _, each = get_args(kind)
        _expect(isinstance(value, dict), "a mapping", value, at)
        return {key: shaped(each, one, f"{at}.{key}") for key, one in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return _shaped_as_fields(kind, value, at)
    if issubclass(kind, Enum):
        known = [member.value for member in kind]
        _expect(value in known, f"one of {', '.join(map(str, known))}", value, at)
        return kind(value)
    if kind is float:
        if isinstance(value, str) and value in NOT_FINITE:
            return NOT_FINITE[value]
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        _expect(whole or isinstance(value, float), "a number", value, at)
        return value
    right = type(value) is kind and (not isinstance(value, int) or abs(value) < 2**63)
    _expect(right, _ARTICLES.get(kind, kind.__name__), value, at)
    return value


_ARTICLES = {str: "a text", int: "a whole number", bool: "true or false", NoneType: "null"}


def _shaped_as_one_of(kinds: tuple[Any, ...], value: Any, at: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    for kind in others[:-1]:
        try:
            return shaped(kind, value, at)
        except Unreadable:
            continue
    return shaped(others[-1], value, at)


def _shaped_as_fields(kind: Any, value: Any, at: str) -> Any:
    _expect(isinstance(value, dict), "a mapping", value, at)
    hints = _hints(kind)
    required = {
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    }
    missing, unknown = sorted(required - value.keys()), sorted(value.keys() - hints.keys())
    if missing or unknown:
        lacks = [f"lacks {', '.join(missing)}"] if missing else []
        has = [f"has the unknown {', '.join(map(str, unknown[:5]))}"] if unknown else []
        raise Unreadable(f"{at or 'it'} {' and '.join([*lacks, *has])}")
    return kind(**{name: shaped(hints[name], one, f"{at}.{name}") for name, one in value.items()})


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _expect(holds: bool, wanted: str, value: Any, at: str) -> None:
    if not holds:
        long = isinstance(value, (list, dict)) or (isinstance(value, int) and abs(value) >= 2**63)
        given = f"a {type(value).__name__}" if long else repr(value)[:80]
        raise Unreadable(f"{at.lstrip('.') or 'it'} must be {wanted}, got {given}")


def _one_line(error: BaseException) -> str:
    """Return an error's own words on one line, or its kind where it has none of them."""
    words = " ".join(str(error).split())[:400]
    return (
        words
        if isinstance(error, ValueError) and words
        else f"{type(error).__name__} {words}".strip()
    )
