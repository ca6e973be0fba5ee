"""A metric over a number, drawn: where lines stand and what is refused; and a search's own figures."""

from typing import Any

import numpy as np
import pytest

from analysis.figures.cells import cells_of
from analysis.figures.factors import FORMAT, RANK, TARGETS, varying_factors
from analysis.figures.memory import (
    memory_by_parts,
    predicted_against_measured,
    setting_text,
)
from analysis.figures.over import metric_over
from analysis.figures.search import TrialPoint, importance_bars, parallel_coordinates, trial_points
from analysis.figures.style import COLOURS, Width
from tests.analysis.rows_for_figures import Run, rows

LOSS = "eval/loss"


def points_of(drawing: Any) -> list[list[list[float]]]:
    (axes,) = drawing.figure.axes
    return [np.asarray(each.lines[0].get_xydata(), float).tolist() for each in axes.containers]


def test_lines_stand_side_by_side_by_two_percent_where_numbers_are_ratios() -> None:
    runs = [Run(format=f, rank=r, loss=1.0) for f in ("a", "b", "c") for r in (10, 100)]
    shown = points_of(metric_over(rows(*runs), over=RANK, metric=LOSS, by=FORMAT))
    assert [[x for x, _ in line] for line in shown] == [
        pytest.approx([10 * shift, 100 * shift]) for shift in (0.98, 1.0, 1.02)
    ]
    given = rows(*runs)
    for row in given:
        row["data.epoch"] = row["lora.rank"]
    (_, linear) = varying_factors([{**row, "lora.rank": 8} for row in given])
    assert not linear.is_logarithmic
    together = points_of(metric_over(given, over=linear, metric=LOSS, by=FORMAT))
    assert [[x for x, _ in line] for line in together] == [[10.0, 100.0]] * 3


@pytest.mark.parametrize("lines", [1, 2])
def test_one_line_needs_no_legend_and_less_height(lines: int) -> None:
    runs = [Run(format=f, rank=r, loss=1.0) for f in ("a", "b")[:lines] for r in (1, 2)]
    drawing = metric_over(rows(*runs), over=RANK, metric=LOSS, by=FORMAT, width=Width.two_columns)
    assert drawing.figure is not None
    assert len(drawing.figure.legends) == lines - 1
    assert drawing.figure.get_figwidth() == 6.75
    assert drawing.title == "eval loss over LoRA rank, by storage format"
    alone = metric_over(rows(*runs[:2]), over=RANK, metric=LOSS)
    assert alone.title == "eval loss over LoRA rank"


def test_a_word_is_no_axis_and_a_run_without_the_number_has_no_point() -> None:
    words = [Run(targets=(t,), loss=1.0) for t in ("mlp", "qv")]
    drawing = metric_over(rows(*words), over=TARGETS, metric=LOSS)
    assert drawing.reason == "lora.target_modules is no number"
    runs = rows(Run(rank=2, loss=1.0), Run(rank=8, loss=2.0), Run(rank=4, loss=3.0))
    runs[2]["lora.rank"] = None
    assert points_of(metric_over(runs, over=RANK, metric=LOSS)) == [[[2.0, 1.0], [8.0, 2.0]]]


@pytest.mark.parametrize("missing", [1, 2])
def test_more_than_half_of_the_points_of_several_lines_are_measured(missing: int) -> None:
    runs = [Run(format=f, rank=r, loss=1.0) for f in ("a", "b") for r in (1, 2)]
    found = metric_over(rows(*runs[missing:]), over=RANK, metric=LOSS, by=FORMAT)
    if missing == 1:
        assert [len(line) for line in points_of(found)] == [1, 2]
    else:
        assert len(points_of(found)) == 1, "one line of all its points"
    crossed = [runs[0], runs[3]]
    reason = metric_over(rows(*crossed), over=RANK, metric=LOSS, by=FORMAT).reason
    assert reason == "only 2 of 4 points were measured"


# The search's own ----------------------------------------------------------------------------------


