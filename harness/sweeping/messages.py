"""What driver and workers say to each other: small frozen values, pickled over a pipe of one machine.

Must not import torch: the driver has none.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness.config.lora import start_of
from harness.config.schema import RunConfig
from harness.records.record import RunStatus
from harness.records.run_directory import RunDirectory
from harness.request import Request


class Role(Enum):
    """Why a sweep trains a run."""

    search = "search"
    confirmation = "confirmation"
    probe = "probe"
    """A few steps alone, for the memory and speed that a run in company cannot measure."""
    clone = "clone"
    """A run with changes that a user has asked for beside the search."""


# From the driver ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train a run, beside those that the worker already trains if their cohort is the same."""

    request: Request
    cohort: str
    """Key of the runs that can share the base and a forward pass; see `cohort_of`."""
    sweep: str
    role: Role
    trial: int | None
    max_slots: int
    """Runs side by side at most."""
    probe: RunDirectory | None = None
    """Where the probe of the run's configuration is, once it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """End a run after the step in progress."""

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Say which of these configurations do not fit their model or data, before anything is trained."""

    configs: tuple[RunConfig, ...]
    keep: bool = True
    """Whether tokenized data and fingerprints stay in the cache."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Keep a checkpoint of every run and exit."""


# From a worker -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The libraries are imported and the device is there."""

    pid: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The answer to `Check`: for each configuration what is wrong with it, or None."""

    refusals: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """How many runs the worker wants to have, counted with those that it has."""

    count: int
    packing: str
    """Number of runs that share a pass and the reason, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The worker's work outside training steps."""

    doing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """How long the worker has had nothing to do since its first run began, in seconds, in all."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A run has made a step; `evaluated` holds the metrics of an evaluation where there was one."""

    run_id: str
    step: int
    total_steps: int
    loss: float
    evaluated: dict[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run has ended and its record is on disk."""

    run_id: str
    status: RunStatus
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A run cannot begin: another process trains it at this moment."""

    run_id: str
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted:
    """The disk refuses what every run needs; this worker ends, with its runs interrupted."""

    reason: str


Order = Train | Prune | Check | Stop
News = Ready | Checked | Slots | Busy | Waited | Stepped | Ended | Taken | Halted


def cohort_of(request: Request, *, alone: bool = False) -> str:
    """Return what runs must share to train side by side: base, rows of one length, recomputation.

    Runs that rewrite the base share it with those that begin alike, and one that is to be `alone`, or trains
    embeddings or head too, shares it with nobody.
    """
    config = request.config
    shared: list[Any] = [
        request.fingerprint,
        config.model,
        config.quant,
        config.data,
        config.resources,
        config.paths,
        config.optim.gradient_checkpointing,
        config.optim.offload_activations,
    ]
    lora = config.lora
    if lora.rewrites_base and not lora.trains_all:
        shared.append(start_of(lora))
    if alone or lora.trains_alone:
        shared.append(request.identity.run_id)
    return repr(shared)
