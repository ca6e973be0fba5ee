"""Learning curves: a metric over steps, the mean over seeds with the range of the seeds around it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.figures.cells import (
    Cell,
    axis_label,
    best_first,
    cells_of,
    is_replicate,
    runs_of,
)
from analysis.figures.factors import LEARNING_RATE, Factor, levels, varying_factors
from analysis.figures.memory import setting_text
from analysis.figures.over import stem_of
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
from analysis.histories import History
from harness.records.metrics import METRICS

MAX_LINES = 8
MAX_FACTORS = 3
"""Factors whose levels are drawn apart, where there are more cells than lines."""
SMOOTH_OVER = 50
"""A curve of more points is drawn as the means of this many stretches: a step's batch is noise."""


def learning_curves(
    rows: Sequence[Row],
    histories: Mapping[str, History],
    *,
    metric: str,
    objective: str,
    by: Factor | None = None,
    width: Width = Width.one_column,
) -> Drawing:
    """Draw a metric over steps for up to eight cells: the best, or the best of each level of a factor.

    `histories` are needed for `runs_with_curves` only. Not drawn where none of these has two points of the
    metric.
    """
    name = f"curves_{stem_of(metric)}" + (
        "" if by is None else f"_by_{stem_of(by.name).replace('.', '_')}"
    )
    title = f"{METRICS[metric].label} over steps" + ("" if by is None else f", by {by.label}")
    cells = best_first(cells_of(rows), objective)
    chosen = cells[:MAX_LINES] if by is None else best_of_levels(cells, by)
    shown = [cell for cell in chosen if _curves(cell, histories, metric)]
    if not shown:
        return not_drawn(name, title, f"none of the best runs has two points of {metric}")
    factors = varying_factors([row for cell in shown for row in cell.rows])
    with figure_style():
        figure, axes = new_figure(width, 2.6 if len(shown) == 1 else 3.0)
        for index, cell in enumerate(shown):
            label = ", ".join(setting_text(factor, cell) for factor in factors)
            _line(axes, _curves(cell, histories, metric), index, label or None)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(axis_label(metric))
        if factors:
            legend_above(figure, axes)
        if _is_positive_and_wide(axes):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    seeds = sorted({len(_curves(cell, histories, metric)) for cell in shown})
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            f"Mean over seeds (n={'/'.join(map(str, seeds))}), the band spans the seeds; long curves as "
            f"means over {SMOOTH_OVER} stretches.",
            ""
            if len(shown) == len(cells)
            else f"Of {len(cells)} cells the best of each {by.label} by {METRICS[objective].label}."
            if by is not None
            else f"The {len(shown)} cells of {len(cells)} with the best {METRICS[objective].label}.",
        ),
        figure=figure,
        run_ids=tuple(run_id for cell in shown for run_id in cell.run_ids()),
    )


def runs_with_curves(rows: Sequence[Row], objective: str) -> list[str]:
    """Return the ids of the runs whose curves are drawn: ten thousand histories need not be read for six."""
    cells = best_first(cells_of(rows), objective)
    drawn = cells[:MAX_LINES]
    for factor in factors_with_curves(rows):
        drawn += best_of_levels(cells, factor)
    return list(dict.fromkeys(row["run_id"] for cell in drawn for row in cell.rows))


def factors_with_curves(rows: Sequence[Row]) -> list[Factor]:
    """Return the factors whose levels get curves: where there are more cells than lines, not every one."""
    if len(cells_of(rows)) <= MAX_LINES:
        return []
    runs = runs_of(rows)
    return [
        factor
        for factor in varying_factors(runs)
        if factor is not LEARNING_RATE and 2 <= len(levels(factor, runs)) <= MAX_LINES
    ][:MAX_FACTORS]


def best_of_levels(cells: Sequence[Cell], by: Factor) -> list[Cell]:
    """Return the first of the cells of each level, in the order of the levels."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(repr(cell.setting(by)), cell)
    order = [repr(level) for level in levels(by, [cell.rows[0] for cell in cells])]
    return [found[level] for level in order if level in found]


Curve = tuple[np.ndarray, np.ndarray]


def _curves(cell: Cell, histories: Mapping[str, History], metric: str) -> list[Curve]:
    found = []
    for row in filter(is_replicate, cell.rows):
        history = histories.get(row["run_id"])
        curve = history.curves.get(metric) if history is not None else None
        if curve is not None and len(curve[0]) > 1:
            found.append(smooth(curve))
    return found


def smooth(curve: Curve) -> Curve:
    """Return a long curve as the means of `SMOOTH_OVER` stretches."""
    steps, values = curve
    if len(steps) <= SMOOTH_OVER:
        return curve
    edges = np.linspace(0, len(steps), SMOOTH_OVER + 1).astype(int)[:-1]
    sizes = np.diff([*edges, len(steps)])
    return np.add.reduceat(steps, edges) / sizes, np.add.reduceat(values, edges) / sizes


def _line(axes: Axes, curves: Sequence[Curve], index: int, label: str | None) -> None:
    look = line_look(index)
    # Seeds of a cell evaluate at the same steps; a run that was cut short ends the mean.
    length = min(len(steps) for steps, _ in curves)
    values_SP = np.stack([values[:length] for _, values in curves])  # seeds by points
    steps = curves[0][0][:length]
    axes.plot(steps, values_SP.mean(axis=0), color=look.colour, linestyle=look.dashes, label=label)
    if len(curves) > 1:
        axes.fill_between(
            steps,
            values_SP.min(axis=0),
            values_SP.max(axis=0),
            color=look.colour,
            alpha=0.18,
            linewidth=0,
        )


def _is_positive_and_wide(axes: Axes) -> bool:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    values = values[np.isfinite(values)]
    return len(values) > 0 and values.min() > 0 and values.max() > 20 * values.min()
