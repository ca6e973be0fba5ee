"""Maps and target sets: colours, frames, ticks and refusals, read from what matplotlib holds."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from analysis.figures.factors import ALPHA, BLOCK_SIZE, FORMAT, RANK
from analysis.figures.grids import heat_map
from analysis.figures.style import Drawing, Width
from analysis.figures.targets import targets_at_equal_budget
from tests.analysis.rows_for_figures import Run, rows

LOSS, MATCH = "eval/loss", "eval/exact_match"


def axes_of(drawing: Drawing) -> Any:
    assert drawing.figure is not None, drawing.reason
    (axes,) = drawing.figure.axes
    return axes


def grid(
    values: list[list[float | None]], width: Width = Width.one_column, metric: str = LOSS
) -> Drawing:
    """A map with a line for each list: alpha 4, 8, … upwards, rank 2, 4, … to the right."""
    runs = [
        Run(rank=2 * (column + 1), alpha=4.0 * (line + 1), loss=value, exact=value)
        for line, of_line in enumerate(values)
        for column, value in enumerate(of_line)
        if value is not None
    ]
    return heat_map(rows(*runs), across=RANK, down=ALPHA, metric=metric, width=width)


@pytest.mark.parametrize("metric", [LOSS, MATCH])
def test_the_better_the_lighter_with_a_text_that_can_be_read_and_a_frame_at_the_best(
    metric: str,
) -> None:
    drawing = grid([[0.1, 0.2], [0.3, 0.9]], metric=metric)
    axes = axes_of(drawing)
    (image,) = axes.images
    shown = np.asarray(image.get_array())
    assert shown.tolist() == [[0.1, 0.2], [0.3, 0.9]]
    assert image.origin == "lower", "larger numbers are higher"
    assert (image.norm.vmin, image.norm.vmax) == (0.1, 0.9)
    light = [float(sum(image.cmap(image.norm(value))[:3])) for value in (0.1, 0.9)]
    assert (light[0] > light[1]) is (metric == LOSS)
    best = (0, 0) if metric == LOSS else (1, 1)
    (frame,) = axes.patches
    left, low = frame.get_xy()
    right, high = left + frame.get_width(), low + frame.get_height()
    assert best[0] - 0.5 < left < best[0] < right < best[0] + 0.5
    assert best[1] - 0.5 < low < best[1] < high < best[1] + 0.5
    weights = {t.get_position(): t.get_weight() for t in axes.texts}
    assert {at for at, weight in weights.items() if weight == "bold"} == {best}
    colours = {t.get_position(): t.get_color() for t in axes.texts}
    assert colours[best] == "black", "the lightest"
    worst = (1, 1) if metric == LOSS else (0, 0)
    assert colours[worst] == "white"
    # 0.2 and 0.3 are an eighth and a quarter of the way: light for a loss, dark for a score.
    assert {colours[1, 0], colours[0, 1]} == {"black" if metric == LOSS else "white"}


def test_text_is_white_below_55_of_100_of_the_way_to_light() -> None:
    axes = axes_of(grid([[0.0, 0.54, 0.56, 1.0]] * 2, metric=MATCH))
    assert [t.get_color() for t in axes.texts[:4]] == ["white", "white", "black", "black"]
    axes = axes_of(grid([[0.0, 0.44, 0.46, 1.0]] * 2))
    assert [t.get_color() for t in axes.texts[:4]] == ["black", "black", "white", "white"]


def test_equal_means_are_all_framed_and_coloured_alike() -> None:
    drawing = grid([[0.5, 0.5], [0.5, 0.5]])
    axes = axes_of(drawing)
    assert len(axes.patches) == 4
    (image,) = axes.images
    assert (image.norm.vmin, image.norm.vmax) == (0.5, 1.5)


def test_ticks_are_the_levels_and_slanted_where_they_are_long() -> None:
    drawing = grid([[1.0, 2.0], [3.0, 4.0]])
    axes = axes_of(drawing)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("LoRA rank", "LoRA alpha")
    assert [label.get_rotation() for label in axes.get_xticklabels()] == [0.0, 0.0]
    for name, slant in (("x" * 7, 0.0), ("x" * 8, 30.0)):
        runs = [Run(format=f, block=b, loss=1.0) for f in (name, "nf4") for b in (32, 64)]
        turned = axes_of(heat_map(rows(*runs), across=FORMAT, down=BLOCK_SIZE, metric=LOSS))
        assert {label.get_rotation() for label in turned.get_xticklabels()} == {slant}


def test_numbers_shrink_to_their_square_and_are_never_large() -> None:
    few = axes_of(grid([[1.0, 2.0], [3.0, 4.0]])).texts[0].get_fontsize()
    many = axes_of(grid([[float(n) for n in range(12)]] * 2)).texts[0].get_fontsize()
    wide = (
        axes_of(grid([[float(n) for n in range(12)]] * 2, Width.two_columns))
        .texts[0]
        .get_fontsize()
    )
    assert few == 6.5
    # A digit takes two thirds of its size, "11.0000" seven of them, of a twelfth of the axes' width.
    assert many == pytest.approx(72 * (3.25 - 0.75) / 12 / (0.66 * 7))
    assert many < wide <= few


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[1.0, 2.0]], "lora.alpha has 1 levels; a map shows 2 to 12"),
        ([[1.0], [2.0]], "lora.rank has 1 levels; a map shows 2 to 12"),
        ([[1.0] * 13] * 2, "lora.rank has 13 levels; a map shows 2 to 12"),
        ([[1.0, None], [None, 2.0]], "only 2 of 4 squares were measured"),
        ([[1.0] * 12] * 2, None),
        ([[1.0, 2.0], [None, 2.0]], None),
    ],
)
def test_a_map_needs_two_to_twelve_levels_and_more_than_half_its_squares(values, reason) -> None:
    assert grid(values).reason == reason


def test_nothing_measured_is_no_map() -> None:
    found = rows(Run(rank=2, alpha=4.0), Run(rank=4, alpha=8.0))
    drawing = heat_map(found, across=RANK, down=ALPHA, metric=LOSS)
    assert drawing.reason == "no completed run measured eval/loss"
    assert drawing.name == "eval_loss_alpha_by_rank"
    assert drawing.title == "eval loss by LoRA alpha and LoRA rank"


def test_the_caption_counts_seeds_and_the_cells_that_share_a_square() -> None:
    plain = grid([[1.0, 2.0], [3.0, 4.0]])
    assert plain.caption == (
        "eval loss (nats/token) ↓: mean over seeds, n=1; the frame marks the best mean, which others may "
        "equal within their intervals (see the table)."
    )
    runs = [Run(rank=r, alpha=a, loss=1.0) for r in (2, 4) for a in (4.0, 8.0)]
    runs += [Run(rank=2, alpha=4.0, loss=1.0, seed=1), Run(rank=4, alpha=4.0, lr=1.0, loss=0.5)]
    shared = heat_map(rows(*runs), across=RANK, down=ALPHA, metric=LOSS)
    assert "n=1 to 2;" in shared.caption
    more = [Run(rank=4, alpha=8.0, loss=1.0, seed=seed) for seed in (1, 2)]
    three = heat_map(rows(*runs, *more), across=RANK, down=ALPHA, metric=LOSS)
    assert "n=1 to 3;" in three.caption
    assert (
        "Up to 2 cells share a square (they differ in optim.lr): the one with the best"
        in shared.caption
    )
    assert len(shared.run_ids) == 5
    assert runs[5].run_id in shared.run_ids


# Target sets --------------------------------------------------------------------------------------


def test_sets_are_in_order_of_their_means_with_dots_for_runs_and_bars_for_intervals() -> None:
    runs = [
        Run(targets=(name,), rank=rank, parameters=100.0, loss=loss + s / 10, seed=s)
        for name, rank, loss in (("q_proj", 4, 2.0), ("mlp", 2, 1.0))
        for s in (0, 1)
    ]
    runs.append(Run(targets=("v_proj",), rank=8, parameters=100.0, loss=3.0))
    drawing = targets_at_equal_budget(rows(*runs), metric=LOSS)
    axes = axes_of(drawing)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["mlp, r=2", "q, r=4", "v, r=8"]
    lines = [(line.get_marker(), np.asarray(line.get_xydata())) for line in axes.lines]
    dots = [points for marker, points in lines if marker == "."]
    assert [sorted(points[:, 0].tolist()) for points in dots] == [
        pytest.approx([1.0, 1.1]),
        pytest.approx([2.0, 2.1]),
        [3.0],
    ]
    for place, points in enumerate(dots):
        assert (points[:, 1] < place).all(), "below the mean"
        assert (points[:, 1] > place - 0.5).all(), "and still of its line"
    means = [points.ravel().tolist() for marker, points in lines if marker == "o"]
    assert means == [pytest.approx(point) for point in ([1.05, 0], [2.05, 1], [3.0, 2])]
    bars = [points for marker, points in lines if marker == "None"]
    assert len(bars) == 2, "one seed has no interval"
    assert "Grey dots are the runs." in drawing.caption
    assert "Trainable parameters: 100 to 100." in drawing.caption
    assert to_hex("#0072B2") == axes.lines[-1].get_color().lower()


@pytest.mark.parametrize(
    ("other", "drawn"), [(105.2, True), (105.3, False), (95.0, True), (94.9, False)]
)
def test_one_budget_is_within_five_percent_of_one_of_them(other: float, drawn: bool) -> None:
    found = rows(
        Run(targets=("mlp",), parameters=100.0, loss=1.0),
        Run(targets=("qv",), parameters=other, loss=2.0),
    )
    assert (targets_at_equal_budget(found, metric=LOSS).figure is not None) is drawn


def test_the_budget_that_most_sets_share_is_taken_and_unknown_ones_are_none() -> None:
    sizes = {"f": None, "a": 100.0, "b": 100.0, "c": 500.0, "d": 505.0, "e": 510.0}
    found = rows(*(Run(targets=(name,), parameters=p, loss=1.0) for name, p in sizes.items()))
    drawing = targets_at_equal_budget(found, metric=LOSS)
    assert {row["run_id"] for row in found[3:]} == set(drawing.run_ids)
    assert targets_at_equal_budget(found[:1], metric=LOSS).reason == (
        "fewer than two target sets whose trainable parameters lie within 10%"
    )
    nothing = targets_at_equal_budget(rows(Run()), metric=LOSS)
    assert nothing.reason == "no completed run measured eval/loss"
