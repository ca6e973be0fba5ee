"""Figures: what is drawn equals hand-made numbers, and what the rows do not support is not drawn."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from scipy import stats

from analysis.figures.cells import SEARCH_VALUE, cells_of
from analysis.figures.choose import quality_figures
from analysis.figures.factors import (
    ALPHA,
    BLOCK_SIZE,
    FORMAT,
    LEARNING_RATE,
    RANK,
    varying_factors,
)
from analysis.figures.grids import heat_map
from analysis.figures.learning import learning_curves, runs_with_curves, smooth
from analysis.figures.memory import memory_by_parts, predicted_against_measured
from analysis.figures.over import MAX_TICKS, metric_over, scale_axis
from analysis.figures.search import TrialPoint, _Column, importance_bars, parallel_coordinates
from analysis.figures.style import (
    Drawing,
    FigureStyle,
    Look,
    Width,
    figure_style,
    fix_layout,
    legend_above,
    line_look,
    svg_text,
    write_figure,
)
from analysis.figures.targets import targets_at_equal_budget
from analysis.figures.trade_off import quality_against_memory
from analysis.histories import History
from harness.records.record import MeasuredIn, RunStatus
from tests.analysis.rows_for_figures import Run, asked, rows

REPOSITORY = Path(__file__).resolve().parents[2]
LOSS = "eval/loss"


def drawn(drawing: Drawing) -> Figure:
    assert drawing.figure is not None, drawing.reason
    return drawing.figure


def lines_of(drawing: Drawing) -> list[tuple[list[float], list[float]]]:
    """Return the points of each line with error bars."""
    (axes,) = drawn(drawing).axes
    found = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        data = container.lines[0]
        found.append((np.asarray(data.get_xdata()).tolist(), np.asarray(data.get_ydata()).tolist()))
    return found


def texts(drawing: Drawing) -> list[str]:
    return [text.get_text() for axes in drawn(drawing).axes for text in axes.texts]


# A metric over a number ---------------------------------------------------------------------------


def test_a_point_is_the_mean_over_seeds_and_its_bar_the_t_interval() -> None:
    losses = {2: (2.0, 3.0, 7.0), 8: (1.0, 1.5, 2.0)}
    runs = [Run(rank=r, seed=s, loss=v) for r, of in losses.items() for s, v in enumerate(of)]
    drawing = metric_over(rows(*runs), over=RANK, metric=LOSS)
    assert lines_of(drawing) == [([2.0, 8.0], [4.0, 1.5])]
    (container,) = drawn(drawing).axes[0].containers
    segments = container.lines[2][0].get_segments()  # pyright: ignore[reportAttributeAccessIssue]
    expected = [stats.t.interval(0.95, 2, np.mean(v), stats.sem(v)) for v in losses.values()]
    np.testing.assert_allclose([segment[:, 1] for segment in segments], expected)
    assert "n=3; bars are 95 % t intervals" in drawing.caption
    assert set(drawing.run_ids) == {run.run_id for run in runs}


def test_one_seed_has_no_bar_and_says_n_1() -> None:
    drawing = metric_over(
        rows(Run(rank=2, loss=2.0), Run(rank=8, loss=1.0)), over=RANK, metric=LOSS
    )
    assert drawing.caption == "One seed a point (n=1), so no intervals."
    (container,) = drawn(drawing).axes[0].containers
    for segment in container.lines[2][0].get_segments():  # pyright: ignore[reportAttributeAccessIssue]
        assert segment[0, 1] == segment[1, 1]


def test_each_format_is_a_line() -> None:
    runs = [
        Run(format=f, rank=r, loss=v)
        for f, of in {"nf4": (2.0, 1.0), "int4": (3.0, 1.5)}.items()
        for r, v in zip((2, 8), of, strict=True)
    ]
    drawing = metric_over(rows(*runs), over=RANK, metric=LOSS, by=FORMAT)
    assert [y for _, y in lines_of(drawing)] == [[3.0, 1.5], [2.0, 1.0]]
    assert drawn(drawing).axes[0].get_legend() is None, "it would hide what is drawn"
    (legend,) = drawn(drawing).legends
    assert [text.get_text() for text in legend.get_texts()] == ["int4", "nf4"]


def test_of_cells_that_share_a_point_the_best_is_drawn_and_the_caption_says_so() -> None:
    runs = rows(
        *(Run(rank=2, lr=lr, loss=v) for lr, v in ((1e-3, 3.0), (1e-2, 2.0))),
        Run(rank=8, lr=1e-3, loss=1.0),
    )
    drawing = metric_over(runs, over=RANK, metric=LOSS)
    assert lines_of(drawing) == [([2.0, 8.0], [2.0, 1.0])]
    assert "Up to 2 cells share a point (they differ in optim.lr)" in drawing.caption
    assert "which flatters it" in drawing.caption
    runs[0][SEARCH_VALUE], runs[1][SEARCH_VALUE], runs[2][SEARCH_VALUE] = 0.5, 0.6, 0.1
    drawing = metric_over(runs, over=RANK, metric=LOSS)  # the search decides, not the numbers shown
    assert lines_of(drawing) == [([2.0, 8.0], [3.0, 1.0])]
    assert "the one that the search found best" in drawing.caption


def test_runs_that_did_not_complete_are_not_averaged_but_counted() -> None:
    runs = [Run(rank=2, loss=2.0), Run(rank=8, loss=1.0)]
    runs += [Run(rank=8, seed=1, loss=9.0, status=RunStatus.diverged)]
    runs += [Run(rank=64, status=RunStatus.out_of_memory)]
    drawing = metric_over(rows(*runs), over=RANK, metric=LOSS)
    assert lines_of(drawing) == [([2.0, 8.0], [2.0, 1.0])]
    assert "Not drawn: 1 diverged, 1 out of memory." in drawing.caption


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([Run(rank=2), Run(rank=8)], "no completed run measured eval/loss"),
        ([Run(rank=8, seed=s, loss=1.0) for s in (0, 1)], "lora.rank has one value, 8"),
        (
            [Run(format=f"f{i}", rank=r, loss=1.0) for i in range(9) for r in (2, 8)],
            "format has 9 levels, a figure shows 8",
        ),
        (
            [Run(format=f, rank=r, loss=1.0) for f, r in (("a", 1), ("b", 2), ("c", 4))],
            "only 3 of 9 points were measured",
        ),
    ],
)
def test_what_the_rows_do_not_support_is_not_drawn(runs: list[Run], reason: str) -> None:
    drawing = metric_over(rows(*runs), over=RANK, metric=LOSS, by=FORMAT)
    assert drawing.figure is None
    assert drawing.reason == reason


@pytest.mark.parametrize(
    ("factor", "numbers", "scale"),
    [
        (RANK, [2.0, 8.0, 64.0], "log"),
        (LEARNING_RATE, [1e-4, 1e-3], "log"),
        (RANK, [0.0, 8.0, 64.0], "linear"),  # full fine-tuning has no rank: 0 has no logarithm
        (ALPHA, [-1.0, 1.0], "linear"),
        (replace(RANK, is_logarithmic=False), [2.0, 8.0], "linear"),
    ],
)
def test_a_factor_of_ratios_has_a_logarithmic_axis_where_all_numbers_have_logarithms(
    factor, numbers, scale
) -> None:
    axes = Figure().add_subplot()
    scale_axis(axes, numbers, factor)
    assert axes.get_xscale() == scale
    assert axes.get_xlabel() == factor.label
    assert np.asarray(axes.get_xticks()).tolist() == numbers
    assert axes.xaxis.get_major_formatter()(0.0123456, 0) == "0.0123"  # pyright: ignore[reportCallIssue]


def test_many_numbers_are_not_all_ticks() -> None:
    for count, own in ((MAX_TICKS, True), (MAX_TICKS + 1, False)):
        axes, numbers = Figure().add_subplot(), [1.0 + n for n in range(count)]
        scale_axis(axes, numbers, replace(RANK, is_logarithmic=False))
        assert (np.asarray(axes.get_xticks()).tolist() == numbers) is own


# Maps ---------------------------------------------------------------------------------------------


def test_a_map_prints_the_means_and_a_dash_where_nothing_was_measured() -> None:
    runs = [
        Run(rank=r, alpha=a, seed=s, loss=v + s)
        for (r, a), v in {(2, 4.0): 3.0, (2, 16.0): 2.0, (8, 4.0): 1.0}.items()
        for s in (0, 1)
    ]
    drawing = heat_map(rows(*runs), across=RANK, down=ALPHA, metric=LOSS)
    assert texts(drawing) == ["3.5000", "1.5000", "2.5000", "—"]
    (axes,) = drawn(drawing).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "16"]
    (frame,) = axes.patches  # around the best, 1.5: column 1, line 0
    assert (round(frame.get_x()), round(frame.get_y())) == (1, 0)  # pyright: ignore[reportAttributeAccessIssue]


def test_alpha_follows_from_its_ratio_and_is_no_factor_where_only_the_rank_was_chosen() -> None:
    at_ratio = rows(Run(rank=2, loss=1.0), Run(rank=8, loss=1.0))
    assert [ALPHA.value(row) for row in at_ratio] == [4.0, 16.0]
    assert varying_factors(at_ratio) == [RANK]
    given = rows(Run(alpha=4.0, loss=1.0), Run(alpha=16.0, loss=1.0))
    assert varying_factors(given) == [ALPHA]


def test_a_map_that_is_mostly_empty_is_not_drawn() -> None:
    runs = [Run(format=f, block=b, loss=1.0) for f, b in (("nf4", 32), ("int4", 64))]
    drawing = heat_map(rows(*runs), across=BLOCK_SIZE, down=FORMAT, metric=LOSS)
    assert drawing.reason == "only 2 of 4 squares were measured"


# Targets ------------------------------------------------------------------------------------------


def test_target_sets_are_compared_only_at_one_budget() -> None:
    sets = {
        ("all_linear", 8): (1000.0, 1.0),
        ("mlp", 13): (1020.0, 2.0),
        ("mlp", 26): (2040.0, 0.5),  # better, but twice the parameters
        ("attention", 22): (990.0, 3.0),
    }
    runs = [
        Run(targets=(t,), rank=r, parameters=p, loss=v + 0.1 * s, seed=s)
        for (t, r), (p, v) in sets.items()
        for s in (0, 1)
    ]
    drawing = targets_at_equal_budget(rows(*runs), metric=LOSS)
    labels = [label.get_text() for label in drawn(drawing).axes[0].get_yticklabels()]
    assert labels == ["all linear, r=8", "mlp, r=13", "attention, r=22"]
    assert "Trainable parameters: 990 to 1,020." in drawing.caption
    alone = rows(*(run for run in runs if run.targets == ("mlp",)))
    assert targets_at_equal_budget(alone, metric=LOSS).figure is None


# Memory -------------------------------------------------------------------------------------------


def test_memory_is_stacked_by_part_and_settings_that_change_nothing_share_a_bar() -> None:
    kib = 1024.0
    runs = [
        Run(
            format=f,
            lr=lr,
            loss=1.0,
            parts=(base * kib + 512, kib, 2 * kib, 2 * kib, 4 * kib, 3 * kib),
        )
        for f, base in (("nf4", 10), ("none", 80))
        for lr in (1e-3, 1e-2)
    ]
    drawing = memory_by_parts(rows(*runs))
    (axes,) = drawn(drawing).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nf4", "none"]
    bars = [bar for bar in axes.containers if isinstance(bar, BarContainer)]
    widths = np.array([[patch.get_width() for patch in bar] for bar in bars])
    np.testing.assert_allclose(widths.sum(axis=0), [22.5, 92.5])
    assert axes.get_xlabel() == "memory (KiB)"


@pytest.mark.parametrize("width", Width)
def test_beside_full_fine_tuning_bars_are_named_by_what_was_chosen_and_fit(
    width: Width, recwarn: pytest.WarningsRecorder
) -> None:
    requests = ["lora=none"], ["lora.rank=4"], ["lora.rank=16", "lora.target_modules=[q_proj]"]
    found = asked(*requests, **{"memory/base_bytes": 5e6, "memory/adapter_bytes": 1e6})
    figure = drawn(memory_by_parts(found, width=width))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == ["full fine-tuning", "r=16, q_proj", "r=4, all_linear"]
    fix_layout(figure)
    assert not recwarn.list
    box = figure.axes[0].get_tightbbox()
    assert box is not None
    assert box.x0 >= 0


@pytest.mark.parametrize("order", [1, -1])
def test_of_settings_that_cost_the_same_the_one_with_more_parts_is_drawn(order: int) -> None:
    """Two rates cost the same; one of them had a process of its own, and knows its activations."""
    solo = Run(lr=1e-3, loss=1.0, parts=(10.0, 1, 1, 1, 1, 5))
    shared = Run(lr=1e-2, loss=1.0, parts=(10.0, 1, 1, 1, 1), measured_in=MeasuredIn.cohort)
    drawing = memory_by_parts(rows(*[solo, shared][::order]))
    (axes,) = drawn(drawing).axes
    assert [bar.patches[0].get_width() for bar in axes.containers] == [10, 1, 1, 1, 1, 5]  # pyright: ignore
    assert "missing" not in drawing.caption


def test_activations_come_from_probes_and_their_absence_is_said() -> None:
    cohort = [
        Run(format=f, loss=1.0, parts=(b, 1, 1, 1, 1, 999.0), measured_in=MeasuredIn.cohort)
        for f, b in (("nf4", 10.0), ("none", 80.0))
    ]
    drawing = memory_by_parts(rows(*cohort))
    assert "Activations are missing in 2 of 2 bars" in drawing.caption
    probes = [  # other learning rate, fewer steps: the cost is the same
        Run(format=run.format, lr=1e-4, steps=12, parts=(run.parts[0], 1, 1, 1, 1, 7.0),
            measured_in=MeasuredIn.probe)
        for run in cohort
    ]  # fmt: skip
    (cell, _) = cells_of(rows(*cohort, *probes))
    assert cell.mean("memory/activation_bytes") == 7.0
    assert "missing" not in memory_by_parts(rows(*cohort, *probes)).caption


def test_the_front_is_that_of_the_means() -> None:
    cells = {2: (10.0, 3.0), 8: (20.0, 2.0), 16: (30.0, 2.5), 32: (40.0, 1.0)}  # 16 is dominated
    runs = [Run(rank=r, peak=m * 1024 + 512, loss=v) for r, (m, v) in cells.items()]
    drawing = quality_against_memory(rows(*runs), metric=LOSS)
    front = next(
        line for line in drawn(drawing).axes[0].lines if line.get_label() == "Pareto front"
    )
    np.testing.assert_allclose(np.asarray(front.get_xydata()), [[10.5, 3], [20.5, 2], [40.5, 1]])
    assert "4 cells, 3 of them on the front" in drawing.caption


def test_without_a_peak_of_their_own_the_exact_parts_stand_in_and_the_axis_says_so() -> None:
    runs = [
        Run(rank=r, loss=1.0, parts=(r, 1, 1, 1, 1), peak=9e9, measured_in=MeasuredIn.cohort)
        for r in (2, 8)
    ]
    drawing = quality_against_memory(rows(*runs), metric=LOSS)
    assert drawn(drawing).axes[0].get_xlabel() == "memory without activations (bytes) ↓"


def test_a_cell_of_which_a_part_is_not_known_has_no_sum_of_its_parts() -> None:
    runs = [
        Run(rank=r, loss=1.0, parts=parts, measured_in=MeasuredIn.cohort)
        for r, parts in ((2, (2, 1, 1, 1, 1)), (8, (8, 1, 1, 1, 1)), (32, (32, 1, 1, 1)))
    ]
    drawing = quality_against_memory(rows(*runs), metric=LOSS)
    assert "2 cells, 1 of them on the front" in drawing.caption
    assert drawing.run_ids == (runs[0].run_id, runs[1].run_id)
    front = next(
        line for line in drawn(drawing).axes[0].lines if line.get_label() == "Pareto front"
    )
    np.testing.assert_allclose(np.asarray(front.get_xydata()), [[6, 1]])


def test_predictions_are_drawn_where_both_exist() -> None:
    pairs = rows(*(Run(rank=r, peak=100.0 * r) for r in (1, 2, 4)))
    assert predicted_against_measured(pairs).reason == (
        "no run has both a predicted and a measured memory/peak_bytes"
    )
    for row, predicted in zip(pairs, (100.0, 190.0, 440.0), strict=True):
        row["predicted.memory/peak_bytes"] = predicted
    # Errors 0, 5 % and 10 % of what was measured.
    assert predicted_against_measured(pairs).caption == (
        "3 runs or probes. Median absolute error 5.0% of the measured value, largest 10.0%."
    )


# Curves and search --------------------------------------------------------------------------------


def test_curves_are_means_over_seeds_with_the_band_of_the_seeds() -> None:
    runs = rows(Run(seed=0, loss=1.0), Run(seed=1, loss=1.0))
    steps = np.array([1.0, 2.0])
    histories = {
        row["run_id"]: History(
            curves={"train/loss": (steps, np.array(values))}, num_damaged_lines=0
        )
        for row, values in zip(runs, ([4.0, 2.0], [6.0, 3.0]), strict=True)
    }
    drawing = learning_curves(runs, histories, metric="train/loss", objective=LOSS)
    (axes,) = drawn(drawing).axes
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [5.0, 2.5]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).tolist()}
    assert {(1.0, 4.0), (2.0, 2.0), (1.0, 6.0), (2.0, 3.0)} <= corners
    assert learning_curves(runs, {}, metric="train/loss", objective=LOSS).figure is None


@pytest.mark.parametrize("ranks", [(2,), (2, 8)])
def test_a_curve_is_named_by_what_its_cell_has_of_its_own(ranks: tuple[int, ...]) -> None:
    runs = rows(*(Run(rank=rank, loss=float(rank)) for rank in ranks))
    steps = np.array([1.0, 2.0])
    histories = {
        row["run_id"]: History(curves={"train/loss": (steps, steps)}, num_damaged_lines=0)
        for row in runs
    }
    figure = drawn(learning_curves(runs, histories, metric="train/loss", objective=LOSS))
    shown = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert shown == ([] if len(ranks) == 1 else ["r=2", "r=8"])
    named = [str(line.get_label()) for line in figure.axes[0].lines]
    assert [name.startswith("_") for name in named] == [len(ranks) == 1] * len(ranks)


def test_only_the_histories_of_the_best_eight_cells_are_asked_for() -> None:
    runs = rows(*(Run(rank=r, seed=s, loss=float(r)) for r in range(1, 10) for s in (0, 1)))
    wanted = set(runs_with_curves(runs, LOSS))
    assert {row["lora.rank"] for row in runs if row["run_id"] in wanted} == set(range(1, 9))
    assert len(wanted) == 16


def test_every_trial_is_a_line_across_the_axes_and_the_unfinished_are_grey() -> None:
    trials = [
        TrialPoint(point={"quant": q, "optim.lr": lr}, value=v)
        for q, lr, v in (("nf4", "0.001", 1.0), ("int4", "0.01", 2.0), ("nf4", "0.1", 3.0),
                         ("none", "0.002", 4.0), ("nf4", "0.003", None), ("nf4", "0.004", np.inf))
    ]  # fmt: skip
    drawing = parallel_coordinates(trials, metric=LOSS)
    axes = drawn(drawing).axes[0]
    grey, coloured = (c for c in axes.collections if isinstance(c, LineCollection))
    assert (len(grey.get_segments()), len(coloured.get_segments())) == (2, 4)
    heights = [segment[:, 1] for segment in coloured.get_segments()]
    # The best last, on top: the axis of formats by spelling, that of rates by ratio (0.001 … 0.1).
    expected = [[1.0, np.log10(2) / 2], [0.5, 1.0], [0.0, 0.5], [0.5, 0.0]]
    np.testing.assert_allclose(heights, expected, atol=0.0121)  # lines are shifted to be told apart
    assert "4 trials of the search, not results" in drawing.caption
    assert "2 more, in grey" in drawing.caption
    assert parallel_coordinates(trials[:2], metric=LOSS).reason == "2 finished trials; it takes 4"


@pytest.mark.parametrize(
    ("metric", "size", "unit"),
    [
        (LOSS, 1.0, ""),
        ("eval/exact_match", 1.0, ""),
        ("eval/bits_per_byte", 1.0, ""),
        ("memory/peak_bytes", 1024.0, " (KiB)"),
    ],
)
def test_the_better_a_trial_the_darker_its_line_and_the_bar_says_in_what_unit(
    metric: str, size: float, unit: str
) -> None:
    trials = [
        TrialPoint(point={"a": str(n), "b": str(n % 2)}, value=size * value)
        for n, value in enumerate((1.5, 4.0, 2.0, 3.0))
    ]
    axes, bar = drawn(parallel_coordinates(trials, metric=metric)).axes
    assert bar.get_ylim() == (1.5, 4.0)
    assert bar.get_ylabel().endswith(unit)
    _, lines = (c for c in axes.collections if isinstance(c, LineCollection))
    light = np.asarray(lines.get_colors())[:, :3].sum(axis=1)
    assert (np.diff(light) < 0).all(), "the best last, on top, and the darkest"
    best = 1.5 if metric != "eval/exact_match" else 4.0
    (last,) = [t for t in trials if t.value == size * best]
    height = {str(n): n / 3 for n in range(4)}[last.point["a"]]
    assert lines.get_segments()[-1][0, 1] == pytest.approx(height, abs=0.0121)


@pytest.mark.parametrize(
    ("spelled", "heights"),
    [
        (["1", "2", "5"], [0.0, 0.25, 1.0]),  # neither twentyfold nor by one ratio: linear
        (["1", "2", "20"], [0.0, 1 / 19, 1.0]),  # twentyfold, and not more
        (["1", "2", "21"], [0.0, np.log(2) / np.log(21), 1.0]),
        (["2", "4", "8"], [0.0, 0.5, 1.0]),  # by one ratio: logarithmic
        (["2", "4", "8", "16"], [0.0, 1 / 3, 2 / 3, 1.0]),
        (["2", "8"], [0.0, 1.0]),
        (["0", "2", "50"], [0.0, 0.04, 1.0]),  # 0 has no logarithm
        (["-8", "-4", "-2"], [0.0, 2 / 3, 1.0]),
        (["7", "7", None], [0.0, 0.0, np.nan]),
        (["b", "a", "c"], [0.5, 0.0, 1.0]),  # words by their spelling
        (["a", "a", "a"], [0.0, 0.0, 0.0]),
        (["b", "a"], [1.0, 0.0]),
        (["1", "x", "2"], [0.0, 1.0, 0.5]),  # one word makes all of them words
    ],
)
def test_a_value_stands_on_its_axis_where_its_kind_of_axis_has_it(spelled, heights) -> None:
    column = _Column("k", spelled)
    np.testing.assert_allclose([column.height(text) for text in spelled], heights)


def test_of_many_numbers_the_ends_and_the_middle_are_named_and_none_on_another() -> None:
    many = _Column("k", [str(n) for n in range(9, 0, -1)])
    assert many.ticks() == [(0.0, "1"), (0.5, "5"), (1.0, "9")]
    eight = _Column("k", [str(n) for n in range(1, 9)])
    assert [text for _, text in eight.ticks()] == list("12345678")
    close = _Column("k", ["0", "1", "4", "5", "100"])  # 0.01 and 0.05 of the axis: one is too close
    assert [text for _, text in close.ticks()] == ["0", "5", "100"]


def test_importance_has_a_bar_for_each_axis_and_objective() -> None:
    shares = {LOSS: {"a": 0.7, "b": 0.3}, "memory/peak_bytes": {"a": 0.1, "b": 0.9}}
    (axes,) = drawn(importance_bars(shares)).axes
    widths = [[patch.get_width() for patch in bars] for bars in axes.containers]  # pyright: ignore
    assert widths == [[0.3, 0.7], [0.9, 0.1]]
    assert importance_bars({LOSS: {"a": 1.0}}).figure is None


@pytest.mark.parametrize("points", [50, 51, 100, 137])
def test_a_long_curve_is_the_means_of_fifty_stretches(points: int) -> None:
    steps, values = np.arange(1.0, points + 1), np.random.default_rng(0).normal(size=points)
    found_steps, found = smooth((steps, values))
    if points <= 50:
        assert found is values
        return
    assert len(found) == len(found_steps) == 50
    # Every step is in one stretch, in order; stretches differ by a step at most.
    cuts = [int(points * n / 50) for n in range(51)]
    for n, (start, stop) in enumerate(pairwise(cuts)):
        assert found[n] == pytest.approx(values[start:stop].mean())
        assert found_steps[n] == pytest.approx(steps[start:stop].mean())


def test_a_run_that_was_cut_short_ends_the_mean_and_a_wide_curve_is_logarithmic() -> None:
    runs = rows(Run(seed=0, loss=1.0), Run(seed=1, loss=1.0))
    steps = np.array([1.0, 2.0, 3.0])
    for low, scale in (
        *((1.0, "log"), (2.04, "log")),  # more than twentyfold
        *((2.05, "linear"), (2.1, "linear"), (4.0, "linear"), (-1.0, "linear")),
    ):
        curves = [
            (steps, np.array([41.0, 41.0, 41.0])),
            (steps[:2], np.array([41.0, 2 * low - 41])),
        ]
        histories = {
            row["run_id"]: History(curves={"train/loss": curve}, num_damaged_lines=0)
            for row, curve in zip(runs, curves, strict=True)
        }
        (axes,) = drawn(learning_curves(runs, histories, metric="train/loss", objective=LOSS)).axes
        assert np.asarray(axes.lines[0].get_ydata()).tolist() == pytest.approx([41.0, low])
        assert axes.get_yscale() == scale


# How it looks -------------------------------------------------------------------------------------


def test_thirty_two_lines_are_told_apart() -> None:
    assert len({line_look(index) for index in range(32)}) == 32
    neighbours = [(line_look(n), line_look(n + 1)) for n in range(32)]
    assert all(a.colour != b.colour and a.marker != b.marker for a, b in neighbours)


@pytest.mark.parametrize(
    ("labels", "inches", "columns"),
    [
        (["nf4", "int4", "none"], 3.25, 3),  # 48 letters: room for five of nine
        (["x" * 20, "y", "z"], 3.25, 1),
        (["x" * 20, "y", "z"], 6.75, 3),  # 101 letters: four of 25
        (["x" * 20, "y", "z", "u", "v"], 6.75, 4),
        (["x" * 200, "y"], 3.25, 1),
    ],
)
def test_a_legend_has_as_many_columns_as_its_longest_name_leaves_room_for(
    labels: list[str], inches: float, columns: int
) -> None:
    with figure_style():
        figure = Figure(figsize=(inches, 2), layout="constrained")
        axes = figure.add_subplot()
        for label in labels:
            axes.plot([1], [1], label=label)
        legend_above(figure, axes, "format")
    (legend,) = figure.legends
    assert legend._ncols == columns  # pyright: ignore[reportAttributeAccessIssue]
    assert legend.get_title().get_text() == "format"


def test_letters_and_lines_follow_what_they_are_for() -> None:
    page = Look().settings()
    assert page["font.family"] != Look(serif=True).settings()["font.family"] == "DejaVu Serif"
    for style, letters, lines in ((FigureStyle.paper, 0.9, 0.9), (FigureStyle.slides, 1.3, 1.6)):
        found = Look(style=style).settings()
        assert found.keys() == page.keys()
        for key, value in page.items():
            if key.endswith("size") and isinstance(value, int | float):
                assert found[key] == value * letters
            elif key.endswith("linewidth"):
                assert found[key] == value * lines
            else:
                assert found[key] == value
    assert any(key.endswith("linewidth") for key in page)


# Which, and how -----------------------------------------------------------------------------------


def names(*runs: Run) -> list[str]:
    found = [draw(Width.one_column) for draw in quality_figures(rows(*runs), [LOSS])]
    return [drawing.name for drawing in found if drawing.figure is not None]


def test_the_figures_follow_from_what_varies() -> None:
    by_rank = [Run(format=f, rank=r, loss=1.0) for f in ("nf4", "int4") for r in (2, 8)]
    assert names(*by_rank) == ["eval_loss_over_rank"]
    alphas = [Run(rank=r, alpha=a, loss=1.0) for r in (2, 8) for a in (4.0, 16.0)]
    assert "eval_loss_alpha_by_rank" in names(*alphas)
    blocks = [Run(format=f, block=b, loss=1.0) for f in ("nf4", "int4") for b in (32, 64)]
    assert "eval_loss_format_by_block_size" in names(*blocks)
    sets = [Run(targets=(t,), parameters=100.0, loss=1.0) for t in ("mlp", "attention")]
    assert names(*sets) == ["eval_loss_by_targets"]
    assert names(Run(seed=0, loss=1.0), Run(seed=1, loss=2.0)) == []


def test_a_figure_is_written_for_print_and_the_same_rows_give_the_same_bytes(tmp_path) -> None:
    def draw(width: Width) -> Figure:
        runs = rows(Run(rank=2, loss=2.0), Run(rank=8, loss=1.0))
        return drawn(metric_over(runs, over=RANK, metric=LOSS, width=width))

    pdf, png = write_figure(draw(Width.two_columns), tmp_path / "wide")
    again, _ = write_figure(draw(Width.two_columns), tmp_path / "again")
    assert pdf.read_bytes() == again.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()
    size = int.from_bytes(png.read_bytes()[16:20], "big")
    assert size == round(6.75 * 300)  # ICML's text, in dots
    assert svg_text(draw(Width.one_column)) == svg_text(draw(Width.one_column))


def test_names_are_drawn_as_they_are_spelt() -> None:
    odd = r"$\input{x}$<script>"
    runs = [Run(format=f, rank=r, loss=1.0) for f in (odd, "nf4") for r in (2, 8)]
    svg = svg_text(drawn(metric_over(rows(*runs), over=RANK, metric=LOSS, by=FORMAT)))
    assert "<script" not in svg


def test_figures_need_neither_pyplot_nor_torch() -> None:
    code = (
        "import sys, analysis.figures.choose, analysis.figures.search;"
        "print({'matplotlib.pyplot', 'torch', 'transformers', 'wandb'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.stdout == "set()\n", process.stderr


def test_a_learning_rate_is_an_axis_and_never_the_lines() -> None:
    runs = [Run(rank=r, lr=lr, loss=1.0) for r in (2, 8) for lr in (1e-3, 1e-2)]
    assert varying_factors(rows(*runs)) == [RANK, LEARNING_RATE]
    assert names(*runs) == ["eval_loss_over_rank", "eval_loss_over_lr", "eval_loss_lr_by_rank"]
