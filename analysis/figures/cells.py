"""Rows as cells: the runs that differ in nothing but their seed, with what they measured. Pure.

Quality counts from every completed run but probes; what only a run alone can measure counts from solo
runs and probes (design: "Measuring").
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.figures.factors import Factor, varying_factors
from analysis.frame import Row, cost_key, is_probe
from analysis.shares import is_share, share_interval
from analysis.statistics import Interval, mean_interval
from harness.records.metrics import COHORT_SHARES, METRICS, Direction
from harness.records.record import MeasuredIn, RunStatus

SEARCH_VALUE = "search/value"
"""Key of a row: the objective that a search's own trial of this cell reached, to choose among cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Runs of one configuration, replicated over seeds."""

    settings: tuple[Any, ...]
    """A value per factor that varies among the rows asked about."""
    rows: tuple[Row, ...]
    probes: tuple[Row, ...] = ()
    """Runs that measured the cost of this configuration in a process of their own."""

    def setting(self, factor: Factor) -> Any:
        """Return this cell's value of a factor."""
        return factor.value(self.rows[0])

    def completed(self) -> list[Row]:
        """Return the runs that ended well and were whole runs."""
        return [row for row in self.rows if is_replicate(row)]

    def values(self, metric: str) -> list[float]:
        """Return the finite values of a metric that count, one per run."""
        everything = (*self.rows, *self.probes)
        found = (value_of(row, metric) for row in everything if counts(row, metric))
        return [value for value in found if value is not None and math.isfinite(value)]

    def interval(self, metric: str) -> Interval | None:
        """Return the mean over seeds and its interval, or None where nothing was measured."""
        values = self.values(metric)
        if not values:
            return None
        rows = [row for row in self.completed() if row.get(f"after.{metric}") is not None]
        share = share_interval(rows, metric) if len(rows) == len(values) else None
        return share or mean_interval(values)

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds, or None where nothing was measured."""
        values = self.values(metric)
        return math.fsum(values) / len(values) if values else None

    def run_ids(self) -> list[str]:
        """Return the ids of the runs and probes."""
        return [row["run_id"] for row in (*self.rows, *self.probes)]


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    """Group rows that differ in nothing but their seed; a probe joins every cell whose cost it measures."""
    runs = runs_of(rows)
    probes: dict[frozenset[Any], list[Row]] = {}
    for row in rows:
        if is_probe(row):
            probes.setdefault(cost_key(row), []).append(row)
    factors = varying_factors(runs)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in runs:
        groups.setdefault(tuple(repr(factor.value(row)) for factor in factors), []).append(row)
    return [
        Cell(
            settings=tuple(factor.value(group[0]) for factor in factors),
            rows=tuple(group),
            probes=tuple(probes.get(cost_key(group[0]), ()) if probes else ()),
        )
        for group in groups.values()
    ]


def runs_of(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of whole runs, without the probes."""
    return [row for row in rows if not is_probe(row)]


def is_replicate(row: Row) -> bool:
    """Whether a run counts as a replicate of its cell."""
    return row["status"] is RunStatus.completed and not is_probe(row)


def counts(row: Row, metric: str) -> bool:
    """Whether a run's value of a metric may be shown as its own."""
    if row["status"] is not RunStatus.completed:
        return False
    if metric in COHORT_SHARES:
        return row["measured_in"] is not MeasuredIn.cohort
    return not is_probe(row)


def value_of(row: Row, metric: str) -> float | None:
    """Return a metric of a run: its last evaluation, or what it cost."""
    value = row.get(f"after.{metric}")
    return row.get(metric) if value is None else value


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return METRICS[metric].direction is Direction.minimize


def axis_label(metric: str) -> str:
    """Return a metric's label with its unit and an arrow for the better direction."""
    known = METRICS[metric]
    unit = f" ({known.unit})" if known.unit and known.unit not in (known.label, "bytes") else ""
    return f"{known.label}{unit}{known.direction.arrow}"


def best_first(cells: Iterable[Cell], metric: str) -> list[Cell]:
    """Sort the cells that measured a metric: by what the search saw of them, else by their means."""
    sign = 1.0 if lower_is_better(metric) else -1.0

    def key(cell: Cell) -> float:
        seen = cell.rows[0].get(SEARCH_VALUE)
        value = cell.mean(metric) if seen is None else seen
        assert value is not None
        return sign * value

    return sorted((cell for cell in cells if cell.values(metric)), key=key)


def chosen(
    cells: Sequence[Cell], metric: str, place: Callable[[Cell], Any]
) -> tuple[dict[Any, Cell], int]:
    """Return the best cell of each place, and the largest number of cells that shared one.

    Where a figure's place (a rank and a format) holds several cells, they differ in something the figure
    does not show; the best by `best_first` stands for them and the caption has to say so.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(place(cell), []).append(cell)
    best = {at: ranked[0] for at, group in groups.items() if (ranked := best_first(group, metric))}
    return best, max((len(groups[at]) for at in best), default=0)


def failures(rows: Iterable[Row]) -> str:
    """Count the runs that did not complete, in words, or return an empty text."""
    count: dict[str, int] = {}
    for row in rows:
        if row["status"] is not RunStatus.completed:
            count[row["status"].value] = count.get(row["status"].value, 0) + 1
    listed = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(count.items()))
    return f"Not drawn: {listed}." if listed else ""


def seed_counts(cells: Sequence[Cell], metric: str) -> str:
    """Return how many seeds have measured a metric: `n=3`, `n=1 to 3`."""
    counted = sorted({len(cell.values(metric)) for cell in cells})
    return f"n={counted[0]}" if len(counted) == 1 else f"n={counted[0]} to {counted[-1]}"


def seeds_text(cells: Sequence[Cell], metric: str) -> str:
    """Say how many seeds stand behind the points."""
    counted = sorted({len(cell.values(metric)) for cell in cells})
    if not counted:
        return ""
    if counted == [1]:
        return "One seed a point (n=1), so no intervals."
    spread = seed_counts(cells, metric)
    alone = " (none where n=1)" if counted[0] == 1 else ""
    kind = "Wilson intervals over seeds and rows" if is_share(metric) else "t intervals"
    return f"Mean over seeds, {spread}; bars are 95 % {kind}{alone}."
