"""What a run may use of the machine; no part of its result. As light as the schema."""

from dataclasses import dataclass
from enum import Enum


class Shard(Enum):
    """How the processes of a run hold the frozen base."""

    none = "none"
    """Each holds all of it."""
    fsdp = "fsdp"
    """Each holds its share of every layer (FSDP2); a block is gathered while it is computed."""


@dataclass(kw_only=True, slots=True)
class ResourcesConfig:
    """What the run may use. Does not change the result."""

    device: str = "auto"
    """`auto` (the first CUDA device, else the CPU), `cpu`, `cuda` or `cuda:N`."""
    threads: int | None = None
    """CPU threads of torch, shared by the processes of the run; none: torch's own choice."""
    data_parallel: int = 1
    """Processes that share the rows of each micro-batch, each on its own GPU (or the CPU)."""
    shard: Shard = Shard.none
    """`fsdp` divides the base among these processes, for a model too large for one GPU."""
