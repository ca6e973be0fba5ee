"""Ratios of neighbouring measurements, and whether two trainings did the same work. Pure functions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAME_LOSS = 1e-3
"""Nats per token that the training losses of the same work may differ by."""
SAME_EVAL_SHARE = 0.01
"""Share of the loss on held-out rows that may come on top: the Trainer averages batches, we tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One quantity over another, measured pair by pair."""

    median: float
    low: float
    high: float
    pairs: int


def ratio_of(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Return median, least and greatest of over[i] / under[i]; the pairs are neighbours in time."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(median=statistics.median(each), low=min(each), high=max(each), pairs=len(each))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the losses of a peer are from ours."""

    curve_difference: float
    """Greatest difference of the training loss, as means over the steps between two logs."""
    eval_difference: float
    eval_loss: float
    """Ours."""

    @property
    def is_same(self) -> bool:
        """Whether the work was the same; a nan is not."""
        limit = SAME_LOSS + SAME_EVAL_SHARE * self.eval_loss
        return self.curve_difference <= SAME_LOSS and self.eval_difference <= limit


def agreement(
    ours: Sequence[float], our_eval: float, curve: Mapping[str, float], their_eval: float
) -> Agreement:
    """Compare our loss of each step with a Trainer's curve: step -> mean loss since the log before."""
    differences, start = [], 0
    for step in sorted(int(key) for key in curve):
        mean = statistics.fmean(ours[start:step])
        differences.append(abs(mean - float(curve[str(step)])))
        start = step
    assert differences, "the peer has logged no loss"
    broken = any(math.isnan(difference) for difference in differences)
    return Agreement(
        curve_difference=math.nan if broken else max(differences),
        eval_difference=abs(our_eval - their_eval),
        eval_loss=our_eval,
    )


WITHIN = 0.05
"""Share of its loss by which a confirmed cell may be above another and still count as equally good."""


def is_as_good(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether a confirmed cell is at least as good as another: mean losses over the same fresh seeds.

    Where it is not as low, the seeds must not tell the two apart: the mean difference is within its own
    standard error, or a share `WITHIN` of the loss.
    """
    differences = [a - b for a, b in zip(losses, others, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return mean <= max(0.0, error, WITHIN * statistics.fmean(others))
