"""What a report says of learning rates over ranks, from a search made by hand."""

import math
from pathlib import Path

import pytest

from analysis.figures.rate_law import best_rate_over_rank
from analysis.frame import Row
from analysis.rate_law import law_sentences, law_table, laws_of, saving_table, savings_of
from analysis.render import markdown
from analysis.sources import SweepData
from harness.records.record import MeasuredIn, RunStatus

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


def test_the_factor_between_ranks_has_the_slopes_interval() -> None:
    (law,) = laws_of(searched(by_rank={2: 8e-3, 8: 4e-3, 32: 3e-3}))
    ends = law.law.slope_interval(0.95)
    assert ends is not None
    low, high = (16**end for end in ends)  # rank 32 is 16 times rank 2
    assert low < 3 / 8 < high
    assert f" times [{low:.2g}, {high:.2g}] from rank 2 to 32" in law_sentences([law])[0]


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
