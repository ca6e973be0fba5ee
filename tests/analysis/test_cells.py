"""Rows as cells: what counts as a replicate, what is shared with probes, and what a caption counts."""

import math

import pytest

from analysis.figures.cells import (
    SEARCH_VALUE,
    axis_label,
    best_first,
    cells_of,
    chosen,
    counts,
    failures,
    is_replicate,
    lower_is_better,
    runs_of,
    seeds_text,
    value_of,
)
from analysis.figures.factors import LEARNING_RATE, RANK
from harness.records.record import MeasuredIn, RunStatus
from tests.analysis.rows_for_figures import Run, rows

LOSS, MATCH, PEAK = "eval/loss", "eval/exact_match", "memory/peak_bytes"


def test_a_cell_is_the_runs_that_differ_in_their_seed() -> None:
    found = rows(
        *(Run(rank=r, seed=s, loss=float(r + s)) for r in (2, 8) for s in (0, 1)),
        Run(rank=8, seed=2, loss=9.0, status=RunStatus.diverged),
        Run(rank=8, seed=3, loss=math.inf),
    )
    two, eight = cells_of(found)
    assert (two.setting(RANK), two.values(LOSS), two.mean(LOSS)) == (2, [2.0, 3.0], 2.5)
    assert two.settings == (2,)
    assert len(eight.rows) == 4
    assert len(eight.completed()) == 3
    assert eight.values(LOSS) == [8.0, 9.0], "what diverged or is infinite is no value"
    assert eight.run_ids() == [row["run_id"] for row in found[2:]]
    assert eight.mean("eval/rouge_l") is None
    assert eight.interval("eval/rouge_l") is None
    interval = two.interval(LOSS)
    assert interval is not None
    assert (interval.mean, interval.n) == (2.5, 2)


def test_a_probe_joins_every_cell_that_costs_the_same_and_is_no_run() -> None:
    found = rows(
        *(Run(rank=r, lr=lr, loss=1.0, peak=9.0, measured_in=MeasuredIn.cohort)
          for r in (2, 8) for lr in (1e-3, 1e-2)),
        Run(rank=2, lr=1.0, steps=3, split="test", loss=5.0, peak=7.0,
            measured_in=MeasuredIn.probe),
    )  # fmt: skip
    cells = cells_of(found)
    assert [cell.mean(PEAK) for cell in cells] == [7.0, 7.0, None, None]
    assert [cell.mean(LOSS) for cell in cells] == [1.0] * 4, "a probe learns nothing"
    assert [len(cell.probes) for cell in cells] == [1, 1, 0, 0]
    assert cells[0].run_ids() == [found[0]["run_id"], found[4]["run_id"]]
    assert runs_of(found) == found[:4]
    assert [is_replicate(row) for row in found] == [True] * 4 + [False]
    named = rows(Run(role="probe"))
    assert runs_of(named) == []


def test_what_counts_of_a_run() -> None:
    solo, cohort, probe, failed = rows(
        Run(measured_in=MeasuredIn.solo),
        Run(measured_in=MeasuredIn.cohort),
        Run(measured_in=MeasuredIn.probe),
        Run(status=RunStatus.failed),
    )
    each = (solo, cohort, probe, failed)
    assert [counts(row, LOSS) for row in each] == [True, True, False, False]
    assert [counts(row, PEAK) for row in each] == [True, False, True, False]
    assert value_of({f"after.{LOSS}": 0.0, LOSS: 5.0}, LOSS) == 0.0
    assert value_of({LOSS: 5.0}, LOSS) == 5.0


@pytest.mark.parametrize(("metric", "first"), [(LOSS, 2), (MATCH, 8)])
def test_the_best_cell_is_first_by_what_the_search_saw_or_its_mean(metric: str, first: int) -> None:
    found = rows(*(Run(rank=r, loss=float(r), exact=r / 10) for r in (2, 8, 4)), Run(rank=16))
    ranked = best_first(cells_of(found), metric)
    assert [cell.setting(RANK) for cell in ranked] == ([2, 4, 8] if first == 2 else [8, 4, 2])
    assert lower_is_better(metric) is (metric == LOSS)
    for row, seen in zip(found, (0.3, 0.1, 0.2), strict=False):
        row[SEARCH_VALUE] = seen
    by_search = [cell.setting(RANK) for cell in best_first(cells_of(found), metric)]
    assert by_search == ([8, 4, 2] if metric == LOSS else [2, 4, 8])


