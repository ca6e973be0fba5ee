"""Where a sweep's members run when it is not the command itself that trains: `launcher` of a question.

Must not import torch, submitit or optuna.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

from harness.errors import RequestError
from harness.question.reading import Section, finite_number
from harness.question.settings import StudySettings, has_password


class LauncherKind(Enum):
    """Who starts the members: Slurm, or submitit's stand-in for it on this machine."""

    slurm = "slurm"
    local = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherSettings:
    """What to submit: so many jobs, each of which is one member of the sweep."""

    kind: LauncherKind
    workers: int = 1
    """Jobs, each of them one `harness worker`."""
    time_minutes: int = 60
    """Time limit per job, in minutes. A job that hits it is requeued."""
    grace_seconds: int = 120
    """Seconds before the limit at which a job is signalled; its runs must checkpoint within them."""
    gpus: int | None = None
    """GPUs per job."""
    cpus: int | None = None
    """CPUs per job; none: the partition's default."""
    memory_gib: float | None = None
    """Memory per job, in GiB; none: the partition's default."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker, such as `module load cuda`."""

    def tree(self) -> dict[str, Any]:
        """Return the settings as plain values; a file of them asks the same."""
        return asdict(self) | {"kind": self.kind.value, "setup": list(self.setup)}


LAUNCHER_KEYS = tuple(each.name for each in fields(LauncherSettings))
TEXT_KEYS = ("partition", "account", "qos")
"""Keys whose value is a name, also where it looks like a number or a list."""
_DEFAULT = LauncherSettings(kind=LauncherKind.slurm)
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
        "launcher", {"kind": given} if isinstance(given, str) else given, LAUNCHER_KEYS, where
    )
    if section.given.get("kind") is None:
        ignored = [f"launcher.{key}" for key in section.given if key != "kind"]
        raise RequestError(
            f"{where}{', '.join(ignored) or 'launcher'} would be ignored without launcher=slurm or "
            "launcher=local"
        )
    kind = section.choice("kind", LauncherKind, _DEFAULT.kind)
    if kind is LauncherKind.local:
        _refuse_what_only_slurm_knows(section)
    return _within_its_time(
        section,
        LauncherSettings(
            kind=kind,
            workers=section.integer("workers", _DEFAULT.workers, 1),
            time_minutes=section.integer("time_minutes", _DEFAULT.time_minutes, 1),
            grace_seconds=section.integer("grace_seconds", _DEFAULT.grace_seconds, 1),
            gpus=section.integer("gpus", None, 1),
            cpus=section.integer("cpus", None, 1),
            memory_gib=_memory(section),
            partition=_name(section, "partition"),
            account=_name(section, "account"),
            qos=_name(section, "qos"),
            setup=_lines(section),
        ),
    )


def launcher_problems(
    launcher: LauncherSettings | None, study: StudySettings
) -> Iterator[tuple[str, str]]:
    """Yield the part of the file and the problem, where jobs could not share the study."""
    if launcher is None:
        return
    if not study.is_shared:
        given = f"study.storage={study.storage}" if study.storage else "no study.storage"
        yield (
            "launcher",
            f"launcher={launcher.kind.value} has its jobs share one study in PostgreSQL, and {given} is "
            "given; start a server that every job can reach and give "
            "study.storage=postgresql://user@host/database",
        )
    elif has_password(study.storage or ""):
        yield (
            "launcher",
            f"launcher={launcher.kind.value} would write the password of study.storage into the command "
            "of every job, where others can read it; leave it out of the url, and give it in ~/.pgpass or "
            "PGPASSWORD",
        )


def _refuse_what_only_slurm_knows(section: Section) -> None:
    for key in _OF_SLURM:
        if section.given.get(key) is not None:
            raise section.refuse(
                key, "would be ignored by launcher=local; leave it out, or take launcher=slurm"
            )


def _within_its_time(section: Section, settings: LauncherSettings) -> LauncherSettings:
    if settings.grace_seconds >= 60 * settings.time_minutes:
        raise RequestError(
            f"{section.where}launcher.grace_seconds={settings.grace_seconds} leaves nothing of "
            f"launcher.time_minutes={settings.time_minutes}; give fewer seconds, or more minutes"
        )
    return settings


def _memory(section: Section) -> float | None:
    if section.given.get("memory_gib") is None:
        return None
    memory = finite_number(section.given["memory_gib"])
    if memory is None or memory <= 0:
        raise section.refuse("memory_gib", "must be a positive number of GiB")
    return memory


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
