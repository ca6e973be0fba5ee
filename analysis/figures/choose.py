"""Which figures a set of rows gets: it follows from what varies among them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from analysis.figures.cells import runs_of
from analysis.figures.costs import memory_beside_throughput, series_over_steps, time_and_energy
from analysis.figures.factors import (
    ALPHA,
    BLOCK_SIZE,
    FORMAT,
    LEARNING_RATE,
    RANK,
    TARGETS,
    Factor,
    is_numeric,
    levels,
    varying_factors,
)
from analysis.figures.grids import heat_map
from analysis.figures.learning import factors_with_curves, learning_curves
from analysis.figures.memory import memory_by_parts
from analysis.figures.over import MAX_LINES, metric_over
from analysis.figures.style import Drawing, Width
from analysis.figures.targets import targets_at_equal_budget
from analysis.figures.trade_off import (
    FORGETTING,
    learning_against_forgetting,
    quality_against_memory,
)
from analysis.frame import Row, metric_key
from analysis.histories import History

MAX_NUMERIC = 3
"""Numeric factors that get lines of their own; more are what the search's own figures are for."""
CURVES = ("train/loss", "eval/loss")

Draw = Callable[[Width], Drawing]


def quality_figures(rows: Sequence[Row], metrics: Sequence[str]) -> Iterator[Draw]:
    """Yield the figures of each metric that the varying factors call for; rows are of one role."""
    factors = varying_factors(runs_of(rows))
    numeric = [f for f in factors if is_numeric(f, rows)]
    for metric in metrics:
        for over in numeric[:MAX_NUMERIC]:
            by = _line_factor(factors, over, rows)
            yield _over(rows, over, metric, by)
        for across, down in _maps(factors, numeric):
            yield _map(rows, across, down, metric)
        if TARGETS in factors:
            yield _targets(rows, metric)


def cost_figures(rows: Sequence[Row], quality: str) -> Iterator[Draw]:
    """Yield what is drawn of memory, with one metric of quality beside it."""
    yield lambda width: memory_by_parts(rows, width=width)
    yield lambda width: quality_against_memory(rows, metric=quality, width=width)
    if any(row.get(metric_key(FORGETTING)) is not None for row in rows):
        yield lambda width: learning_against_forgetting(rows, metric=quality, width=width)


def configuration_figures(rows: Sequence[Row]) -> Iterator[Draw]:
    """Yield what each configuration costs alone."""
    yield lambda width: memory_beside_throughput(rows, width=width)
    yield lambda width: time_and_energy(rows, width=width)


def curve_figures(
    rows: Sequence[Row], histories: Mapping[str, History], objective: str
) -> Iterator[Draw]:
    """Yield the learning curves, and what the steps of the best runs cost."""
    for metric in CURVES:
        yield _curves(rows, histories, metric, objective, None)
        for factor in factors_with_curves(rows):
            yield _curves(rows, histories, metric, objective, factor)
    yield lambda width: series_over_steps(rows, histories, objective=objective, width=width)


def _line_factor(factors: Sequence[Factor], over: Factor, rows: Sequence[Row]) -> Factor | None:
    """Return what the lines of a figure are: the format first, then the other known factors."""
    runs = runs_of(rows)
    candidates = dict.fromkeys((FORMAT, TARGETS, RANK, ALPHA, BLOCK_SIZE, *factors))
    for factor in candidates:
        is_free = factor in factors and factor not in (over, LEARNING_RATE)
        if is_free and not _follows(factor, over) and len(levels(factor, runs)) <= MAX_LINES:
            return factor
    return None


def _follows(factor: Factor, over: Factor) -> bool:
    """Whether a line for each level would be a point: alpha over rank is a map, not lines."""
    return {factor.name, over.name} == {ALPHA.name, RANK.name}


def _maps(factors: Sequence[Factor], numeric: Sequence[Factor]) -> Iterator[tuple[Factor, Factor]]:
    if BLOCK_SIZE in factors and FORMAT in factors:
        yield BLOCK_SIZE, FORMAT
    for across, down in combinations(numeric, 2):
        if BLOCK_SIZE not in (across, down) and RANK in (across, down):
            yield (RANK, down) if across is RANK else (RANK, across)


# A function each, so that what a figure is about is bound when it is chosen.


def _over(rows: Sequence[Row], over: Factor, metric: str, by: Factor | None) -> Draw:
    return lambda width: metric_over(rows, over=over, metric=metric, by=by, width=width)


def _map(rows: Sequence[Row], across: Factor, down: Factor, metric: str) -> Draw:
    return lambda width: heat_map(rows, across=across, down=down, metric=metric, width=width)


def _targets(rows: Sequence[Row], metric: str) -> Draw:
    return lambda width: targets_at_equal_budget(rows, metric=metric, width=width)


def _curves(
    rows: Sequence[Row],
    histories: Mapping[str, History],
    metric: str,
    objective: str,
    by: Factor | None,
) -> Draw:
    return lambda width: learning_curves(
        rows, histories, metric=metric, objective=objective, by=by, width=width
    )
