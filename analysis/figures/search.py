"""A search as it went: every trial across its axes, and what decided over the best of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from analysis.figures.cells import axis_label
from analysis.figures.over import stem_of
from analysis.figures.style import (
    COLOUR_MAP,
    COLOURS,
    GREY,
    Drawing,
    Width,
    figure_style,
    legend_above,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.printing import bytes_unit
from harness.records.metrics import METRICS, Direction

MIN_TRIALS = 4
TICK_DISTANCE = 0.045
"""Share of an axis' height below which two labels would overlap."""
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}

RATIO_OF_LOGARITHMIC = 20.0
"""An axis of numbers whose ends lie further apart than this is drawn by ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPoint:
    """One trial of a search: what it tried and what came of it."""

    point: Mapping[str, str]
    """Axis -> the value as spelt; an axis that did not apply is absent."""
    value: float | None
    """The objective; None where it was pruned or failed, infinite where it diverged or did not fit."""


def trial_points(state: Mapping[str, Any], objective: str) -> list[TrialPoint]:
    """Return a sweep's trials, from its state, with their values of one objective."""
    place = list(state["objectives"]).index(objective)
    return [
        TrialPoint(
            point=trial["point"],
            value=None if trial["values"] is None else float(trial["values"][place]),
        )
        for trial in state["trials"]
    ]


def parallel_coordinates(
    trials: Sequence[TrialPoint], *, metric: str, width: Width = Width.two_columns
) -> Drawing:
    """Draw a line for each trial across the axes of the space, the better the darker and on top.

    Trials without a finite value (pruned, failed, diverged) are grey. Not drawn with fewer than two axes
    or four finished trials.
    """
    name, title = f"trials_{stem_of(metric)}", f"The search's trials by {METRICS[metric].label}"
    finite = [trial for trial in trials if _is_finite(trial)]
    axes_names = list(dict.fromkeys(key for trial in trials for key in trial.point))
    if len(axes_names) < 2:
        return not_drawn(name, title, f"a search over {len(axes_names)} axes has no lines to draw")
    if len(finite) < MIN_TRIALS:
        return not_drawn(name, title, f"{len(finite)} finished trials; it takes {MIN_TRIALS}")
    sign = 1.0 if METRICS[metric].direction is Direction.minimize else -1.0
    ranked = sorted(finite, key=lambda trial: -sign * _value(trial))  # the best last, on top
    size, unit = _shown_in(metric, max(abs(_value(trial)) for trial in ranked))
    values = [_value(trial) / size for trial in ranked]
    scale = Normalize(min(values), max(values))
    colours = colormaps[COLOUR_MAP if sign > 0 else f"{COLOUR_MAP}_r"]
    columns = [_Column(key, [trial.point.get(key) for trial in trials]) for key in axes_names]
    with figure_style():
        figure, axes = new_figure(width, 3.0)
        others = [trial for trial in trials if not _is_finite(trial)]
        jitter = np.random.default_rng(0).uniform(-0.012, 0.012, len(trials))
        paths = [
            [(place, c.height(trial.point.get(c.key)) + shift) for place, c in enumerate(columns)]
            for trial, shift in zip([*others, *ranked], jitter, strict=True)
        ]
        faint, strong = paths[: len(others)], paths[len(others) :]
        axes.add_collection(LineCollection(faint, colors=GREY, linewidths=0.4, alpha=0.4))
        axes.add_collection(
            LineCollection(strong, colors=colours(scale(values)), linewidths=0.9, alpha=0.85)
        )
        axes.set_ylim(-0.05, 1.05)
        for place, column in enumerate(columns):
            axes.axvline(place, color="black", linewidth=0.6)
            for height, text in column.ticks():
                axes.text(place + 0.02, height, text, fontsize=6, va="center", bbox=_BEHIND)
        axes.set_xticks(range(len(columns)), axes_names)
        if width is Width.one_column:
            axes.tick_params(axis="x", rotation=25)
        axes.set_yticks([])
        axes.set_xlim(-0.05, len(columns) - 0.75)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        figure.colorbar(ScalarMappable(scale, colours), ax=axes, label=axis_label(metric) + unit)
    lost = len(trials) - len(finite)
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            f"{len(finite)} trials of the search, not results: they chose what was confirmed.",
            f"{lost} more, in grey, were pruned, failed, or had no finite value." if lost else "",
        ),
        figure=figure,
        is_wide=True,
    )


