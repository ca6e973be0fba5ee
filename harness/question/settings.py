"""How a question is searched, judged, confirmed and run: the typed parts of a sweep's file. Pure data."""

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from harness.config.schema import Split
from harness.question.points import Point
from harness.records.metrics import Direction


class Method(Enum):
    """Who chooses the points: our own product of all values, or one of Optuna's samplers."""

    grid = "grid"
    random = "random"
    tpe = "tpe"
    gp = "gp"
    nsga2 = "nsga2"
    cmaes = "cmaes"


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
    trials: int | None = None
    """Cells to try; none, for a grid only: every cell."""
    pruner: PrunerName = PrunerName.none
    seeds: tuple[int, ...] = (0,)
    """Seeds of every cell."""
    sampler_seed: int = 0
    """Seed of the points that are drawn."""
    reduction_factor: int = 3
    """Divisor at each rung: the best 1/reduction_factor of its runs continue (asha, hyperband)."""
    in_flight: int | None = None
    """Trials training at once at most, where results steer the search: those know nothing of each other.
    None: a fifth of all, at least eight."""
    starts: tuple[Point, ...] = ()
    """Points to begin with; an axis that one leaves out is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is to become small or large: a metric, over the seeds of a cell."""

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

    top: int = 1
    """Cells to confirm."""
    seeds: tuple[int, ...]
    split: Split = Split.test


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """What the sweep may use."""

    devices: str | tuple[int, ...] = "auto"
    """`auto` (every visible GPU, else the CPU: a worker on each core for a small base, one for a large one),
    `cpu` (one worker), `cpu:N`, or CUDA indices; one that is given twice gets two workers."""
    cohort: int | None = None
    """Runs side by side at most; none: what is measured to be fastest."""
    hang_seconds: float = 1800.0
    """Silence after which a worker is taken to hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySettings:
    """Where Optuna's study is kept."""

    storage: str | None = None
    """A SQLAlchemy url; none: study.db in the sweep's directory. In PostgreSQL many machines share it."""
    heartbeat_seconds: float = 20.0
    """Seconds without a sign of life after which a member's work is given to others, within as long again."""
    artifacts: str | None = None
    """Directory or s3://bucket/prefix in which members without a shared file system leave their runs."""

    @property
    def is_shared(self) -> bool:
        """Whether several members may work on it: in PostgreSQL they can keep each other out."""
        return re.match(r"postgres(ql)?(\+\w+)?://", self.storage or "") is not None


def has_password(url: str) -> bool:
    """Whether a database's url holds a password, before the host or in the query."""
    parts = urlsplit(url)
    return parts.password is not None or "password" in parse_qs(parts.query)