def test_of_cells_that_share_a_place_the_best_stands_and_the_most_are_counted() -> None:
    found = rows(
        *(Run(rank=2, lr=lr, loss=loss) for lr, loss in ((1e-3, 3.0), (1e-2, 2.0), (1e-1, 4.0))),
        Run(rank=8, lr=1e-3, loss=1.0),
        Run(rank=16, lr=1e-3),
    )
    best, most = chosen(cells_of(found), LOSS, lambda cell: cell.setting(RANK))
    assert {rank: cell.setting(LEARNING_RATE) for rank, cell in best.items()} == {2: 1e-2, 8: 1e-3}
    assert most == 3
    assert chosen([], LOSS, lambda cell: cell.setting(RANK)) == ({}, 0)


def test_what_did_not_complete_is_counted_in_words() -> None:
    found = rows(
        Run(loss=1.0),
        Run(seed=1, status=RunStatus.out_of_memory),
        Run(seed=2, status=RunStatus.diverged),
        Run(seed=3, status=RunStatus.out_of_memory),
    )
    assert failures(found) == "Not drawn: 1 diverged, 2 out of memory."
    assert failures(found[:1]) == ""


@pytest.mark.parametrize(
    ("seeds", "metric", "text"),
    [
        ((1, 1), LOSS, "One seed a point (n=1), so no intervals."),
        ((2, 2), LOSS, "Mean over seeds, n=2; bars are 95 % t intervals."),
        ((3, 2), LOSS, "Mean over seeds, n=2 to 3; bars are 95 % t intervals."),
        ((4, 3, 2), LOSS, "Mean over seeds, n=2 to 4; bars are 95 % t intervals."),
        ((1, 3), LOSS,
         "Mean over seeds, n=1 to 3; bars are 95 % t intervals (none where n=1)."),
        ((2, 2), MATCH,
         "Mean over seeds, n=2; bars are 95 % Wilson intervals over seeds and rows."),
        ((), LOSS, ""),
    ],
)  # fmt: skip
def test_a_caption_says_how_many_seeds_and_what_the_bars_are(seeds, metric: str, text: str) -> None:
    runs = [
        Run(rank=2 + place, seed=seed, loss=1.0, exact=0.5)
        for place, count in enumerate(seeds)
        for seed in range(count)
    ]
    assert seeds_text(cells_of(rows(*runs)), metric) == text


def test_an_axis_says_its_unit_and_which_side_is_better() -> None:
    assert axis_label(LOSS) == "eval loss (nats/token) ↓"
    assert axis_label(MATCH).endswith(" ↑")
    assert axis_label(PEAK) == "peak memory ↓", "bytes are counted in what the figure says"
    assert "tokens/s" in axis_label("throughput/input_tokens_per_second")
    from harness.records.metrics import METRICS, Direction

    neither = next(name for name, each in METRICS.items() if each.direction is Direction.neither)
    assert not axis_label(neither).endswith(("↑", "↓"))


def test_a_share_has_wilsons_interval_only_where_every_value_is_of_a_whole_run() -> None:
    found = rows(*(Run(seed=s, exact=x) for s, x in enumerate((0.0, 0.1))))
    for row in found:
        row |= {f"after.{MATCH}.standard_error": 0.05, f"after.{MATCH}.n": 40}
    (cell,) = cells_of(found)
    interval = cell.interval(MATCH)
    assert interval is not None
    assert interval.low is not None
    assert interval.low >= 0, "a t interval would reach below"
    found[0][f"after.{MATCH}"] = math.inf
    (cell,) = cells_of(found)
    alone = cell.interval(MATCH)
    assert alone is not None
    assert (alone.mean, alone.low) == (0.1, None)
