"""What configurations cost alone: memory by part, throughput, time, energy; and runs' series over steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.cells import Cell, axis_label, best_first, cells_of
from analysis.figures.factors import varying_factors
from analysis.figures.learning import smooth
from analysis.figures.memory import draw_parts, labelled_by_cost, parts_of, setting_text
from analysis.figures.style import (
    COLOURS,
    HATCHES,
    Drawing,
    Width,
    figure_style,
    line_look,
    not_drawn,
    sentences,
)
from analysis.frame import Row
from analysis.histories import History
from analysis.printing import bytes_unit
from harness.records.metrics import METRICS

MAX_BARS = 16
MAX_RUNS = 6
THROUGHPUT = "throughput/input_tokens_per_second"
STEP_MS, STEP_JOULES = "throughput/step_ms", "device/step_joules"
STEP_SERIES = (
    "train/loss",
    THROUGHPUT,
    "memory/allocated_bytes",
    "memory/peak_bytes",
    "cohort/runs",
)
"""What `series_over_steps` reads of a run's rows."""


def memory_beside_throughput(rows: Sequence[Row], *, width: Width = Width.one_column) -> Drawing:
    """Draw memory by part and, beside it, tokens per second, a bar for each configuration.

    Both of runs or probes alone. Not drawn where none measured its throughput, or with more than 16 bars.
    """
    name, title = "memory_beside_throughput", "Memory by part beside throughput"
    bars = _bars(rows, THROUGHPUT)
    if not bars:
        return not_drawn(name, title, "no run or probe alone measured its throughput")
    if len(bars) > MAX_BARS:
        return not_drawn(name, title, f"{len(bars)} different bars; a figure shows {MAX_BARS}")
    with figure_style():
        figure, (left, right) = _side_by_side(width, len(bars))
        draw_parts(left, {label: parts_of(cell) for label, cell in bars.items()})
        _bar(right, list(bars.values()), THROUGHPUT, 0)
        columns = 3 if width is Width.two_columns else 2
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return Drawing(
        name=name,
        title=title,
        caption="Of a run or a probe alone: exact bytes of its tensors, and all positions per second after "
        "the warm-up.",
        figure=figure,
        run_ids=tuple(run_id for cell in bars.values() for run_id in cell.run_ids()),
    )


def time_and_energy(rows: Sequence[Row], *, width: Width = Width.one_column) -> Drawing:
    """Draw a step's time and, where a GPU told it, its energy: a bar for each configuration alone."""
    name, title = "time_and_energy", "Time and energy of a step"
    bars = _bars(rows, STEP_MS)
    if not bars:
        return not_drawn(name, title, "no run or probe alone measured its step time")
    if len(bars) > MAX_BARS:
        return not_drawn(name, title, f"{len(bars)} different bars; a figure shows {MAX_BARS}")
    cells = list(bars.values())
    told = [cell for cell in cells if cell.mean(STEP_JOULES) is not None]
    with figure_style():
        if told:
            figure, (left, right) = _side_by_side(width, len(bars))
            _bar(right, cells, STEP_JOULES, 1)
        else:
            figure = Figure(figsize=(width.value, 0.9 + 0.22 * len(bars)), layout="constrained")
            left = figure.add_subplot()
        _bar(left, cells, STEP_MS, 0)
        left.set_yticks(range(len(bars)), list(bars))
        left.invert_yaxis()
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            "One optimizer step of a run or a probe alone: median wall-clock after the warm-up"
            + (", and the GPU's energy (NVML)." if told else "."),
            "" if told else "No device told its energy.",
        ),
        figure=figure,
        run_ids=tuple(run_id for cell in cells for run_id in cell.run_ids()),
    )