def test_a_trial_s_value_is_that_of_the_objective_asked_for() -> None:
    state = {
        "objectives": {LOSS: "minimize", "memory/peak_bytes": "minimize"},
        "trials": [
            {"point": {"a": "1"}, "values": [1.5, 7]},
            {"point": {"a": "2"}, "values": None},
        ],
    }
    assert trial_points(state, LOSS) == [
        TrialPoint(point={"a": "1"}, value=1.5),
        TrialPoint(point={"a": "2"}, value=None),
    ]
    assert [each.value for each in trial_points(state, "memory/peak_bytes")] == [7.0, None]


def test_one_axis_has_no_lines_and_a_narrow_page_slants_their_names() -> None:
    one = [TrialPoint(point={"a": str(n)}, value=float(n)) for n in range(5)]
    assert (
        parallel_coordinates(one, metric=LOSS).reason == "a search over 1 axes has no lines to draw"
    )
    two = [TrialPoint(point={"a": str(n), "b": "x"}, value=float(n)) for n in range(5)]
    for width, slant in ((Width.one_column, 25.0), (Width.two_columns, 0.0)):
        figure = parallel_coordinates(two, metric=LOSS, width=width).figure
        assert figure is not None
        axes = figure.axes[0]
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {slant}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
        verticals = [list(np.asarray(line.get_xdata())) for line in axes.lines]
        assert verticals == [[0, 0], [1, 1]]
        texts = {(round(t.get_position()[0]), t.get_text()) for t in axes.texts}
        assert texts == {(0, str(n)) for n in range(5)} | {(1, "x")}
        assert axes.get_xlim()[0] < 0 < 1 < axes.get_xlim()[1]
    whole = parallel_coordinates(two, metric=LOSS)
    assert whole.caption == ("5 trials of the search, not results: they chose what was confirmed.")
    assert whole.is_wide


def test_a_value_is_shown_short() -> None:
    points = [
        {"a": text, "b": str(n)} for n, text in enumerate(("0.00123456", "1e-05", "12345", "7"))
    ]
    figure = parallel_coordinates(
        [TrialPoint(point=p, value=1.0 + n) for n, p in enumerate(points)], metric=LOSS
    ).figure
    assert figure is not None
    shown = {t.get_text() for t in figure.axes[0].texts}
    assert {"1e-05", "0.00123", "1.23e+04"} <= shown
    named = [{"a": "[a_very_long_name_of_modules]", "b": str(n)} for n in range(4)]
    figure = parallel_coordinates(
        [TrialPoint(point=p, value=1.0 + n) for n, p in enumerate(named)], metric=LOSS
    ).figure
    assert figure is not None
    assert "a_very_long_name_o" in {t.get_text() for t in figure.axes[0].texts}


