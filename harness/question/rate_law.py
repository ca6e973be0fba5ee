"""How the best learning rate moves with the rank: log rate = intercept + slope * log rank. Pure, no torch.

By LoRA's scale alpha/rank a fixed alpha should keep the best rate where it is (LoRA Without Regret, Thinking
Machines 2025), a slope near 0; with alpha proportional to the rank it should fall.

A grid can use it (`search.transfer=lr`): every rate is tried at the two lowest ranks, and at each higher
rank the few that lie nearest to what the law of the ranks before it predicts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.question.points import Point, Space

RANK, RATE = "lora.rank", "optim.lr"
FIRST_RANKS = 2
"""Lowest ranks at which every rate is tried: a line needs two points."""
NEAR = 3
"""Rates that are tried at each higher rank."""


@dataclass(frozen=True, slots=True)
class BestRate:
    """The best rate of one rank."""

    rate: float
    at_edge: bool
    """Whether it is the smallest or largest that was tried: the best may lie beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLaw:
    """A line through best rates, in logarithms, by least squares."""

    slope: float
    intercept: float
    n: int
    deviation: float | None
    """Of the residuals, with n - 2 degrees of freedom; None for two points."""
    middle: float
    """Mean logarithm of the ranks."""
    squares: float
    """Sum of squares of the ranks' logarithms about it."""

    def slope_interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return the t-interval of the slope; None for two points."""
        if self.deviation is None:
            return None
        half = self._quantile(confidence) * self.deviation / math.sqrt(self.squares)
        return self.slope - half, self.slope + half

    def predicted(self, rank: float) -> float:
        """Return the rate of a rank."""
        return math.exp(self.intercept + self.slope * math.log(rank))

    def prediction_interval(
        self, rank: float, confidence: float = 0.95
    ) -> tuple[float, float] | None:
        """Return the interval in which one more best rate at a rank would lie; None for two points."""
        if self.deviation is None:
            return None
        away = (math.log(rank) - self.middle) ** 2 / self.squares
        half = self._quantile(confidence) * self.deviation * math.sqrt(1 + 1 / self.n + away)
        return self.predicted(rank) * math.exp(-half), self.predicted(rank) * math.exp(half)

    def _quantile(self, confidence: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(self.n - 2, (1 + confidence) / 2))


def best_rate(losses: Mapping[float, float]) -> BestRate:
    """Return the rate of the lowest loss, between the rates by the parabola through it and its neighbours.

    The parabola is one of the loss over the rate's logarithm; with the lowest loss in the middle its own
    lowest point lies between the middles of the two stretches.
    """
    rates = sorted(losses)
    place = min(range(len(rates)), key=lambda index: (losses[rates[index]], index))
    if place in (0, len(rates) - 1):
        return BestRate(rates[place], at_edge=True)
    xs = [math.log(rate) for rate in rates[place - 1 : place + 2]]
    ys = [losses[rate] for rate in rates[place - 1 : place + 2]]
    left, right = xs[1] - xs[0], xs[2] - xs[1]
    below, above = (ys[1] - ys[0]) / left, (ys[2] - ys[1]) / right
    if not all(map(math.isfinite, ys)) or above == below:
        return BestRate(rates[place], at_edge=False)
    bend = (above - below) / (left + right)
    lowest = (xs[0] + xs[1]) / 2 - below / (2 * bend)
    return BestRate(math.exp(lowest), at_edge=False)


def fit_law(points: Sequence[tuple[float, float]]) -> RateLaw | None:
    """Return the line through (rank, best rate); None for fewer than two ranks."""
    if len({rank for rank, _ in points}) < 2:
        return None
    xs = [math.log(rank) for rank, _ in points]
    ys = [math.log(rate) for _, rate in points]
    n, middle, mean = len(points), math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    squares = math.fsum((x - middle) ** 2 for x in xs)
    slope = math.fsum((x - middle) * (y - mean) for x, y in zip(xs, ys, strict=True)) / squares
    intercept = mean - slope * middle
    rest = math.fsum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    deviation = math.sqrt(rest / (n - 2)) if n > 2 else None
    return RateLaw(
        slope=slope,
        intercept=intercept,
        n=n,
        deviation=deviation,
        middle=middle,
        squares=squares,
    )


# A grid that uses it ------------------------------------------------------------------------------

_Place = tuple[tuple[str, str], ...]


def transfer_stages(space: Space) -> list[list[Point]]:
    """Return the points of a grid in the order of their ranks: those of the lowest ranks, then rank by rank.

    Of the later stages not all are tried.
    """
    stages: list[list[Point]] = []
    for points in _by_place(space).values():
        ranks = sorted({point[RANK] for point in points}, key=float)
        for point in points:
            stage = max(0, ranks.index(point[RANK]) - FIRST_RANKS + 1)
            while len(stages) <= stage:
                stages.append([])
            stages[stage].append(point)
    return stages


def transfer_count(space: Space) -> int:
    """Return how many points a grid with the transfer of rates tries."""
    first, *later = transfer_stages(space)
    return len(first) + sum(len(points[:NEAR]) for stage in later for points in _ranks_of(stage))


def transferred(
    stage: Sequence[Point], told: Sequence[tuple[Point, float]], near: int = NEAR
) -> Iterator[Point]:
    """Yield the points of a later stage whose `near` rates are next to what the earlier ones predict.

    `told`: points of the stages before, with what they cost: the less, the better.
    """
    for points in _ranks_of(stage):
        place = _place_of(points[0])
        losses: dict[float, dict[float, float]] = {}
        for point, loss in told:
            if _place_of(point) == place:
                losses.setdefault(float(point[RANK]), {})[float(point[RATE])] = loss
        law = fit_law([(rank, best_rate(each).rate) for rank, each in losses.items()])
        rank = float(points[0][RANK])
        wanted = None if law is None else law.predicted(rank)
        by_distance = sorted(points, key=lambda point: _distance(float(point[RATE]), wanted))
        yield from (point for point in points if point in by_distance[:near])


def _distance(rate: float, wanted: float | None) -> float:
    return 0.0 if wanted is None else abs(math.log(rate / wanted))


def _by_place(space: Space) -> dict[_Place, list[Point]]:
    found: dict[_Place, list[Point]] = {}
    for point in space.points():
        found.setdefault(_place_of(point), []).append(point)
    return found


def _ranks_of(stage: Sequence[Point]) -> list[list[Point]]:
    """Return the points of each place and rank."""
    found: dict[tuple[_Place, str], list[Point]] = {}
    for point in stage:
        found.setdefault((_place_of(point), point[RANK]), []).append(point)
    return list(found.values())


def _place_of(point: Mapping[str, str]) -> _Place:
    return tuple((key, value) for key, value in point.items() if key not in (RANK, RATE))
