"""A metric over a number that was varied (a rank, a learning rate), with intervals, a line per group."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from analysis.figures.cells import (
    SEARCH_VALUE,
    Cell,
    axis_label,
    cells_of,
    chosen,
    failures,
    runs_of,
    seeds_text,
)
from analysis.figures.factors import Factor, is_numeric, levels, printed, varying_factors
from analysis.figures.style import (
    Drawing,
    Width,
    figure_style,
    legend_above,
    line_look,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.frame import Row
from analysis.statistics import Interval
from harness.records.metrics import METRICS

MAX_LINES = 8
MAX_TICKS = 8


def metric_over(
    rows: Sequence[Row],
    *,
    over: Factor,
    metric: str,
    by: Factor | None = None,
    width: Width = Width.one_column,
) -> Drawing:
    """Draw the mean of a metric over a numeric factor, one line for each level of `by`.

    Where a point of a line holds several cells (they differ in something that is no axis here), the best
    stands for them and the caption says so. Not drawn with fewer than two numbers or no measured value.
    """
    name = f"{stem_of(metric)}_over_{over.name.rpartition('.')[2]}"
    title = f"{METRICS[metric].label} over {over.label}" + (f", by {by.label}" if by else "")
    cells = [cell for cell in cells_of(rows) if cell.setting(over) is not None]
    drawn, at_most = chosen(cells, metric, lambda c: (_level(c, by), c.setting(over)))
    numbers = sorted({number for _, number in drawn})
    if not drawn:
        return not_drawn(name, title, f"no completed run measured {metric}")
    if len(numbers) < 2:
        return not_drawn(name, title, f"{over.name} has one value, {printed(numbers[0])}")
    if not is_numeric(over, rows):
        return not_drawn(name, title, f"{over.name} is no number")
    lines = levels(by, [cell.rows[0] for cell in drawn.values()]) if by else [None]
    if len(lines) > MAX_LINES:
        return not_drawn(
            name,
            title,
            f"{by.name if by else ''} has {len(lines)} levels, a figure shows {MAX_LINES}",
        )
    places = len(lines) * len(numbers)
    if len(lines) > 1 and len(drawn) <= places / 2:
        return not_drawn(name, title, f"only {len(drawn)} of {places} points were measured")
    with figure_style():
        figure, axes = new_figure(width, 2.5 if len(lines) == 1 else 2.9)
        for index, level in enumerate(lines):
            points = [(n, drawn[_key(level), n]) for n in numbers if (_key(level), n) in drawn]
            # Intervals of different lines stand side by side.
            beside = 0.02 * (index - (len(lines) - 1) / 2) if over.is_logarithmic else 0.0
            _line(axes, points, metric, index, printed(level) if by else None, 1 + beside)
        scale_axis(axes, numbers, over)
        axes.set_ylabel(axis_label(metric))
        if by and len(lines) > 1:
            legend_above(figure, axes, by.label)
    kept = list(drawn.values())
    shared = sharing_text(rows, kept, at_most, "point", over, by)
    return Drawing(
        name=name,
        title=title,
        caption=sentences(seeds_text(kept, metric), shared, failures(rows)),
        figure=figure,
        run_ids=tuple(run_id for cell in kept for run_id in cell.run_ids()),
    )


def sharing_text(
    rows: Sequence[Row], cells: Sequence[Cell], at_most: int, place: str, *shown: Factor | None
) -> str:
    """Say how many cells share a place of a figure, in what they differ, and by what the best was chosen."""
    if at_most <= 1:
        return ""
    names = {factor.name for factor in shown if factor}
    others = ", ".join(f.name for f in varying_factors(runs_of(rows)) if f.name not in names)
    how = "the one with the best mean is drawn, which flatters it"
    if any(SEARCH_VALUE in cell.rows[0] for cell in cells):
        how = "the one that the search found best is drawn"
    return f"Up to {at_most} cells share a {place} (they differ in {others}): {how}."


def error_bars(intervals: Sequence[Interval | None]) -> list[list[float]]:
    """Return how far each interval reaches below and above its mean; not at all where there is none."""
    known = [
        (0.0, 0.0)
        if i is None or i.low is None or i.high is None
        else (i.mean - i.low, i.high - i.mean)
        for i in intervals
    ]
    return [[below for below, _ in known], [above for _, above in known]]


def scale_axis(axes: Axes, numbers: Sequence[float], factor: Factor) -> None:
    """Label the horizontal axis of a numeric factor, its own numbers as ticks where they are few."""
    if factor.is_logarithmic and min(numbers) > 0:
        axes.set_xscale("log")
    if len(numbers) <= MAX_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(list(numbers)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(factor.label)


def _line(
    axes: Axes,
    points: Sequence[tuple[float, Cell]],
    metric: str,
    index: int,
    label: str | None,
    shift: float,
) -> None:
    look = line_look(index)
    intervals = [cell.interval(metric) for _, cell in points]
    known = [(n, i) for (n, _), i in zip(points, intervals, strict=True) if i is not None]
    axes.errorbar(
        [number * shift for number, _ in known],
        [interval.mean for _, interval in known],
        yerr=error_bars([interval for _, interval in known]),
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        elinewidth=0.8,
        label=label,
    )


def _level(cell: Cell, by: Factor | None) -> Any:
    return _key(cell.setting(by)) if by else None


def _key(level: Any) -> Any:
    return None if level is None else repr(level)


def stem_of(metric: str) -> str:
    """Return a metric's name as part of a file's name."""
    return metric.replace("/", "_")
