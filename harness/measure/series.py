"""What a run's optimizer steps cost, as a series: who shared their passes, memory, power, throughput.

A run in company has no costs of its own: its step took as long as the passes that it was in, and the memory
is the process's. So each row says how many runs shared the passes, and which share of their tokens it had.
"""

from dataclasses import dataclass

from harness.measure.meter import Reading
from harness.measure.throughput import StepClock
from harness.measure.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCost:
    """One packed pass, as every run in it is told."""

    runs: int
    """Runs that shared it."""
    input_tokens: int
    """Of all of them."""
    reading: Reading
    """After the pass."""
    saved_bytes: int | None
    """What it kept for backward, where nothing counts a device's peak; None where nobody has looked."""
    joules: float | None
    """Energy of the device from its beginning to its end."""


class StepCosts:
    """Collects the passes of one run's step in progress."""

    def __init__(self) -> None:
        self.joules: float | None = None
        """The run's share, by tokens, of the device's energy during its passes; None where nothing tells."""
        self._peak = 0
        self._saved: int | None = None
        self._runs = 0
        self._own_tokens = self._all_tokens = 0
        self._last: PassCost | None = None

    def add(self, cost: PassCost, own_tokens: int) -> None:
        """Take note of one pass in which this run had so many tokens."""
        self._last = cost
        self._runs = max(self._runs, cost.runs)
        self._own_tokens += own_tokens
        self._all_tokens += cost.input_tokens
        if cost.reading.peak_bytes is not None:
            self._peak = max(self._peak, cost.reading.peak_bytes)
        if cost.saved_bytes is not None:
            self._saved = max(self._saved or 0, cost.saved_bytes)
        if cost.joules is not None and cost.input_tokens:
            self.joules = (self.joules or 0.0) + cost.joules * own_tokens / cost.input_tokens

    def end_step(self, clock: StepClock, held_bytes: int, work: Work) -> dict[str, float]:
        """Return the metrics of the step that the clock counted last; the next one begins.

        `held_bytes`: what lasts between steps, of all runs in the process, where no allocator counts it.
        """
        seconds, tokens, losses = clock.seconds[-1], clock.input_tokens[-1], clock.loss_tokens[-1]
        assert self._last is not None, "a step without a pass"
        reading = self._last.reading
        allocated = held_bytes if reading.allocated_bytes is None else reading.allocated_bytes
        if reading.peak_bytes is None and self._saved is not None:
            self._peak = max(self._peak, held_bytes + self._saved)
        found: dict[str, float | None] = {
            "throughput/step_ms": 1e3 * seconds,
            "throughput/input_tokens_per_second": tokens / seconds if seconds > 0 else None,
            "throughput/loss_tokens_per_second": losses / seconds if seconds > 0 else None,
            "throughput/model_flops_utilisation": work.utilisation(tokens, losses, seconds),
            "memory/allocated_bytes": allocated,
            "memory/peak_bytes": self._peak or None,
            "memory/reserved_bytes": reading.reserved_bytes,
            "memory/resident_bytes": reading.resident_bytes,
            "device/utilisation": reading.utilization,
            "device/power_watts": reading.power_watts,
            "cohort/runs": self._runs,
            "cohort/token_share": self._own_tokens / self._all_tokens if self._all_tokens else None,
        }
        self._runs = self._own_tokens = self._all_tokens = 0
        self._last = None
        return {name: value for name, value in found.items() if value is not None}