def series_over_steps(
    rows: Sequence[Row],
    histories: Mapping[str, History],
    *,
    objective: str,
    width: Width = Width.one_column,
) -> Drawing:
    """Draw loss, tokens per second and memory over the steps of up to six runs, those of the best cells."""
    name, title = "series_over_steps", "Loss, throughput and memory over steps"
    ids = [row["run_id"] for row in _shown(rows, objective)]
    runs = [(each, histories[each].curves) for each in ids if each in histories]
    runs = [(run_id, curves) for run_id, curves in runs if THROUGHPUT in curves]
    labels = _labels(rows, objective)
    if not runs:
        return not_drawn(name, title, "none of the best runs has a series of its throughput")
    memory = (
        "memory/peak_bytes" if all("memory/peak_bytes" in c for _, c in runs) else STEP_SERIES[2]
    )
    largest = max(float(curves[memory][1].max()) for _, curves in runs if memory in curves)
    scale, unit = bytes_unit(largest)
    with figure_style():
        figure = Figure(figsize=(width.value, 4.6), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(3, 1, sharex=True)
        for index, (run_id, curves) in enumerate(runs):
            look = line_look(index)
            for axes, metric, size in zip(
                panels, ("train/loss", THROUGHPUT, memory), (1.0, 1.0, scale), strict=True
            ):
                if metric in curves:
                    steps, values = smooth(curves[metric])
                    axes.plot(
                        steps,
                        values / size,
                        color=look.colour,
                        linestyle=look.dashes,
                        label=labels[run_id] if axes is panels[0] else None,
                    )
        panels[0].set_ylabel(axis_label("train/loss"))
        panels[1].set_ylabel(axis_label(THROUGHPUT))
        panels[1].set_ylim(bottom=0)
        panels[2].set_ylabel(f"{METRICS[memory].label} ({unit})")
        panels[2].set_ylim(bottom=0)
        panels[2].set_xlabel("optimizer step")
        if len(runs) > 1:
            figure.legend(loc="outside upper center", ncols=2)
    sharing = max(float(np.max(c["cohort/runs"][1])) for _, c in runs if "cohort/runs" in c)
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            f"A line for each of {len(runs)} runs.",
            f"Up to {sharing:.0f} runs shared a pass: throughput is each run's own positions over the time "
            "of its passes, memory is the process's; no cost of a configuration can be read off here."
            if sharing > 1
            else "Each had its passes to itself.",
        ),
        figure=figure,
        run_ids=tuple(run_id for run_id, _ in runs),
    )


def runs_with_series(rows: Sequence[Row], objective: str) -> list[str]:
    """Return the ids of the runs whose series are drawn."""
    return [row["run_id"] for row in _shown(rows, objective)]


def _labels(rows: Sequence[Row], objective: str) -> dict[str, str]:
    """Return run id -> the settings in which the drawn runs differ, and the seed."""
    shown = _shown(rows, objective)
    factors = varying_factors(shown)
    found = {}
    for cell in cells_of(shown):
        words = [setting_text(factor, cell) for factor in factors]
        found |= {r["run_id"]: ", ".join([*words, f"seed {r.get('seed')}"]) for r in cell.rows}
    return found


def _shown(rows: Sequence[Row], objective: str) -> list[Row]:
    cells = best_first(cells_of(rows), objective)
    return [row for cell in cells for row in cell.rows][:MAX_RUNS]


def _bars(rows: Sequence[Row], metric: str) -> dict[str, Cell]:
    """Return label -> cell of each configuration that was measured alone, in the order of its settings."""
    cells = [cell for cell in cells_of(rows) if cell.mean(metric) is not None]
    bars: dict[str, Cell] = {}
    for label, cell in labelled_by_cost(cells):
        bars.setdefault(label, cell)
    return bars


def _side_by_side(width: Width, count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width.value, 1.2 + 0.22 * count), layout="constrained")
    return figure, figure.subplots(1, 2, sharey=True)


def _bar(axes: Axes, cells: Sequence[Cell], metric: str, look: int) -> None:
    values = [cell.mean(metric) for cell in cells]
    axes.barh(
        range(len(cells)),
        [0.0 if value is None else value for value in values],
        height=0.72,
        color=COLOURS[look],
        hatch=HATCHES[look],
        edgecolor="white",
        linewidth=0.3,
    )
    axes.set_xlabel(axis_label(metric))
    axes.grid(visible=False, axis="y")
