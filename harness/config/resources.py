"""What a run may use of the machine; no part of its result. As light as the schema."""

from dataclasses import dataclass
from enum import Enum


class Shard(Enum):
    """How the processes of a run hold the frozen base."""

    none = "none"
    """Each holds all of it."""
    fsdp = "fsdp"
    """Each holds its share of every layer (FSDP2); a block is gathered while it is computed."""


class BackendName(Enum):
    """Who computes the passes of a cohort over its base; all give the same numbers within a tolerance."""

    auto = "auto"
    """The quickest that supports the device, the base and the run; `reference` where none does."""
    reference = "reference"
    """The plain packed pass through transformers' and PEFT's modules."""
    cpu = "cpu"
    """Quick passes over a small base on a CPU: the reference's bits."""
    cuda = "cuda"
    """Captured steps on a GPU: within the reference's own rounding."""


@dataclass(kw_only=True, slots=True)
class ResourcesConfig:
    """What the run may use. Does not change the result."""

    device: str = "auto"
    """`auto` (the first CUDA device, else the CPU), `cpu`, `cuda` or `cuda:N`."""
    backend: BackendName = BackendName.auto
    """`auto`, or one by name: refused where it cannot compute this base."""
    threads: int | None = None
    """CPU threads of torch, shared by the processes of the run; none: torch's own choice."""
    data_parallel: int = 1
    """Processes that share the rows of each micro-batch, each on its own GPU (or the CPU)."""
    shard: Shard = Shard.none
    """`fsdp` divides the base among these processes, for a model too large for one GPU."""
