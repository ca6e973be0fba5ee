"""Quality against memory and against forgetting: points, bars, colours and the front, by hand."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from scipy import stats

from analysis.figures.style import COLOURS, Drawing
from analysis.figures.trade_off import learning_against_forgetting, quality_against_memory
from analysis.frame import Row
from tests.analysis.rows_for_figures import Run, rows

LOSS, MATCH = "eval/loss", "eval/exact_match"
FORGOT = "after.eval/forgetting_bits_per_byte"


def axes_of(drawing: Drawing) -> Axes:
    assert drawing.figure is not None, drawing.reason
    (axes,) = drawing.figure.axes
    return axes


def points_of(axes: Axes) -> dict[str, list[list[float]]]:
    """Return the points of each label."""
    return {
        str(container.get_label()): np.asarray(container.lines[0].get_xydata()).tolist()  # pyright: ignore
        for container in axes.containers
    }


def front_of(axes: Axes) -> list[list[float]]:
    (line,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert line.get_drawstyle() == "steps-post", "what costs more than a point is at least as good"
    return np.asarray(line.get_xydata()).tolist()


def forgetful(*of: tuple[Run, float | None]) -> list[Row]:
    found = rows(*(run for run, _ in of))
    for row, (_, forgotten) in zip(found, of, strict=True):
        row[FORGOT] = forgotten
    return found


def test_what_was_learnt_stands_over_what_was_forgotten_with_the_front_through_the_best() -> None:
    found = forgetful(
        (Run(rank=2, loss=3.0), -0.01),
        (Run(rank=8, loss=2.0), 0.02),
        (Run(rank=16, loss=2.5), 0.03),  # rank 8 learns more and forgets less
        (Run(rank=32, loss=1.0), 0.04),
        (Run(rank=64, loss=0.5), None),
    )
    drawing = learning_against_forgetting(found, metric=LOSS)
    axes = axes_of(drawing)
    assert front_of(axes) == [[-0.01, 3.0], [0.02, 2.0], [0.04, 1.0]]
    assert "4 cells, 3 of them on the front" in drawing.caption
    assert points_of(axes)["16"] == [[0.03, 2.5]]
    assert drawing.run_ids == tuple(row["run_id"] for row in found[:4])
    assert drawing.name == "eval_loss_against_forgetting"
    (unchanged,) = [line for line in axes.lines if list(np.asarray(line.get_xdata())) == [0.0, 0.0]]
    assert unchanged.get_label().startswith("_"), "the line of what is neither worse nor better"  # pyright: ignore
    assert axes.get_xlabel().startswith("forgetting")
    few = learning_against_forgetting(found[3:], metric=LOSS)
    assert few.reason == "fewer than two cells have measured eval/forgetting_bits_per_byte"


def test_of_a_score_more_is_better_on_the_front() -> None:
    found = forgetful(
        (Run(rank=2, exact=0.4), 0.01),
        (Run(rank=8, exact=0.3), 0.02),
        (Run(rank=32, exact=0.9), 0.03),
    )
    axes = axes_of(learning_against_forgetting(found, metric=MATCH))
    assert front_of(axes) == [[0.01, 0.4], [0.03, 0.9]]


def test_a_point_is_a_mean_with_its_interval_over_seeds() -> None:
    losses = (2.0, 3.0, 7.0)
    runs = [Run(rank=2, seed=seed, loss=loss, peak=1536.0) for seed, loss in enumerate(losses)]
    drawing = quality_against_memory(rows(*runs, Run(rank=8, loss=1.0, peak=4608.0)), metric=LOSS)
    axes = axes_of(drawing)
    assert points_of(axes) == {"2": [[1.5, 4.0]], "8": [[4.5, 1.0]]}
    segments = {
        str(each.get_label()): each.lines[2][0].get_segments()[0][:, 1].tolist()  # pyright: ignore
        for each in axes.containers
    }
    low, high = stats.t.interval(0.95, 2, np.mean(losses), stats.sem(losses))
    assert segments["2"] == pytest.approx([low, high])
    assert segments["8"] == [1.0, 1.0], "one seed has no interval"
    assert axes.get_xlabel() == "peak memory (KiB) ↓"
    assert drawing.run_ids == tuple(run.run_id for run in (*runs, Run(rank=8)))


@pytest.mark.parametrize(
    ("runs", "labels", "title"),
    [
        ([{"format": "nf4"}, {"format": "int4", "rank": 16}], ["int4", "nf4"], "storage format"),
        ([{"rank": 2}, {"rank": 16}], ["2", "16"], "LoRA rank"),
        ([{"lr": 1e-3 * (n + 1)} for n in range(9)], ["None"], ""),  # too many to colour by
        ([{"lr": 1e-3 * (n + 1)} for n in range(8)], [f"{1e-3 * (n + 1):.4g}" for n in range(8)],
         "learning rate"),
    ],
)  # fmt: skip
def test_points_are_coloured_by_the_format_else_by_what_has_few_levels(
    runs: list[dict[str, Any]], labels: list[str], title: str
) -> None:
    found = rows(*(Run(loss=1.0 + n, peak=1024.0 * (n + 1), **run) for n, run in enumerate(runs)))
    drawing = quality_against_memory(found, metric=LOSS)
    axes = axes_of(drawing)
    shown = points_of(axes)
    if labels == ["None"]:
        assert [len(points) for points in shown.values()] == [9]
    else:
        assert list(shown) == labels
        colours = [to_hex(each.lines[0].get_color()) for each in axes.containers]  # pyright: ignore
        assert colours == [colour.lower() for colour in COLOURS[: len(labels)]]
    assert drawing.figure is not None
    (legend,) = drawing.figure.legends
    assert legend.get_title().get_text() == title


@pytest.mark.parametrize(("largest", "scale"), [(4.0, "linear"), (4.1, "log")])
def test_memories_far_apart_are_shown_by_ratio(largest: float, scale: str) -> None:
    found = rows(Run(rank=2, loss=1.0, peak=100.0), Run(rank=8, loss=2.0, peak=100.0 * largest))
    drawing = quality_against_memory(found, metric=LOSS)
    assert axes_of(drawing).get_xscale() == scale


def test_one_memory_is_no_trade_off() -> None:
    found = rows(Run(rank=2, loss=1.0, peak=100.0), Run(rank=8, loss=2.0, peak=100.0))
    reason = "fewer than two cells with a quality and different memories"
    assert quality_against_memory(found, metric=LOSS).reason == reason
    assert quality_against_memory(found[:1], metric=LOSS).reason == reason
