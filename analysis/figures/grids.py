"""A metric over two factors as a heat map: alpha and rank, learning rate and rank, format and block size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis.figures.cells import (
    Cell,
    axis_label,
    cells_of,
    chosen,
    failures,
    lower_is_better,
    seed_counts,
)
from analysis.figures.factors import Factor, levels, printed
from analysis.figures.over import sharing_text, stem_of
from analysis.figures.style import (
    COLOUR_MAP,
    GREY,
    Drawing,
    Width,
    figure_style,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.frame import Row
from harness.records.metrics import METRICS, format_value

MAX_LEVELS = 12
LABELS_INCHES = 0.75
"""About what the labels of the vertical axis take."""
GLYPH_WIDTH = 0.66
"""Width of a digit in sizes of the font, with some air."""
LIGHT_TEXT_BELOW = 0.55
"""Share of the colour scale below which a square is too dark for black text."""


def heat_map(
    rows: Sequence[Row],
    *,
    across: Factor,
    down: Factor,
    metric: str,
    width: Width = Width.one_column,
) -> Drawing:
    """Draw the mean of a metric at each pair of levels, its number in the square, the best one framed.

    Not drawn unless both factors have at least two levels (and at most 12), with more than half of the
    squares measured.
    """
    name = f"{stem_of(metric)}_{_leaf(down)}_by_{_leaf(across)}"
    title = f"{METRICS[metric].label} by {down.label} and {across.label}"
    best, at_most = chosen(
        cells_of(rows), metric, lambda c: (repr(c.setting(down)), repr(c.setting(across)))
    )
    if not best:
        return not_drawn(name, title, f"no completed run measured {metric}")
    measured = [cell.rows[0] for cell in best.values()]
    columns, lines = levels(across, measured), levels(down, measured)
    for factor, found in ((across, columns), (down, lines)):
        if not 2 <= len(found) <= MAX_LEVELS:
            return not_drawn(
                name, title, f"{factor.name} has {len(found)} levels; a map shows 2 to {MAX_LEVELS}"
            )
    if len(best) <= len(columns) * len(lines) / 2:
        squares = len(columns) * len(lines)
        return not_drawn(name, title, f"only {len(best)} of {squares} squares were measured")
    with figure_style():
        figure, axes = new_figure(width, 0.9 + 0.32 * len(lines))
        longest = max(len(format_value(metric, cell.mean(metric))) for cell in best.values())
        points = 72 * (width.value - LABELS_INCHES) / len(columns)
        size = min(6.5, points / (GLYPH_WIDTH * longest))
        _squares(axes, best, lines, columns, metric, size)
        axes.set_xticks(range(len(columns)), [printed(level) for level in columns])
        axes.set_yticks(range(len(lines)), [printed(level) for level in lines])
        if max(len(printed(level)) for level in columns) > 7:
            axes.tick_params(axis="x", rotation=30)
        axes.set_xlabel(across.label)
        axes.set_ylabel(down.label)
    kept = list(best.values())
    shared = sharing_text(rows, kept, at_most, "square", across, down)
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            f"{axis_label(metric)}: mean over seeds, {seed_counts(kept, metric)}; the frame marks the best "
            "mean, which others may equal within their intervals (see the table).",
            shared,
            failures(rows),
        ),
        figure=figure,
        run_ids=tuple(run_id for cell in kept for run_id in cell.run_ids()),
    )


def _squares(
    axes: Axes,
    best: dict[Any, Cell],
    lines: Sequence[Any],
    columns: Sequence[Any],
    metric: str,
    size: float,
) -> None:
    values_LC = np.full((len(lines), len(columns)), np.nan)  # lines by columns
    for line, down in enumerate(lines):
        for column, across in enumerate(columns):
            cell = best.get((repr(down), repr(across)))
            mean = cell.mean(metric) if cell else None
            values_LC[line, column] = np.nan if mean is None else mean
    low, high = float(np.nanmin(values_LC)), float(np.nanmax(values_LC))
    scale = Normalize(low, high if high > low else low + 1.0)
    colours = f"{COLOUR_MAP}_r" if lower_is_better(metric) else COLOUR_MAP  # light is better
    axes.imshow(values_LC, cmap=colours, norm=scale, aspect="auto", origin="lower")
    axes.grid(visible=False)
    target = low if lower_is_better(metric) else high
    for line in range(len(lines)):
        for column in range(len(columns)):
            _square(axes, line, column, values_LC[line, column], metric, scale, target, size)


def _square(
    axes: Axes,
    line: int,
    column: int,
    value: float,
    metric: str,
    scale: Normalize,
    target: float,
    size: float,
) -> None:
    if np.isnan(value):
        axes.text(column, line, "—", ha="center", va="center", color=GREY, fontsize=7)
        return
    share = float(scale(value))
    lightness = 1 - share if lower_is_better(metric) else share
    axes.text(
        column,
        line,
        format_value(metric, value),
        ha="center",
        va="center",
        fontsize=size,
        color="white" if lightness < LIGHT_TEXT_BELOW else "black",
        weight="bold" if value == target else "normal",
    )
    if value == target:
        corner = (column - 0.47, line - 0.44)
        axes.add_patch(_frame(corner))


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 0.94, 0.88, fill=False, edgecolor="black", linewidth=1.4)


def _leaf(factor: Factor) -> str:
    return factor.name.rpartition(".")[2]
