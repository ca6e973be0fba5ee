"""From the mappings of a sweep's file to typed settings; every refusal names file, key and what was given.

Must not import torch.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin

from harness.config.validate import MOST_SEED
from harness.errors import RequestError, near_names
from harness.question.axes import NumberAxis
from harness.question.points import Space
from harness.question.power import FEWEST_SEEDS
from harness.question.settings import (
    MOST,
    Confirmation,
    LauncherKind,
    LauncherSettings,
    Method,
    PrunerName,
    SearchSettings,
    StudySettings,
    WorkerSettings,
)
from harness.question.values import from_text, normalized

E = TypeVar("E", bound=Enum)
T = TypeVar("T")
MOST_REPLICATES = 10_000
"""Seeds of one list at most."""
MOST_SEEDS = 12
"""Seeds of a confirmation at most, where they are found out and `at_most` is not given."""


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

    def settings(self, kind: type[T], **read: Any) -> T:
        """Return the section as its settings, each field by its declared type and bound; null is its default.

        `read` are those that need more than that.
        """
        for each in fields(cast(Any, kind)):
            if each.name not in read and self.given.get(each.name) is not None:
                read[each.name] = self._typed(each)
        return kind(**read)

    def _typed(self, field: Field[Any]) -> Any:
        kinds: list[Any] = [t for t in get_args(field.type) or [field.type] if t is not NoneType]
        bound, unit = field.metadata.get("at_least"), field.metadata.get("unit", "")
        if get_origin(field.type) is tuple:
            return self.seeds(field.name)
        if kinds[0] is bool:
            return self.truth(field.name)
        if issubclass(kinds[0], Enum):
            return self.choice(field.name, kinds[0])
        if kinds[0] is int:
            return self.integer(field.name, bound or 0, field.metadata.get("at_most", MOST))
        return self.number(field.name, bound, unit)

    def truth(self, key: str) -> bool:
        """Return true or false."""
        value = self.given.get(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "must be true or false")
        return value

    def integer(self, key: str, at_least: int, at_most: int) -> int:
        """Return a whole number."""
        value: Any = self.given.get(key)
        if not is_integer(value) or not at_least <= value <= at_most:
            raise self.refuse(
                key, f"must be a whole number of at least {at_least}, at most {at_most:,}"
            )
        return value

    def number(self, key: str, at_least: float | None, unit: str) -> float:
        """Return a number above zero, or of at least so much."""
        value = finite_number(self.given.get(key))
        if value is None or value <= 0:
            raise self.refuse(key, f"must be a positive number of {unit}")
        if at_least is not None and value < at_least:
            raise self.refuse(key, f"must be a number of {unit}, at least {at_least:g}")
        if value > MOST:
            raise self.refuse(key, f"must be a number of {unit}, at most {MOST:,}")
        return value

    def seeds(self, key: str) -> tuple[int, ...]:
        """Return distinct seeds, one or more."""
        value: Any = self.given.get(key)
        seeds = (value,) if is_integer(value) else value
        if not isinstance(seeds, (list, tuple)) or not seeds or not all(map(is_integer, seeds)):
            raise self.refuse(key, "must be a list of one or more whole numbers, such as [0, 1]")
        if len(seeds) > MOST_REPLICATES:
            raise RequestError(
                f"{self.where}{self.name}.{key} has {len(seeds):,} seeds; give at most {MOST_REPLICATES:,}"
            )
        if min(seeds) < 0 or max(seeds) > MOST_SEED:
            raise self.refuse(key, f"must not be negative, nor above {MOST_SEED}")
        if len(set(seeds)) < len(seeds):
            raise self.refuse(key, "gives a seed twice; replicates need different seeds")
        return tuple(seeds)

    def choice(self, key: str, kind: type[E]) -> E:
        """Return a member of an enum by its name."""
        value = self.given.get(key)
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
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and not isinstance(text, bool) else None


def read_search(given: Any, where: str) -> SearchSettings:
    """Read `search`, but for its starting points, which need the space."""
    section = Section("search", given, SearchSettings, where)
    search = section.settings(SearchSettings, starts=())
    if search.trials is None and search.method is not Method.grid:
        raise RequestError(
            f"{where}search.method={search.method.value} needs search.trials, the number of cells to try"
        )
    halves = search.pruner in (PrunerName.asha, PrunerName.hyperband)
    if search.reduction_factor != SearchSettings().reduction_factor and not halves:
        raise section.refuse(
            "reduction_factor", f"would be ignored by search.pruner={search.pruner.value}"
        )
    if search.in_flight is not None and not search.method.is_adaptive:
        raise section.refuse(
            "in_flight",
            f"would be ignored by search.method={search.method.value}, which learns of no result",
        )
    return search


def read_confirmation(
    given: Any, search: SearchSettings, margin: float | None, where: str
) -> Confirmation | None:
    """Read `confirm`: null, or `{top: 3, seeds: [10, 11, 12], split: test}`, or `seeds: auto`."""
    if given is None:
        return None
    section = Section("confirm", given, Confirmation, where)
    auto = section.given.get("seeds") == "auto"
    if (auto or section.given.get("at_most") is not None) and (
        margin is None or len(search.seeds) < 2
    ):
        lacks = "margin" if margin is None else "two or more search.seeds, to learn the spread from"
        raise section.refuse("seeds" if auto else "at_most", f"needs {lacks}")
    if auto:
        first = max(*search.seeds, 9) + 1
        most = section.given.get("at_most")
        most = MOST_SEEDS if most is None else section.integer("at_most", FEWEST_SEEDS, 1_000)
        fresh = tuple(range(first, first + most))
        return section.settings(Confirmation, seeds=fresh, at_most=most)
    if "seeds" not in section.given:
        raise RequestError(
            f"{where}confirm needs confirm.seeds, fresh ones such as [10, 11, 12]; confirm=null for no "
            "confirmation"
        )
    return section.settings(Confirmation, seeds=section.seeds("seeds"))


def read_margin(given: Any, where: str) -> float | None:
    """Read `margin`: a difference of the first objective, in its unit, that is as good as none."""
    if given is None:
        return None
    margin = finite_number(given)
    if margin is None or margin <= 0:
        raise RequestError(
            f"{where}margin={given} must be a positive number, the largest difference of the first objective "
            "that counts as none"
        )
    return margin


def read_published(given: Any, where: str) -> tuple[str, ...]:
    """Read `published`: names of published tables that the answers stand beside."""
    return _words("published", given, "[qlora_rounding]", where)


def read_plan(given: Any, where: str) -> tuple[str, ...]:
    """Read `plan`: settings of `harness plan` for a model that is not at hand."""
    words = _words("plan", given, "[plan.shape=llama2_7b]", where)
    for word in words:
        if not word.startswith("plan."):
            raise RequestError(
                f"{where}plan: {word} is no setting of a plan; write plan.shape=NAME, "
                "plan.tokens_per_second=N or plan.device=cuda"
            )
    return words


def _words(key: str, given: Any, example: str, where: str) -> tuple[str, ...]:
    words = [] if given is None else given
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise RequestError(f"{where}{key} must be a list such as {example}, got {given!r}")
    if len(set(words)) < len(words):
        raise RequestError(f"{where}{key} names one twice: {', '.join(words)}")
    return tuple(words)


def read_resources(given: Any, where: str) -> WorkerSettings:
    """Read `resources` of a sweep: devices, cohort, hang_seconds."""
    section = Section("resources", given or {}, WorkerSettings, where)
    return section.settings(WorkerSettings, devices=_devices(section))


def _devices(section: Section) -> str | tuple[int, ...]:
    value = section.given.get("devices", WorkerSettings().devices)
    indices = [value] if is_integer(value) else value
    if isinstance(indices, (list, tuple)):
        good = all(is_integer(index) and index >= 0 for index in indices)
        if indices and good:
            return tuple(indices)
    elif isinstance(value, str) and re.fullmatch(r"auto|cpu(:[1-9]\d{0,2})?", value):
        return value
    raise section.refuse(
        "devices", "must be auto, cpu, cpu:N (N below 1,000) or GPUs such as [0, 1]"
    )


def read_study(given: Any, where: str) -> StudySettings:
    """Read `study`: its storage and, where that is a server, how its members share it."""
    section = Section("study", given or {}, StudySettings, where)
    storage = section.given.get("storage")
    if storage is not None and not re.match(r"[a-z][a-z0-9+]*://", str(storage)):
        raise section.refuse(
            "storage",
            "must be a SQLAlchemy url, such as postgresql://user@host/name or sqlite:////path/study.db",
        )
    artifacts = section.given.get("artifacts")
    if artifacts is not None and not isinstance(artifacts, str):
        raise section.refuse("artifacts", "must be a directory or s3://bucket/prefix")
    settings = section.settings(StudySettings, storage=storage, artifacts=artifacts)
    defaults = StudySettings()
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


# Launcher -----------------------------------------------------------------------------------------

TEXT_KEYS = ("partition", "account", "qos")
"""Keys whose value is a name, also where it looks like a number or a list."""
_OF_SLURM = ("cpus", "memory_gib", *TEXT_KEYS)


def with_launcher(before: Any, name: str, value: Any) -> Any:
    """Return `launcher` of a draft as `launcher=value`, or `launcher.name=value`, changes it."""
    if not name and (value is None or isinstance(value, Mapping)):
        return value
    section = {"kind": before} if isinstance(before, str) else dict(before or {})
    return {**section, name or "kind": value}


def read_launcher(given: Any, where: str) -> LauncherSettings | None:
    """Read `launcher`: null, `slurm`, or `{kind: slurm, workers: 16, partition: gpu}`.

    Raises RequestError with the key, what was given, and near names.
    """
    if given is None:
        return None
    section = Section(
        "launcher", {"kind": given} if isinstance(given, str) else given, LauncherSettings, where
    )
    if section.given.get("kind") is None:
        ignored = [f"launcher.{key}" for key in section.given if key != "kind"]
        raise RequestError(
            f"{where}{', '.join(ignored) or 'launcher'} would be ignored without launcher=slurm or "
            "launcher=local"
        )
    if section.choice("kind", LauncherKind) is LauncherKind.local:
        _refuse_what_only_slurm_knows(section)
    names = {key: _name(section, key) for key in TEXT_KEYS}
    settings = section.settings(LauncherSettings, setup=_lines(section), **names)
    if settings.grace_seconds >= 60 * settings.time_minutes:
        raise RequestError(
            f"{where}launcher.grace_seconds={settings.grace_seconds} leaves nothing of "
            f"launcher.time_minutes={settings.time_minutes}; give fewer seconds, or more minutes"
        )
    return settings


def _refuse_what_only_slurm_knows(section: Section) -> None:
    for key in _OF_SLURM:
        if section.given.get(key) is not None:
            raise section.refuse(
                key, "would be ignored by launcher=local; leave it out, or take launcher=slurm"
            )


def _name(section: Section, key: str) -> str | None:
    value = section.given.get(key)
    if value is None:
        return None
    text = str(value)
    if isinstance(value, (Mapping, list, bool)) or not text or len(text.split()) != 1:
        raise section.refuse(key, "must be a name that Slurm knows, without spaces")
    return text


def _lines(section: Section) -> tuple[str, ...]:
    value = section.given.get("setup") or []
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) for line in lines):
        raise section.refuse("setup", "must be a list of lines such as ['module load cuda']")
    return tuple(lines)
