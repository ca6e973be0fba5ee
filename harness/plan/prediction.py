"""What the planner answers: memory by parts, for one run and for its cohort. Must not import torch."""

from dataclasses import dataclass, field

from harness.records.metrics import MEMORY_PARTS, memory_part_name

STATIC_PARTS = tuple(part for part in MEMORY_PARTS if part != "activation")
SHARED_PARTS = ("base", "quant_constants")
"""Parts that all runs of a cohort have in common."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The micro-batch of one run."""

    rows: int
    length: int
    """Positions per row."""
    loss_tokens: int
    """Positions that carry loss."""
    packed: bool = False
    """Whether rows hold several examples, so that attention needs a mask."""

    def __post_init__(self) -> None:
        assert self.rows > 0, self
        assert self.length > 0, self
        assert 0 < self.loss_tokens <= self.rows * self.length, self


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """One row of the base's table: a module with tensors of its own."""

    name: str
    kind: str
    """block linear, embedding, head, norm, buffers or other; `tables` are what all packed layers share."""
    logical_params: int
    """Elements before packing; tied weights stand with their first module."""
    weight_bytes: int
    constant_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The memory of training in one configuration."""

    parts: dict[str, int]
    """Bytes by `MEMORY_PARTS` of one run; the activations are its share of the cohort's pass."""
    cohort_parts: dict[str, int]
    """The same of all runs together, base and constants once."""
    transient_bytes: int
    """How far live tensors of a pass rise above what autograd keeps: temporary dense weights, logits and
    their gradient, what a block computes before it is done; blocks gathered from other processes."""
    working_bytes: int
    """Kept between passes besides the parts: stacked copies of a cohort's adapters, sums of gradients, the
    best adapter so far; of captured steps the seats' copies and what fills ranks and seats up."""
    paged_bytes: int
    """Part of the optimizer's bytes in managed memory on a GPU, which the allocator does not count."""
    library_bytes: int
    """Bytes that cuBLAS keeps for itself on a GPU."""
    peak_bytes: int
    """Peak of the whole cohort: the parts' sum on a CPU, the simulated CUDA allocator's peak on a GPU."""
    device: str
    modules: tuple[ModuleSize, ...] = field(repr=False)
    trainable_params: int
    """Trainable parameters of one run."""
    logical_params: int
    bits_per_param: float
    cohort: int

    @property
    def static_bytes(self) -> int:
        """Bytes of the cohort that lie there between passes, as far as they are parts."""
        return sum(self.cohort_parts[part] for part in STATIC_PARTS)

    def metrics(self) -> dict[str, float]:
        """Return the metrics that this predicts, by the names of `harness.records.metrics`."""
        return {
            "memory/peak_bytes": self.peak_bytes,
            **{memory_part_name(part): value for part, value in self.parts.items()},
            "adapter/trainable_params": self.trainable_params,
            "base/logical_params": self.logical_params,
            "base/bits_per_param": self.bits_per_param,
        }

    def tree(self) -> dict[str, object]:
        """Return what `--json` prints of one configuration."""
        return {
            "metrics": self.metrics(),
            "parts": self.cohort_parts,
            "cohort": self.cohort,
            "device": self.device,
            "transient_bytes": self.transient_bytes,
            "peak_bytes": self.peak_bytes,
        }
