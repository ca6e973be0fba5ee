"""Means of a few numbers and the intervals around them. SciPy is imported by the function that needs it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over `n` values and what can be said about it."""

    mean: float
    low: float | None
    """Lower end; both ends are None for a single value."""
    high: float | None
    n: int
    deviation: float | None
    """Sample standard deviation (n - 1); None for a single value."""

    @property
    def half_width(self) -> float | None:
        """Half of high - low: for a t-interval the number after ±."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        """Whether `value` lies in the interval; False where there is none."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean with its t-interval of n - 1 degrees of freedom; one value has none.

    Raises ValueError for no values or one that is not finite.
    """
    mean, deviation = mean_and_deviation(values)
    n = len(values)
    if deviation is None:
        return Interval(mean=mean, low=None, high=None, n=n, deviation=None)
    half = t_quantile(n - 1, confidence) * deviation / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, deviation=deviation)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample deviation, None for one value. Raises ValueError as `mean_interval`."""
    if not len(values) or not all(map(math.isfinite, values)):
        raise ValueError(f"expected finite values, at least one, got {list(values)}")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1))


@lru_cache(maxsize=1024)
def t_quantile(degrees_of_freedom: float, confidence: float) -> float:
    """Return how many standard errors a two-sided interval reaches to each side (Student 1908)."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + confidence) / 2))
