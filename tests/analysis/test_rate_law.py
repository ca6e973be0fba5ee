"""What a report says of learning rates over ranks, from a search made by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.figures.rate_law import best_rate_over_rank
from analysis.frame import Row
from analysis.rate_law import law_sentences, law_table, laws_of, saving_table, savings_of
from analysis.render import markdown
from analysis.sources import SweepData
from harness.records.record import MeasuredIn, RunStatus

stats: Any = scipy_stats
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def row(rank: int, rate: float, seed: int, loss: float, scaling: str) -> Row:
    return {
        "run_id": f"{scaling}-{rank}-{rate}-{seed}",
        "role": "search",
        "status": RunStatus.completed,
        "measured_in": MeasuredIn.cohort,
        "point": {"scaling": scaling, "lora.rank": str(rank), "optim.lr": repr(rate)},
        "lora.rank": rank,
        "optim.lr": rate,
        "lora.alpha": 16.0 if scaling == "fixed" else None,
        "lora.alpha_over_rank": None if scaling == "fixed" else 2.0,
        "lora.rslora": False,
        "seed": seed,
        "after.eval/loss": loss,
    }


def searched(**best: dict[int, float]) -> SweepData:
    """A grid whose losses are parabolas over log rate, lowest at the rates that are given by rank."""
    rows = [
        row(rank, rate, seed, 1 + 0.1 * math.log(rate / wanted) ** 2 + 0.01 * seed, scaling)
        for scaling, by_rank in best.items()
        for rank, wanted in by_rank.items()
        for rate in RATES
        for seed in (0, 1)
    ]
    return SweepData(
        name="small",
        question="How?",
        expect="",
        method="grid",
        objectives={"eval/loss": "minimize"},
        base=(),
        axes=("scaling", "lora.rank", "optim.lr"),
        asked={},
        state={},
        rows=rows,
        problems=[],
        directory=Path(),
    )


FIXED = {2: 4e-3, 8: 4e-3, 32: 4e-3}
BY_RANK = {2: 8e-3, 8: 4e-3, 32: 2e-3}  # half the rate at four times the rank: a slope of -1/2


def test_the_slope_is_the_one_that_the_losses_were_made_with() -> None:
    fixed, by_rank = laws_of(searched(fixed=FIXED, by_rank=BY_RANK))
    assert (fixed.scaling, by_rank.scaling) == ("alpha fixed", "alpha ∝ r")
    assert fixed.law.slope == pytest.approx(0, abs=1e-9)
    assert by_rank.law.slope == pytest.approx(-0.5)
    assert by_rank.law.n == 6
    assert by_rank.next_rank == 64
    assert by_rank.law.predicted(64) == pytest.approx(2e-3 / math.sqrt(2))
    said = law_sentences([by_rank])[0]
    assert "falls with the rank, slope -0.50" in said
    assert "0.25 times [0.25, 0.25] from rank 2 to 32; rank 64 would want 0.0014." in said
    table = markdown(law_table([fixed, by_rank], "t"))
    assert "| by_rank | alpha ∝ r | 6 | 0.008 | 0.004 | 0.002 | \u22120.50 |" in table
    assert best_rate_over_rank([fixed, by_rank]).figure is not None


def test_a_best_rate_at_an_edge_is_counted() -> None:
    (law,) = laws_of(searched(by_rank={2: 8e-3, 8: 2e-3, 32: 5e-4}))
    assert law.at_edge == 2  # both seeds of rank 32, whose best is below the least that was tried
    assert "2 of 6 best rates lie at an edge" in " ".join(law_table([law], "t").footnotes)
    assert "(2 of 6 best rates lie at an edge of what was tried)." in law_sentences([law])[0]


def test_of_best_rates_at_edges_alone_there_is_no_law() -> None:
    (law,) = laws_of(searched(by_rank={2: 1.0, 8: 1.0, 32: 1.0}))
    assert law.at_edge == 6
    assert law_sentences([law]) == [
        "alpha ∝ r (scaling=by_rank): no law, since every best rate lies at an edge of what was tried."
    ]


def test_what_a_transfer_would_save_and_lose_is_that_of_the_grid() -> None:
    exact = savings_of(searched(by_rank=BY_RANK))
    assert [(each.near, each.trials, each.of) for each in exact] == [
        (1, 11, 15),
        (2, 12, 15),
        (3, 13, 15),
    ]
    assert [each.lost for each in exact] == pytest.approx([0, 0, 0])
    # The third rank wants 8e-3, where the law of the first two, falling, says 2e-3.
    wrong = savings_of(searched(by_rank={2: 8e-3, 8: 4e-3, 32: 1.6e-2}))
    assert wrong[0].lost == pytest.approx(0.1 * math.log(8) ** 2)
    assert "27%" in markdown(saving_table(wrong, "eval/loss", "t"))


def test_two_ranks_are_no_law() -> None:
    assert laws_of(searched(fixed={2: 4e-3, 8: 4e-3})) == []


# Tables and sentences, against SciPy ----------------------------------------------------------------


def test_a_law_is_scipys_line_through_the_logarithms_of_the_best_rates() -> None:
    (law,) = laws_of(searched(by_rank={2: 7e-3, 8: 4.4e-3, 32: 1.7e-3}))
    ranks = np.log([rank for rank, _, _ in law.best])
    rates = np.log([best.rate for _, _, best in law.best])
    line = stats.linregress(ranks, rates)
    reach = stats.t(4).ppf(0.975) * line.stderr
    cells = {
        c.key: cell
        for c, cell in zip(
            law_table([law], "t").columns, law_table([law], "t").rows[0], strict=True
        )
    }
    shown = f"[{line.slope - reach:+.2f}, {line.slope + reach:+.2f}]".replace("-", "\u2212")
    assert cells["slope"].value == pytest.approx(line.slope)
    assert cells["slope"].number == f"{line.slope:+.2f}"
    assert cells["slope interval"].text == shown
    ahead = math.exp(line.intercept + line.slope * math.log(64))
    assert cells["next"].text == f"{ahead:.2g} (r = 64)"
    residuals = rates - line.intercept - line.slope * ranks
    sigma = math.sqrt(float(residuals @ residuals) / 4)
    away = (math.log(64) - ranks.mean()) ** 2 / float(((ranks - ranks.mean()) ** 2).sum())
    half = stats.t(4).ppf(0.975) * sigma * math.sqrt(1 + 1 / 6 + away)
    assert (
        cells["next interval"].text
        == f"[{ahead * math.exp(-half):.2g}, {ahead * math.exp(half):.2g}]"
    )
    assert [cells[f"rank {rank}"].text for rank in (2, 8, 32)] == ["0.007", "0.0044", "0.0017"]
    assert cells["rank 2"].n == 2
    assert cells["n"].text == "6"
    (said,) = law_sentences([law])
    factor, *ends = (16**slope for slope in (line.slope, line.slope - reach, line.slope + reach))
    moves = "falls" if line.slope + reach < 0 else "is not shown to move"
    assert said == (
        f"alpha ∝ r (scaling=by_rank): the best rate {moves} with the rank, slope {line.slope:+.2f} {shown}, "
        f"{factor:.2g} times [{ends[0]:.2g}, {ends[1]:.2g}] from rank 2 to 32; "
        f"rank 64 would want {ahead:.2g}."
    )


def test_a_rate_that_grows_with_the_rank_rises_and_one_that_scatters_is_not_shown_to_move() -> None:
    (rising,) = laws_of(searched(by_rank={2: 2e-3, 8: 4e-3, 32: 8e-3}))
    assert "the best rate rises with the rank, slope +0.50" in law_sentences([rising])[0]
    (still,) = laws_of(searched(by_rank={2: 2e-3, 8: 8e-3, 32: 2.5e-3}))
    assert "the best rate is not shown to move" in law_sentences([still])[0]
    assert law_sentences([]) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "alpha ∝ r"),
        ({"lora.rslora": True}, "alpha ∝ r√r"),
        ({"lora.alpha_over_rank": None, "lora.alpha": 16.0}, "alpha fixed"),
        ({"lora.alpha_over_rank": None, "lora.alpha": 16.0, "lora.rslora": True}, "alpha ∝ √r"),
    ],
)
def test_how_alpha_goes_with_the_rank_is_said(settings: dict[str, Any], words: str) -> None:
    sweep = searched(by_rank=BY_RANK)
    for each in sweep.rows:
        each.update(settings)
    assert [law.scaling for law in laws_of(sweep)] == [words]


def test_a_law_takes_three_ranks_of_three_rates_that_counted() -> None:
    sweep = searched(by_rank=BY_RANK)
    few = [each for each in sweep.rows if each["lora.rank"] != 2 or each["optim.lr"] in RATES[1:4]]
    assert len(laws_of(replace(sweep, rows=few))) == 1
    fewer = [
        each for each in sweep.rows if each["lora.rank"] != 2 or each["optim.lr"] in RATES[1:3]
    ]
    assert laws_of(replace(sweep, rows=fewer)) == []
    broken = [
        row | {"status": RunStatus.diverged} if row["lora.rank"] == 2 else row for row in sweep.rows
    ]
    assert laws_of(replace(sweep, rows=broken)) == []
    unmeasured = [dict(row) for row in sweep.rows]
    for each in unmeasured:
        if each["lora.rank"] == 2:
            del each["after.eval/loss"]
    assert laws_of(replace(sweep, rows=unmeasured)) == []
    placeless = [row | {"point": {"lora.rank": "2"}} for row in sweep.rows]
    assert laws_of(replace(sweep, rows=placeless)) == []


def test_of_a_score_the_largest_is_best() -> None:
    sweep = searched(by_rank=BY_RANK)
    turned = [row | {"after.eval/exact_match": 5 - row["after.eval/loss"]} for row in sweep.rows]
    scores = replace(sweep, rows=turned, objectives={"eval/exact_match": "maximize"})
    (law,), (same,) = laws_of(scores), laws_of(sweep)
    assert law.law.slope == pytest.approx(same.law.slope)
    wrong = searched(by_rank={2: 8e-3, 8: 4e-3, 32: 1.6e-2})
    turned = [row | {"after.eval/exact_match": 5 - row["after.eval/loss"]} for row in wrong.rows]
    scores = replace(wrong, rows=turned, objectives={"eval/exact_match": "maximize"})
    lost = [each.lost for each in savings_of(scores)]
    assert lost == pytest.approx([each.lost for each in savings_of(wrong)])
    assert lost[0] > 0


def test_savings_are_of_a_whole_grid_with_more_rates_than_are_tried() -> None:
    sweep = searched(by_rank=BY_RANK)
    three = [row for row in sweep.rows if row["optim.lr"] in RATES[:3]]
    four = [row for row in sweep.rows if row["optim.lr"] in RATES[:4]]
    assert savings_of(replace(sweep, rows=three)) == []
    assert [each.of for each in savings_of(replace(sweep, rows=four))] == [12, 12, 12]
    two_ranks = [row for row in sweep.rows if row["lora.rank"] != 2]
    assert savings_of(replace(sweep, rows=two_ranks)) == []
    assert savings_of(replace(sweep, rows=sweep.rows[:-2])) == [], "a point is missing"
    seedless = [row for row in sweep.rows if row["seed"] == 0]
    assert len(savings_of(replace(sweep, rows=seedless))) == 3


def test_a_table_of_savings_says_what_is_saved_and_lost_in_the_metric_s_digits() -> None:
    wrong = savings_of(searched(by_rank={2: 8e-3, 8: 4e-3, 32: 1.6e-2, 64: 1.6e-2}))
    table = saving_table(wrong, "eval/loss", "t")
    keys = [column.key for column in table.columns]
    assert keys == ["scaling", "near", "trials", "of", "saved", "lost", "most"]
    lines = [dict(zip(keys, [cell.text for cell in line], strict=True)) for line in table.rows]
    for line, each in zip(lines, wrong, strict=True):
        assert (line["near"], line["trials"], line["of"]) == (
            str(each.near),
            str(each.trials),
            "20",
        )
        assert line["saved"] == f"{100 * (20 - each.trials) / 20:.0f}%"
        assert line["lost"] == f"{each.lost:.4f}"
        assert line["most"] == f"{each.most:.4f}"
    first = wrong[0]
    assert first.trials == 10 + 2
    # Half a rate a fourfold rank says 2e-3 at 32 and 1.4e-3 at 64, where 1e-3 is the nearest.
    losses = [0.1 * math.log(8) ** 2, 0.1 * math.log(16) ** 2]
    assert (first.lost, first.most) == pytest.approx((sum(losses) / 2, losses[1]))
    assert table.columns[5].header == "eval loss lost, mean (nats/token)"


def test_a_law_is_drawn_with_its_points_its_line_and_what_lies_ahead() -> None:
    laws = laws_of(searched(fixed=FIXED, by_rank={2: 8e-3, 8: 2e-3, 32: 5e-4}))
    drawing = best_rate_over_rank(laws)
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "8", "32", "64"]
    lines = [np.asarray(line.get_xydata(), float) for line in axes.lines]
    ends = [line for line in lines if line[:, 0].tolist() == [2.0, 64.0]]
    for law, line in zip(laws, ends, strict=True):
        assert line[:, 1] == pytest.approx([law.law.predicted(2), law.law.predicted(64)])
    marks = [line for line, at in zip(axes.lines, lines, strict=True) if len(at) == 1]
    assert len(marks) == 12
    hollow = [line for line in marks if line.get_markerfacecolor() == "white"]
    assert [float(np.asarray(line.get_xdata())[0]) for line in hollow] == [32.0, 32.0]
    bars = [at for at in lines if len(at) == 2 and at[0, 0] == at[1, 0]]
    for law, bar in zip(laws, bars, strict=True):
        assert bar[:, 1] == pytest.approx(law.law.prediction_interval(64))
        assert 60 < bar[0, 0] < 75
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "alpha fixed: slope +0.00",
        f"alpha ∝ r: slope {laws[1].law.slope:+.2f}",
    ]
    assert drawing.run_ids == (*laws[0].run_ids, *laws[1].run_ids)
    assert best_rate_over_rank([]).reason == "no rank has rates enough on both sides of its best"


def test_a_place_without_a_law_does_not_hide_the_next() -> None:
    sweep = searched(few={2: 4e-3, 8: 4e-3}, by_rank=BY_RANK)
    assert [law.place for law in laws_of(sweep)] == [{"scaling": "by_rank"}]
    assert {tuple(each.place.values()) for each in savings_of(sweep)} == {("by_rank",)}
    first = sweep.rows[0] | {"run_id": "unmeasured"}
    del first["after.eval/loss"]
    assert laws_of(replace(sweep, rows=[first, *sweep.rows])) == laws_of(sweep)
