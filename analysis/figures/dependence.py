"""Partial dependence of the objective on each axis of an adaptive search, a panel for each."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis.figures.cells import axis_label
from analysis.figures.over import stem_of
from analysis.figures.search import TrialPoint
from analysis.figures.style import COLOURS, Drawing, Width, figure_style, not_drawn
from analysis.printing import bytes_unit
from analysis.surrogate import Dependence, partial_dependence
from harness.records.metrics import METRICS

MAX_PANELS = 9
PANEL_HEIGHT = 1.55
MAX_LETTERS = 14


def dependence_panels(
    trials: Sequence[TrialPoint], *, metric: str, width: Width = Width.two_columns
) -> Drawing:
    """Draw what each axis does on average, by a surrogate, with its 95 % intervals.

    Not drawn with too few finished trials: then nothing can be said.
    """
    name = f"dependence_{stem_of(metric)}"
    title = f"What each axis does to {METRICS[metric].label}, by a surrogate"
    finished = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    try:
        found = partial_dependence(
            [trial.point for trial in finished], [trial.value or 0.0 for trial in finished]
        )[:MAX_PANELS]
    except ValueError as error:
        return not_drawn(name, title, str(error))
    size = 1.0
    if METRICS[metric].unit == "bytes":
        size, _ = bytes_unit(max(max(each.mean) for each in found))
    across = 2 if width is Width.one_column else 3
    down = -(-len(found) // across)
    with figure_style():
        figure = Figure(figsize=(width.value, PANEL_HEIGHT * down + 0.2), layout="constrained")
        panels = figure.subplots(down, across, sharey=True, squeeze=False)
        for axes, each in zip(panels.flat, found, strict=False):
            _panel(axes, each, size)
        for axes in list(panels.flat)[len(found) :]:
            axes.set_visible(False)
        figure.supylabel(axis_label(metric), fontsize=8)
    return Drawing(
        name=name,
        title=title,
        caption=(
            f"A Gaussian process over {len(finished)} completed trials: its mean over the trials' other "
            "settings (partial dependence), with 95 % intervals of that mean. Of the search's own numbers: "
            "it says what mattered in this space, not how good a setting is."
        ),
        figure=figure,
        is_wide=True,
    )


def _panel(axes: Axes, each: Dependence, size: float) -> None:
    mean, low, high = ([v / size for v in part] for part in (each.mean, each.low, each.high))
    if each.is_numeric:
        numbers = [float(level) for level in each.levels]
        axes.fill_between(numbers, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(numbers, mean, color=COLOURS[0])
        if each.is_logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            middle = math.sqrt(numbers[0] * numbers[-1])
            axes.set_xticks([numbers[0], middle, numbers[-1]])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        places = range(len(mean))
        spans = [[m - end for m, end in zip(mean, low, strict=True)]]
        spans.append([end - m for m, end in zip(mean, high, strict=True)])
        axes.errorbar(places, mean, yerr=spans, marker="o", linestyle="none", color=COLOURS[0])
        texts = [str(level)[:MAX_LETTERS] for level in each.levels]
        crowded = sum(map(len, texts)) > MAX_LETTERS
        axes.set_xticks(
            places, texts, rotation=35 if crowded else 0, ha="right" if crowded else "center"
        )
        axes.set_xlim(-0.5, len(mean) - 0.5)
    axes.set_xlabel(each.axis, fontsize=7)
