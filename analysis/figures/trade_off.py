"""Quality against memory, or against forgetting: what a better score costs, and the cells that none beats in
both."""

from collections.abc import Sequence
from typing import Any

from analysis.figures.cells import Cell, axis_label, cells_of, failures, lower_is_better
from analysis.figures.factors import FORMAT, Factor, levels, printed, varying_factors
from analysis.figures.over import error_bars, stem_of
from analysis.figures.style import (
    COLOURS,
    GREY,
    MARKERS,
    Drawing,
    Width,
    figure_style,
    legend_above,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.frame import Row
from analysis.printing import bytes_unit
from analysis.statistics import pareto_front
from harness.records.metrics import MEMORY_PARTS, METRICS, memory_part_name

MAX_GROUPS = 8
PEAK = "memory/peak_bytes"
FORGETTING = "eval/forgetting_bits_per_byte"
EXACT_PARTS = tuple(part for part in MEMORY_PARTS if part != "activation")


def quality_against_memory(
    rows: Sequence[Row], *, metric: str, width: Width = Width.one_column
) -> Drawing:
    """Draw each cell's mean quality over its memory, and the Pareto front through the best.

    Memory is the peak that a run alone or a probe measured; where no cell has one, the exact bytes of
    base, constants, adapter, gradients and optimizer, and the label says so. Not drawn with fewer than
    two different memories.
    """
    name = f"{stem_of(metric)}_against_memory"
    title = f"{METRICS[metric].label} against memory"
    cells = cells_of(rows)
    points, label = _points(cells, metric)
    if len({memory for _, memory, _ in points}) < 2:
        return not_drawn(name, title, "fewer than two cells with a quality and different memories")
    scale, unit = bytes_unit(max(memory for _, memory, _ in points))
    return _drawing(
        name,
        title,
        rows,
        points,
        metric=metric,
        label=f"{label} ({unit}) ↓",
        scale=scale,
        width=width,
    )


def learning_against_forgetting(
    rows: Sequence[Row], *, metric: str, width: Width = Width.one_column
) -> Drawing:
    """Draw what each cell has learnt over what it has forgotten of its base's domain (figure 6 of LoRA Learns
    Less and Forgets Less, Biderman et al. 2024), and the Pareto front through the best.

    Not drawn with fewer than two cells that have measured both.
    """
    name = f"{stem_of(metric)}_against_forgetting"
    title = f"{METRICS[metric].label} against forgetting"
    points = [
        (cell, forgotten, learnt)
        for cell in cells_of(rows)
        if (forgotten := cell.mean(FORGETTING)) is not None
        and (learnt := cell.mean(metric)) is not None
    ]
    if len(points) < 2:
        return not_drawn(name, title, f"fewer than two cells have measured {FORGETTING}")
    label = axis_label(FORGETTING)
    return _drawing(name, title, rows, points, metric=metric, label=label, width=width)


def _drawing(
    name: str,
    title: str,
    rows: Sequence[Row],
    points: "Sequence[Point]",
    *,
    metric: str,
    label: str,
    width: Width,
    scale: float | None = None,
) -> Drawing:
    """Draw cells over what they cost; `scale`: of costs in bytes, which may lie far apart."""
    by = _colour_factor([cell for cell, _, _ in points])
    with figure_style():
        figure, axes = new_figure(width, 3.0)
        front = _scatter(axes, points, metric, by, scale or 1.0)
        if scale is None:
            axes.axvline(0.0, color=GREY, linewidth=0.6)
        elif max(m for _, m, _ in points) > 4 * min(m for _, m, _ in points):
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel(axis_label(metric))
        legend_above(figure, axes, by.label if by else None)
    worse = "Right of the line the base's domain is predicted worse than before training."
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            f"{len(points)} cells, {len(front)} of them on the front of the means; bars are 95 % t "
            "intervals over seeds (none where n=1).",
            worse if scale is None else "",
            failures(rows),
        ),
        figure=figure,
        run_ids=tuple(run_id for cell, _, _ in points for run_id in cell.run_ids()),
    )


def _scatter(
    axes: Any, points: "Sequence[Point]", metric: str, by: Factor | None, scale: float
) -> "list[Point]":
    """Draw cells with their intervals over seeds, coloured by a factor, and return the front through them."""
    first_rows = [cell.rows[0] for cell, _, _ in points]
    for index, level in enumerate(levels(by, first_rows) if by else [None]):
        group = [p for p in points if by is None or repr(p[0].setting(by)) == repr(level)]
        axes.errorbar(
            [cost / scale for _, cost, _ in group],
            [quality for _, _, quality in group],
            yerr=error_bars([cell.interval(metric) for cell, _, _ in group]),
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            elinewidth=0.6,
            label=printed(level) if by else None,
        )
    front = _front(points, metric)
    axes.step(
        [cost / scale for _, cost, _ in front],
        [quality for _, _, quality in front],
        where="post",
        color="black",
        linewidth=0.8,
        linestyle="--",
        label="Pareto front",
    )
    return front


Point = tuple[Cell, float, float]
"""A cell, what it costs (bytes, or what it has forgotten), its quality."""


def _points(cells: Sequence[Cell], metric: str) -> tuple[list[Point], str]:
    for memory_of, label in ((_peak, METRICS[PEAK].label), (_exact, "memory without activations")):
        found = [
            (cell, memory, quality)
            for cell in cells
            if (memory := memory_of(cell)) is not None
            and (quality := cell.mean(metric)) is not None
        ]
        if len(found) > 1:
            return found, label
    return [], ""


def _peak(cell: Cell) -> float | None:
    return cell.mean(PEAK)


def _exact(cell: Cell) -> float | None:
    parts = [cell.mean(memory_part_name(part)) for part in EXACT_PARTS]
    found = [part for part in parts if part is not None]
    return sum(found) if len(found) == len(parts) else None


def _front(points: Sequence[Point], metric: str) -> list[Point]:
    directions = ["minimize", "minimize" if lower_is_better(metric) else "maximize"]
    kept = pareto_front([(memory, quality) for _, memory, quality in points], directions)
    return sorted((points[index] for index in kept), key=lambda point: point[1])


def _colour_factor(cells: Sequence[Cell]) -> Factor | None:
    """Return what to colour by: the format where it varies, else the first factor with few levels."""
    rows = [cell.rows[0] for cell in cells]
    varying = varying_factors(rows)
    if FORMAT in varying:
        return FORMAT
    return next((f for f in varying if len(levels(f, rows)) <= MAX_GROUPS), None)
