"""Memory: its parts as stacked bars, and what was predicted beside what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis.figures.cells import Cell, cells_of, counts
from analysis.figures.factors import Factor, levels, printed, varying_factors
from analysis.figures.style import (
    COLOURS,
    HATCHES,
    MARKERS,
    Drawing,
    Width,
    figure_style,
    legend_above,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.frame import PREDICTED, Row
from analysis.printing import bytes_unit
from harness.plan.probe import costs_nothing
from harness.records.metrics import MEMORY_PARTS, METRICS, memory_part_name

MAX_BARS = 16
PLAIN = ("format", "lora.method", "lora.target_modules")
"""Factors whose values say what they are."""


def memory_by_parts(rows: Sequence[Row], *, width: Width = Width.one_column) -> Drawing:
    """Draw the bytes of each part of the peak, a bar for each configuration.

    Settings that cost nothing (learning rate, alpha, seed) are not shown. Activations count only where a
    run or a probe had a process of its own. Not drawn without parts, or with more than 16 different bars.
    """
    name, title = "memory_parts", "Memory by part"
    bars = _bars(cells_of(rows))
    if not bars:
        return not_drawn(name, title, "no completed run measured the parts of its memory")
    if len(bars) > MAX_BARS:
        return not_drawn(name, title, f"{len(bars)} different bars; a figure shows {MAX_BARS}")
    with figure_style():
        figure, axes = new_figure(width, 1.0 + 0.22 * len(bars))
        draw_parts(axes, bars)
        figure.legend(loc="outside lower center", ncols=3 if width is Width.two_columns else 2)
    alone = sum("activation" in parts for parts in bars.values())
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            "Exact bytes of the tensors of one run.",
            ""
            if alone == len(bars)
            else f"Activations are missing in {len(bars) - alone} of {len(bars)} bars, where no run or "
            "probe had a process of its own.",
        ),
        figure=figure,
        run_ids=tuple(row["run_id"] for row in rows),
    )


def draw_parts(axes: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    """Draw label -> part -> bytes as stacked bars, the first on top."""
    scale, unit = bytes_unit(max(sum(parts.values()) for parts in bars.values()))
    left = [0.0] * len(bars)
    shown = [part for part in MEMORY_PARTS if any(parts.get(part) for parts in bars.values())]
    for index, part in enumerate(shown):
        lengths = [parts.get(part, 0.0) / scale for parts in bars.values()]
        axes.barh(
            range(len(bars)),
            lengths,
            left=left,
            height=0.72,
            color=COLOURS[index % len(COLOURS)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            linewidth=0.3,
            label=METRICS[memory_part_name(part)].label,
        )
        left = [a + b for a, b in zip(left, lengths, strict=True)]
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel(f"memory ({unit})")
    axes.grid(visible=False, axis="y")


def predicted_against_measured(rows: Sequence[Row], *, width: Width = Width.one_column) -> Drawing:
    """Draw measured over predicted memory, a point for each run that has both, with the line of equality.

    A prediction stands in a row under `predicted.` and the metric's name.
    """
    metric = "memory/peak_bytes"
    name, title = "memory_predicted", f"Predicted and measured {METRICS[metric].label}"
    pairs = [
        (row[PREDICTED + metric], row[metric], row["run_id"])
        for row in rows
        if row.get(PREDICTED + metric) is not None
        and row.get(metric) is not None
        and counts(row, metric)
    ]
    if not pairs:
        return not_drawn(name, title, f"no run has both a predicted and a measured {metric}")
    scale, unit = bytes_unit(max(max(predicted, measured) for predicted, measured, _ in pairs))
    with figure_style():
        figure, axes = new_figure(width, width.value if width is Width.one_column else 3.4)
        predicted = [pair[0] / scale for pair in pairs]
        measured = [pair[1] / scale for pair in pairs]
        ends = [min(predicted + measured) * 0.95, max(predicted + measured) * 1.05]
        axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", label="equal")
        axes.plot(predicted, measured, MARKERS[0], color=COLOURS[0], alpha=0.7)
        axes.set_xlabel(f"predicted ({unit})")
        axes.set_ylabel(f"measured ({unit})")
        legend_above(figure, axes)
    errors = sorted(abs(p - m) / m for p, m, _ in pairs)
    return Drawing(
        name=name,
        title=title,
        caption=(
            f"{len(pairs)} runs or probes. Median absolute error {errors[len(errors) // 2]:.1%} of the "
            f"measured value, largest {errors[-1]:.1%}."
        ),
        figure=figure,
        run_ids=tuple(run_id for _, _, run_id in pairs),
    )


def _bars(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return label -> part -> bytes; cells that differ only in what costs nothing share a bar."""
    bars: dict[str, dict[str, float]] = {}
    for label, cell in labelled_by_cost([cell for cell in cells if parts_of(cell)]):
        parts = parts_of(cell)
        if len(parts) > len(bars.get(label, ())):  # one of them may have had a process of its own
            bars[label] = parts
    return bars


def labelled_by_cost(cells: Sequence[Cell]) -> list[tuple[str, Cell]]:
    """Return cells in the order of their settings, each labelled by those that a step's cost depends on."""
    rows = [cell.rows[0] for cell in cells]
    factors = [f for f in varying_factors(rows) if not all(map(costs_nothing, f.keys))]
    rank = {f.name: list(map(repr, levels(f, rows))) for f in factors}

    def place(cell: Cell) -> list[int]:
        return [rank[f.name].index(repr(cell.setting(f))) for f in factors]

    def label(cell: Cell) -> str:
        # A setting that a cell lacks is not named, nor is plain LoRA, which the others are beside.
        given = [f for f in factors if cell.setting(f) not in (None, "lora")]
        return ", ".join(dict.fromkeys(setting_text(f, cell) for f in given)) or "every run"

    return [(label(cell), cell) for cell in sorted(cells, key=place)]


def setting_text(factor: Factor, cell: Cell) -> str:
    """Print a cell's setting as part of a label: `nf4`, `r=8`, `lr=0.005`."""
    text = printed(cell.setting(factor))
    short: dict[str, Any] = {"lora.rank": f"r={text}"} | dict.fromkeys(PLAIN, text)
    return short.get(factor.name, f"{factor.name.rpartition('.')[2]}={text}")


def parts_of(cell: Cell) -> dict[str, float]:
    """Return the bytes of each part of a cell's memory that was measured."""
    found = {part: cell.mean(memory_part_name(part)) for part in MEMORY_PARTS}
    return {part: value for part, value in found.items() if value is not None}
