"""What the leading rank tells the others, and what they answer. Everything here is sent between processes."""

from dataclasses import dataclass
from enum import Enum

from harness.config.schema import LoraConfig
from harness.engine.micro_step import Terms


class Word(Enum):
    """A command that says it all."""

    divide = "divide"
    """Build the base, keep a share of it, and answer whether that has worked."""
    assist = "assist"
    """Take part in a forward pass of the leader's: it needs every share of the base; no answer."""
    end = "end"
    """There is nothing more to do; no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Attach an adapter, and answer with the digest of its initial values."""

    name: str
    """The leader's name for it."""
    lora: LoraConfig
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Detach an adapter; no answer."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(Terms):
    """One rank's rows of one run's micro-batch; loss tokens are those of all ranks."""

    name: str
    """The leader's name for the adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Receive the adapters that have moved, compute, answer, and where all could, add up the gradients."""

    names: tuple[str, ...]
    """The adapters of the pass, in the order in which their gradients are added up."""
    moved: tuple[str, ...]
    """Those whose values are sent first, in this order."""
    shares: tuple[tuple[Share, ...], ...]
    """Shares of each rank; a rank without rows of a run has no share of it."""


Command = Word | Hold | Drop | Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a rank could not do what it was told."""

    is_out_of_memory: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A rank's answer to one command."""

    fault: Fault | None = None
    digest: str | None = None
    """Hash of an adapter's initial values."""