def importance_bars(
    shares: Mapping[str, Mapping[str, float]], *, width: Width = Width.one_column
) -> Drawing:
    """Draw each axis' share of what decides over the best trials, a group of bars for each objective.

    `shares` are objective -> axis -> share, as `analysis.statistics.importance` returns them.
    """
    name, title = "importance", "Importance of the search's axes"
    keys = list(dict.fromkeys(key for of_metric in shares.values() for key in of_metric))
    if len(keys) < 2:
        return not_drawn(name, title, f"{len(keys)} axes varied: there is nothing to compare")
    first = next(iter(shares.values()))
    keys.sort(key=lambda key: first.get(key, 0.0))
    thick = 0.8 / len(shares)
    with figure_style():
        figure, axes = new_figure(width, 0.9 + 0.28 * len(keys))
        for index, (metric, of_metric) in enumerate(shares.items()):
            axes.barh(
                [place - 0.4 + thick * (index + 0.5) for place in range(len(keys))],
                [of_metric.get(key, 0.0) for key in keys],
                height=thick,
                color=COLOURS[index % len(COLOURS)],
                label=METRICS[metric].label if metric in METRICS else metric,
            )
        axes.set_yticks(range(len(keys)), keys)
        axes.set_xlabel("share of importance (PED-ANOVA)")
        axes.grid(visible=False, axis="y")
        if len(shares) > 1:
            legend_above(figure, axes)
    return Drawing(
        name=name,
        title=title,
        caption=(
            "PED-ANOVA (Watanabe et al. 2023) over the search's completed trials: how much each axis "
            "tells the best tenth from the rest. Shares sum to 1; they say nothing about direction."
        ),
        figure=figure,
    )


def _shown_in(metric: str, largest: float) -> tuple[float, str]:
    """Return the size that a colour bar's numbers are counted in, and how its label says so."""
    if METRICS[metric].unit != "bytes":
        return 1.0, ""
    size, unit = bytes_unit(largest)
    return size, f" ({unit})"


def _is_finite(trial: TrialPoint) -> bool:
    return trial.value is not None and math.isfinite(trial.value)


def _value(trial: TrialPoint) -> float:
    assert trial.value is not None
    return trial.value


class _Column:
    """One axis of the space as a vertical scale from 0 to 1."""

    def __init__(self, key: str, spelled: Sequence[str | None]) -> None:
        self.key = key
        present = [text for text in spelled if text is not None]
        self._numbers = {text: _number(text) for text in present}
        numbers = [number for number in self._numbers.values() if number is not None]
        self._is_numeric = len(numbers) == len(self._numbers)
        self._names = sorted(set(present))
        if self._is_numeric:
            self._is_logarithmic = (
                min(numbers) > 0 and max(numbers) > RATIO_OF_LOGARITHMIC * min(numbers)
            ) or self._doubles(sorted(set(numbers)))
            ends = [self._scaled(number) for number in numbers]
            self._low, self._span = min(ends), (max(ends) - min(ends)) or 1.0

    @staticmethod
    def _doubles(numbers: Sequence[float]) -> bool:
        """Whether neighbours differ by one ratio, as ranks mostly do."""
        if len(numbers) < 3 or numbers[0] <= 0:
            return False
        ratios = [b / a for a, b in pairwise(numbers)]
        return max(ratios) - min(ratios) < 1e-6

    def _scaled(self, number: float) -> float:
        return math.log(number) if self._is_logarithmic else number

    def height(self, text: str | None) -> float:
        """Return where a value stands; NaN, a gap in the line, where the axis did not apply."""
        if text is None:
            return math.nan
        if not self._is_numeric:
            return self._names.index(text) / max(1, len(self._names) - 1)
        number = self._numbers[text]
        assert number is not None
        return (self._scaled(number) - self._low) / self._span

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights and labels: every choice, or the ends of many numbers."""
        texts = self._names
        if self._is_numeric:
            texts = sorted(self._numbers, key=lambda text: self._numbers[text] or 0.0)
            if len(texts) > 8:
                texts = [texts[0], texts[len(texts) // 2], texts[-1]]
        kept: list[str] = []
        for text in texts:  # those that would stand on each other are left out
            if not kept or abs(self.height(text) - self.height(kept[-1])) >= TICK_DISTANCE:
                kept.append(text)
        return [(self.height(text), _short(text)) for text in kept]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(text: str) -> str:
    number = _number(text)
    return f"{number:.3g}" if number is not None else text.strip("[]")[:18]
