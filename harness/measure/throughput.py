"""Step times and tokens per second. The warm-up rule stands here and nowhere else."""

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.measure.work import Work

WARMUP_STEPS = 3
"""Steps left out of every figure: allocator growth, kernel selection and the activation count fall there."""


@dataclass(slots=True)
class StepClock:
    """Collects (seconds, tokens) of optimizer steps; a step ends when its loss has reached the host."""

    seconds: list[float] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    loss_tokens: list[int] = field(default_factory=list)

    def add(self, seconds: float, input_tokens: int, loss_tokens: int) -> None:
        """Add one optimizer step."""
        self.seconds.append(seconds)
        self.input_tokens.append(input_tokens)
        self.loss_tokens.append(loss_tokens)

    def metrics(self) -> dict[str, float]:
        """Return the throughput metrics over the steps after the warm-up; {} if there are none."""
        seconds = self.seconds[WARMUP_STEPS:]
        total = sum(seconds)
        if not seconds or total <= 0:
            return {}
        return {
            "throughput/step_ms": 1e3 * statistics.median(seconds),
            "throughput/input_tokens_per_second": sum(self.input_tokens[WARMUP_STEPS:]) / total,
            "throughput/loss_tokens_per_second": sum(self.loss_tokens[WARMUP_STEPS:]) / total,
        }

    def utilisation(self, work: "Work") -> float | None:
        """Return the share of the device's rate reached over the steps after the warm-up, if it is known."""
        after = slice(WARMUP_STEPS, None)
        tokens, losses = sum(self.input_tokens[after]), sum(self.loss_tokens[after])
        return work.utilisation(tokens, losses, sum(self.seconds[after]))

    def recent_tokens_per_second(self, window: int = 20) -> float | None:
        """Return input tokens per second over the last steps, for display."""
        total = sum(self.seconds[-window:])
        return sum(self.input_tokens[-window:]) / total if total > 0 else None