def test_bars_of_several_objectives_share_an_axis_place_around_its_tick() -> None:
    shares = {LOSS: {"a": 0.7, "b": 0.3}, "own": {"a": 0.1, "c": 0.9}}
    figure = importance_bars(shares).figure
    assert figure is not None
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["c", "b", "a"], "by the first objective, the largest on top"
    assert axes.get_yticks().tolist() == [0, 1, 2]
    for place in range(3):
        ys = [bars[place].get_y() for bars in axes.containers]  # pyright: ignore
        ends = [y + bars[place].get_height() for y, bars in zip(ys, axes.containers, strict=True)]  # pyright: ignore
        assert min(ys) == pytest.approx(place - 0.4)
        assert ends[0] == pytest.approx(ys[1]), "one beside the other"
        assert max(ends) == pytest.approx(place + 0.4)
    lengths = [[bar.get_width() for bar in bars] for bars in axes.containers]  # pyright: ignore
    assert lengths == [[0.0, 0.3, 0.7], [0.9, 0.0, 0.1]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["eval loss", "own"]
    alone = importance_bars({LOSS: {"a": 0.7, "b": 0.3}})
    assert alone.figure is not None
    assert not alone.figure.legends
    assert importance_bars({LOSS: {"a": 1.0}}).reason == (
        "1 axes varied: there is nothing to compare"
    )


# Memory --------------------------------------------------------------------------------------------


def test_parts_lie_end_to_end_from_the_top() -> None:
    runs = [Run(rank=r, loss=1.0, parts=(4.0 * r, 1, 2, 3, 5, 7)) for r in (2, 8)]
    for width in Width:
        drawing = memory_by_parts(rows(*runs), width=width)
        assert drawing.figure is not None
        (axes,) = drawing.figure.axes
        assert axes.yaxis_inverted()
        assert axes.get_xlabel() == "memory (bytes)"
        edge = [0.0, 0.0]
        for bars, lengths in zip(
            axes.containers, ((8, 32), (1, 1), (2, 2), (3, 3), (5, 5), (7, 7)), strict=True
        ):
            assert [bar.get_x() for bar in bars] == edge  # pyright: ignore
            assert [bar.get_width() for bar in bars] == list(lengths)  # pyright: ignore
            edge = [a + b for a, b in zip(edge, lengths, strict=True)]
        colours = [bars[0].get_facecolor() for bars in axes.containers]  # pyright: ignore
        assert len({*colours}) == 6
        assert "missing" not in drawing.caption
        assert drawing.run_ids == tuple(run.run_id for run in runs)
    assert len(COLOURS) >= 6


def test_nothing_or_too_much_is_no_figure_of_memory() -> None:
    assert memory_by_parts(rows(Run(loss=1.0))).reason == (
        "no completed run measured the parts of its memory"
    )
    many = rows(*(Run(rank=r, loss=1.0, parts=(float(r),) * 6) for r in range(1, 18)))
    assert memory_by_parts(many).reason == "17 different bars; a figure shows 16"
    assert memory_by_parts(many[:16]).figure is not None
    named = memory_by_parts(many[:1])
    assert named.figure is not None
    (label,) = named.figure.axes[0].get_yticklabels()
    assert label.get_text() == "every run"


@pytest.mark.parametrize("width", list(Width))
def test_predicted_is_across_measured_upwards_in_one_unit(width: Width) -> None:
    found = rows(*(Run(rank=r, peak=1536.0 * r) for r in (1, 2, 4)), Run(rank=8, peak=None))
    for row, predicted in zip(found, (1536.0, 4608.0, 3072.0), strict=False):
        row["predicted.memory/peak_bytes"] = predicted
    drawing = predicted_against_measured(found, width=width)
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    equal, points = axes.lines
    assert np.asarray(points.get_xydata()).tolist() == [[1.5, 1.5], [4.5, 3.0], [3.0, 6.0]]
    ends = np.asarray(equal.get_xydata())
    assert (ends[:, 0] == ends[:, 1]).all()
    assert ends.min() < 1.5
    assert ends.max() > 6.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted (KiB)", "measured (KiB)")
    assert drawing.caption.startswith(
        "3 runs or probes. Median absolute error 50.0% of the measured"
    )
    assert drawing.caption.endswith("largest 50.0%.")
    assert drawing.run_ids == tuple(row["run_id"] for row in found[:3])
    shared = [row | {"measured_in": cohort} for row in found for cohort in [_cohort()]]
    assert predicted_against_measured(shared).figure is None


def _cohort() -> Any:
    from harness.records.record import MeasuredIn

    return MeasuredIn.cohort


def test_a_label_names_a_setting_by_the_last_of_its_key_and_a_format_by_itself() -> None:
    runs = [Run(format="nf4", rank=4, lr=0.005, alpha=8.0, targets=("q_proj", "v_proj"), steps=3)]
    runs.append(Run(format="int4", rank=8, lr=0.1, alpha=1.0, targets=("mlp",), steps=5))
    first, _ = cells_of(rows(*runs))
    factors = varying_factors(rows(*runs))
    assert [setting_text(factor, first) for factor in factors] == [
        *("nf4", "r=4", "alpha=8", "q_proj+v_proj", "lr=0.005"),
        "steps=3",
    ]
