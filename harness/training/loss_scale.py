"""The factor by which a run in float16 multiplies its loss, so that small gradients do not round to zero.

Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2; begun, halved and doubled as by
`torch.amp.GradScaler`, but each run of a cohort has its own.
"""

from dataclasses import dataclass

_GROWTH_STEPS = 2000


@dataclass(kw_only=True, slots=True)
class LossScale:
    """A power of two, so that gradients are brought back exactly."""

    value: float = 2.0**16
    steps_since: int = 0
    """Steps since it last changed."""
    skipped_steps: int = 0
    """Steps that moved nothing because their gradient overflowed."""

    def moved(self) -> None:
        """Take note of a step with finite gradients; double the scale after 2,000 in a row."""
        self.steps_since += 1
        if self.steps_since == _GROWTH_STEPS:
            self.value, self.steps_since = 2 * self.value, 0

    def overflowed(self) -> None:
        """Take note of a step that was left out; halve the scale."""
        self.value, self.steps_since = self.value / 2, 0
        self.skipped_steps += 1

    @property
    def is_exhausted(self) -> bool:
        """Whether gradients overflow although the loss is not multiplied at all."""
        return self.value < 1
