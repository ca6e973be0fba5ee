"""From the mappings of a sweep's file to typed settings; every refusal names file, key and what was given.

Must not import torch.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from typing import Any, TypeVar

from harness.config.schema import Split
from harness.errors import RequestError, near_names
from harness.question.axes import NumberAxis
from harness.question.points import Space
from harness.question.settings import (
    Confirmation,
    Method,
    PrunerName,
    SearchSettings,
    StudySettings,
    WorkerSettings,
)
from harness.question.values import from_text, normalized

E = TypeVar("E", bound=Enum)

_SEARCH, _WORKERS = SearchSettings(), WorkerSettings()  # the defaults


class Section:
    """One mapping of a sweep's file, read key by key."""

    def __init__(self, name: str, given: Any, kind: type | Sequence[str], where: str = "") -> None:
        """`kind`: the settings that the section becomes, or its keys."""
        keys = [each.name for each in fields(kind)] if isinstance(kind, type) else kind
        self.name, self.where = name, where
        if not isinstance(given, Mapping):
            raise RequestError(
                f"{where}{name} must be a mapping with some of {', '.join(keys)}, got {given!r}"
            )
        for key in given:
            if key not in keys:
                raise RequestError(
                    f"{where}{name}: unknown key {key!r}{near_names(str(key), keys)}; there are "
                    f"{', '.join(keys)}"
                )
        self.given = given

    def refuse(self, key: str, wanted: str) -> RequestError:
        """Return the refusal of a key's value."""
        return RequestError(f"{self.where}{self.name}.{key}={self.given.get(key)} {wanted}")

    def integer(self, key: str, default: int | None, at_least: int) -> Any:
        """Return a whole number, or the default where there is none."""
        value = self.given.get(key)
        if value is None:
            return default
        if not is_integer(value) or value < at_least:
            raise self.refuse(key, f"must be a whole number of at least {at_least}")
        return value

    def seeds(self, key: str, default: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return distinct seeds, one or more."""
        value = self.given.get(key, default)
        seeds = (value,) if is_integer(value) else value
        if not isinstance(seeds, (list, tuple)) or not seeds or not all(map(is_integer, seeds)):
            raise self.refuse(key, "must be a list of one or more whole numbers, such as [0, 1]")
        if min(seeds) < 0:
            raise self.refuse(key, "must not be negative")
        if len(set(seeds)) < len(seeds):
            raise self.refuse(key, "gives a seed twice; replicates need different seeds")
        return tuple(seeds)

    def choice(self, key: str, kind: type[E], default: E) -> E:
        """Return a member of an enum by its name."""
        value = self.given.get(key, default.name)
        if not isinstance(value, str) or value not in kind.__members__:
            names = list(kind.__members__)
            raise self.refuse(key, f"is none of {', '.join(names)}{near_names(str(value), names)}")
        return kind[value]


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, which `true` is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def finite_number(text: Any) -> float | None:
    """Return a finite number, also one that YAML takes for text (`1e3`); None for anything else."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and not isinstance(text, bool) else None


def read_search(given: Any, where: str) -> SearchSettings:
    """Read `search`, but for its starting points, which need the space."""
    section = Section("search", given, SearchSettings, where)
    method = section.choice("method", Method, Method.grid)
    pruner = section.choice("pruner", PrunerName, PrunerName.none)
    trials = section.integer("trials", None, 1)
    if trials is None and method is not Method.grid:
        raise RequestError(
            f"{where}search.method={method.value} needs search.trials, the number of cells to try"
        )
    factor = section.integer("reduction_factor", _SEARCH.reduction_factor, 2)
    if factor != _SEARCH.reduction_factor and pruner not in (
        PrunerName.asha,
        PrunerName.hyperband,
    ):
        raise section.refuse(
            "reduction_factor", f"would be ignored by search.pruner={pruner.value}"
        )
    in_flight = section.integer("in_flight", None, 1)
    if in_flight is not None and not method.is_adaptive:
        raise section.refuse(
            "in_flight",
            f"would be ignored by search.method={method.value}, which learns of no result",
        )
    return SearchSettings(
        method=method,
        trials=trials,
        pruner=pruner,
        seeds=section.seeds("seeds", (0,)),
        sampler_seed=section.integer("sampler_seed", 0, 0),
        reduction_factor=factor,
        in_flight=in_flight,
    )


def read_confirmation(given: Any, where: str) -> Confirmation | None:
    """Read `confirm`: null, or `{top: 3, seeds: [10, 11, 12], split: test}`."""
    if given is None:
        return None
    section = Section("confirm", given, Confirmation, where)
    if "seeds" not in section.given:
        raise RequestError(
            f"{where}confirm needs confirm.seeds, fresh ones such as [10, 11, 12]; confirm=null for no "
            "confirmation"
        )
    return Confirmation(
        top=section.integer("top", 1, 1),
        seeds=section.seeds("seeds", None),
        split=section.choice("split", Split, Split.test),
    )


def read_resources(given: Any, where: str) -> WorkerSettings:
    """Read `resources` of a sweep: devices, cohort, hang_seconds."""
    section = Section("resources", given or {}, WorkerSettings, where)
    seconds = finite_number(section.given.get("hang_seconds", _WORKERS.hang_seconds))
    if seconds is None or seconds <= 0:
        raise section.refuse("hang_seconds", "must be a positive number of seconds")
    return WorkerSettings(
        devices=_devices(section),
        cohort=section.integer("cohort", None, 1),
        hang_seconds=seconds,
    )


def _devices(section: Section) -> str | tuple[int, ...]:
    value = section.given.get("devices", _WORKERS.devices)
    indices = [value] if is_integer(value) else value
    if isinstance(indices, (list, tuple)):
        good = all(is_integer(index) and index >= 0 for index in indices)
        if indices and good:
            return tuple(indices)
    elif isinstance(value, str) and re.fullmatch(r"auto|cpu(:[1-9]\d*)?", value):
        return value
    raise section.refuse("devices", "must be auto, cpu, cpu:N or GPUs such as [0, 1]")


def read_study(given: Any, where: str) -> StudySettings:
    """Read `study`: its storage and, where that is a server, how its members share it."""
    section = Section("study", given or {}, StudySettings, where)
    storage = section.given.get("storage")
    if storage is not None and not re.match(r"[a-z][a-z0-9+]*://", str(storage)):
        raise section.refuse(
            "storage",
            "must be a SQLAlchemy url, such as postgresql://user@host/name or sqlite:////path/study.db",
        )
    defaults = StudySettings()
    seconds = finite_number(section.given.get("heartbeat_seconds", defaults.heartbeat_seconds))
    if seconds is None or seconds < 1:
        raise section.refuse("heartbeat_seconds", "must be a number of seconds, at least 1")
    artifacts = section.given.get("artifacts")
    if artifacts is not None and not isinstance(artifacts, str):
        raise section.refuse("artifacts", "must be a directory or s3://bucket/prefix")
    settings = StudySettings(storage=storage, heartbeat_seconds=seconds, artifacts=artifacts)
    if not settings.is_shared:
        for key in ("heartbeat_seconds", "artifacts"):
            if getattr(settings, key) != getattr(defaults, key):
                raise section.refuse(
                    key,
                    "would be ignored: only a study in PostgreSQL has several members; give "
                    "study.storage=postgresql://user@host/database",
                )
    return settings


def read_starts(
    search: SearchSettings, given: Mapping[str, Any], space: Space, where: str
) -> SearchSettings:
    """Return `search` with its starting points, each a point of the space or a part of one."""
    starts = given.get("starts") or []
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise RequestError(
            f"{where}search.starts must be a list of points such as [{{lora.rank: 8}}], got {starts!r}"
        )
    if starts and search.method is Method.grid:
        raise RequestError(
            f"{where}search.starts would be ignored: a grid tries every point; leave it out, or choose "
            "another search.method"
        )
    read = []
    for start in starts:
        try:
            point = {key: _start_value(space, key, value) for key, value in start.items()}
            space.check_point(point)
        except RequestError as error:
            raise RequestError(f"{where}search.starts: {error}") from error
        if point in read:
            raise RequestError(f"{where}search.starts gives {start} twice")
        read.append(point)
    return replace(search, starts=tuple(read))


def _start_value(space: Space, key: str, value: Any) -> str:
    """Return how a value is spelled in a point; numbers of an interval in one way only."""
    text = normalized(value)
    axis = next((axis for axis in space.axes if axis.key == key), None)
    if isinstance(axis, NumberAxis) and isinstance(number := from_text(text), (int, float)):
        exact = axis.integer and number != int(number)
        return text if exact else axis.spelled(number)
    return text
