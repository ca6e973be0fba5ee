"""How a question is searched, judged, confirmed and run: the typed parts of a sweep's file. Pure data."""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qs, urlsplit

from harness.config.schema import Split
from harness.config.validate import MOST_SEED
from harness.question.points import Point
from harness.question.power import FEWEST_SEEDS
from harness.records.metrics import Direction

APART = {"apart": True}
"""Metadata of a field that shapes no trial: a sweep that has begun may go on with another value."""


MOST = 1_000_000
"""Of anything that a sweep counts, where nothing less is said: trials, seconds, minutes."""


def at_least(bound: float, unit: str = "", at_most: int = MOST) -> dict[str, Any]:
    """Return the metadata of a number with bounds."""
    return {"at_least": bound, "unit": unit, "at_most": at_most}


def positive(unit: str) -> dict[str, Any]:
    """Return the metadata of a number above zero."""
    return {"unit": unit}


class Method(Enum):
    """Who chooses the points: our own product of all values, or one of Optuna's samplers."""

    grid = "grid"
    random = "random"
    tpe = "tpe"
    gp = "gp"
    nsga2 = "nsga2"
    cmaes = "cmaes"

    @property
    def is_adaptive(self) -> bool:
        """Whether results decide which points come next."""
        return self not in (Method.grid, Method.random)


class Transfer(Enum):
    """What a grid over ranks carries from the lower ones to the next; `lr`: the best learning rate."""

    none = "none"
    lr = "lr"


class PrunerName(Enum):
    """Which of Optuna's pruners ends hopeless runs early; `asha` is successive halving."""

    none = "none"
    asha = "asha"
    hyperband = "hyperband"
    median = "median"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """How points are chosen and given up."""

    method: Method = Method.grid
    trials: int | None = field(default=None, metadata=APART | at_least(1))
    """Cells to try; none, for a grid only: every cell."""
    pruner: PrunerName = PrunerName.none
    seeds: tuple[int, ...] = (0,)
    """Seeds of every cell."""
    sampler_seed: int = field(default=0, metadata=at_least(0, at_most=MOST_SEED))
    """Seed of the points that are drawn."""
    reduction_factor: int = field(default=3, metadata=at_least(2))
    """At each rung the best 1/reduction_factor of the runs continue (asha, hyperband)."""
    in_flight: int | None = field(default=None, metadata=APART | at_least(1))
    """Trials training at once at most, where results steer the search: those know nothing of each other.
    None: a fifth of all, at least eight."""
    probe: bool = field(default=True, metadata=APART)
    """Measure what each distinct configuration costs, by a few steps of it alone after the trials."""
    transfer: Transfer = Transfer.none
    """`lr`: try every rate at the two lowest ranks, and at each higher one the three nearest to the rate that
    the law of the ranks before it predicts (grid only)."""
    starts: tuple[Point, ...] = ()
    """Points to begin with; an axis that one leaves out is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A metric to minimize or maximize, averaged over the seeds of a cell."""

    metric: str
    direction: Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """A limit that a cell keeps or breaks; at least one of the two bounds is given, in the metric's unit."""

    metric: str
    at_most: float | None = None
    at_least: float | None = None

    def violation(self, value: float) -> float:
        """Return by how much `value` breaks the limit: 0 or less where it is kept, as Optuna has it."""
        above = [] if self.at_most is None else [value - self.at_most]
        below = [] if self.at_least is None else [self.at_least - value]
        return max(above + below)


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """The best cells, trained again on seeds that the search has not seen."""

    top: int = field(default=1, metadata=at_least(1))
    """The best cells of the whole search, beside the best of each level that is compared."""
    seeds: tuple[int, ...]
    """Fresh ones; in a file `auto` for as many as may be needed."""
    at_most: int | None = field(default=None, metadata=at_least(FEWEST_SEEDS, at_most=1_000))
    """Where given, only as many of the seeds are taken as the margin needs by the spread that the search has
    seen, at most so many."""
    split: Split = Split.test


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """Devices and processes of a sweep."""

    devices: str | tuple[int, ...] = "auto"
    """`auto` (every visible GPU, else the CPU: a worker on each core for a small base, one for a large one),
    `cpu` (one worker), `cpu:N`, or CUDA indices; one that is given twice gets two workers."""
    cohort: int | None = field(default=None, metadata=at_least(1))
    """Runs side by side at most; none: what is measured to be fastest."""
    hang_seconds: float = field(default=1800.0, metadata=positive("seconds"))
    """Silence after which a worker is taken to hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySettings:
    """Where Optuna's study is kept."""

    storage: str | None = None
    """A SQLAlchemy url; none: study.db in the sweep's directory. In PostgreSQL many machines share it."""
    heartbeat_seconds: float = field(default=20.0, metadata=at_least(1, "seconds"))
    """Heartbeat in seconds; a member that is silent for one and a half of them loses its runs to others."""
    artifacts: str | None = None
    """Directory or s3://bucket/prefix in which members without a shared file system leave their runs."""

    @property
    def is_shared(self) -> bool:
        """Whether several members may work on it: in PostgreSQL they can keep each other out."""
        return re.match(r"postgres(ql)?(\+\w+)?://", self.storage or "") is not None


class LauncherKind(Enum):
    """Who starts the members: Slurm, or submitit's stand-in for it on this machine."""

    slurm = "slurm"
    local = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherSettings:
    """The jobs to submit, each of which is one member of the sweep."""

    kind: LauncherKind
    workers: int = field(default=1, metadata=at_least(1, at_most=10_000))
    """Jobs, each of them one `harness worker`."""
    time_minutes: int = field(default=60, metadata=at_least(1))
    """Time limit per job, in minutes. A job that hits it is requeued."""
    grace_seconds: int = field(default=120, metadata=at_least(1))
    """Seconds before the limit at which a job is signalled; its runs must checkpoint within them."""
    gpus: int | None = field(default=None, metadata=at_least(1))
    """GPUs per job; none: as many as the partition gives by default."""
    cpus: int | None = field(default=None, metadata=at_least(1))
    """Cores per job; none: as many as the partition gives by default."""
    memory_gib: float | None = field(default=None, metadata=positive("GiB"))
    """Memory per job, in GiB; none: as much as the partition gives by default."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker, such as `module load cuda`."""


def has_password(url: str) -> bool:
    """Whether a database's url holds a password, before the host or in the query."""
    parts = urlsplit(url)
    return parts.password is not None or "password" in parse_qs(parts.query)
