"""Learning curves of many cells: whose are drawn, by which factors, and what the caption counts."""

import numpy as np
import pytest

from analysis.figures.cells import best_first, cells_of
from analysis.figures.factors import FORMAT, RANK
from analysis.figures.learning import (
    best_of_levels,
    factors_with_curves,
    learning_curves,
    runs_with_curves,
)
from analysis.frame import Row
from analysis.histories import History
from harness.records.record import MeasuredIn
from tests.analysis.rows_for_figures import Run, rows

LOSS = "eval/loss"
STEPS = np.array([1.0, 2.0])


def histories(found: list[Row], points: int = 2) -> dict[str, History]:
    return {
        row["run_id"]: History(
            curves={"train/loss": (STEPS[:points], STEPS[:points])}, num_damaged_lines=0
        )
        for row in found
    }


def many() -> list[Row]:
    """Ten cells: ranks 1 to 5 of two formats; nf4 is better, and a higher rank within each."""
    return rows(
        *(
            Run(format=f, rank=rank, loss=loss - rank / 10)
            for f, loss in (("int4", 5.0), ("nf4", 1.0))
            for rank in range(1, 6)
        )
    )


def test_where_there_are_more_cells_than_lines_each_factor_gets_curves_of_its_levels() -> None:
    found = many()
    assert factors_with_curves(found) == [FORMAT, RANK]
    assert factors_with_curves(found[:8]) == []
    assert factors_with_curves(found[:9]) == [FORMAT, RANK]
    ranked = best_first(cells_of(found), LOSS)
    assert [cell.setting(FORMAT) for cell in best_of_levels(ranked, FORMAT)] == ["int4", "nf4"]
    assert [cell.setting(RANK) for cell in best_of_levels(ranked, FORMAT)] == [5, 5]
    by_rank = best_of_levels(ranked, RANK)
    assert [cell.setting(RANK) for cell in by_rank] == [1, 2, 3, 4, 5]
    assert {cell.setting(FORMAT) for cell in by_rank} == {"nf4"}
    wanted = [row["run_id"] for row in found if row["run_id"] in runs_with_curves(found, LOSS)]
    # Of ten the best eight, the best int4 among them: the two worst are int4 of ranks 1 and 2.
    assert wanted == [row["run_id"] for row in found[2:]]


def test_at_most_three_factors_with_at_most_eight_levels_have_curves() -> None:
    rates = rows(*(Run(lr=1e-3 * n, loss=1.0) for n in range(1, 10)))
    assert factors_with_curves(rates) == [], "a learning rate is no line"
    ranks = rows(*(Run(rank=n, loss=1.0) for n in range(1, 10)))
    assert factors_with_curves(ranks) == [], "nine lines are too many"
    all_of_them = rows(
        *(
            Run(format=f, block=b, rank=r, alpha=a, loss=1.0)
            for f in ("nf4", "int4")
            for b in (32, 64)
            for r in (2, 8)
            for a in (4.0, 8.0)
        )
    )
    assert [f.name for f in factors_with_curves(all_of_them)] == [
        *("format", "quant.block_size"),
        "lora.rank",
    ]


@pytest.mark.parametrize(
    ("by", "lines", "caption"),
    [
        (None, 8, "The 8 cells of 10 with the best eval loss."),
        (FORMAT, 2, "Of 10 cells the best of each storage format by eval loss."),
    ],
)
def test_the_caption_says_of_how_many_cells_these_are_which(by, lines, caption) -> None:
    found = many()
    drawing = learning_curves(found, histories(found), metric="train/loss", objective=LOSS, by=by)
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    assert len(axes.lines) == lines
    assert drawing.caption.endswith(caption)
    assert "(n=1)" in drawing.caption
    assert len(drawing.run_ids) == lines
    ends = ("", "") if by is None else ("_by_format", ", by storage format")
    assert drawing.name == f"curves_train_loss{ends[0]}"
    assert drawing.title == f"train loss over steps{ends[1]}"
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_ylabel().startswith("train loss")


def test_where_all_cells_are_drawn_nothing_is_said_of_others() -> None:
    found = many()[:3]
    drawing = learning_curves(found, histories(found), metric="train/loss", objective=LOSS)
    assert drawing.caption == (
        "Mean over seeds (n=1), the band spans the seeds; long curves as means over 50 stretches."
    )


def test_seeds_of_a_cell_count_where_they_have_two_points_of_a_whole_run() -> None:
    pair = rows(Run(seed=0, loss=1.0), Run(seed=1, loss=1.0), Run(rank=2, loss=2.0))
    probe = rows(Run(seed=2, loss=1.0, measured_in=MeasuredIn.probe))
    known = histories(pair) | histories(probe)
    drawing = learning_curves([*pair, *probe], known, metric="train/loss", objective=LOSS)
    assert "(n=1/2)" in drawing.caption
    short = histories(pair, points=1)
    none = learning_curves(pair, short, metric="train/loss", objective=LOSS)
    assert none.reason == "none of the best runs has two points of train/loss"
    one = learning_curves(pair, short | histories(pair[:1]), metric="train/loss", objective=LOSS)
    assert "(n=1)" in one.caption
    assert one.run_ids == tuple(row["run_id"] for row in pair[:2])
    assert one.figure is not None
    assert not one.figure.legends, "one line needs no name"
