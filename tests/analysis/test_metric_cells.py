"""Cells of one metric: header, number, spread, remarks and the runs behind, or what became of the runs."""

from typing import Any

import pytest
from scipy import stats as scipy_stats

from analysis.crossed import crossed
from analysis.groups import grouped
from analysis.metric_cells import metric_column
from analysis.shares import is_share, share_interval
from analysis.spec import Spec
from harness.records.metrics import Direction
from harness.records.record import MeasuredIn, RunStatus
from harness.records.scores import RowScores
from tests.analysis.records_for_tables import Run, rows, seeds

stats: Any = scipy_stats
LOSS, MATCH, PEAK = "eval/loss", "eval/exact_match", "memory/peak_bytes"


def spec(**options: Any) -> Spec:
    return Spec(
        **{"name": "t", "title": "T", "rows": ("quant.format",), "columns": (LOSS,)} | options
    )


def column(runs: list[Run], name: str = LOSS):
    return metric_column(name, grouped(spec(), rows(*runs)))


def test_a_header_has_the_metric_s_label_unit_and_direction_and_its_phase() -> None:
    after, _, _ = column(seeds(1.0))
    assert (after.key, after.header) == (LOSS, "eval loss (nats/token) ↓")
    before, cells, values = column([Run(loss=1.0, before=4.0)], "before.eval/loss")
    assert before.key == "before.eval/loss"
    assert before.label == "eval loss before"
    assert before.direction is Direction.neither, "nothing was done yet"
    assert cells[0].text == "4.0000"
    assert values == [{0: 4.0}]


def test_a_cell_holds_its_mean_its_interval_its_number_and_its_runs() -> None:
    _, (cell,), values = column(seeds(2.0, 3.0, 7.0))
    low, high = stats.t.interval(0.95, 2, 4.0, stats.sem([2.0, 3.0, 7.0]))
    assert (cell.value, cell.number, cell.n) == (4.0, "4.0000", 3)
    assert cell.interval is not None
    assert (cell.interval.low, cell.interval.high) == pytest.approx((low, high))
    assert cell.spread == f"± {(high - low) / 2:.4f}"
    assert cell.text == f"4.0000 {cell.spread}"
    assert cell.note is None
    assert cell.run_ids == tuple(run.record().run_id for run in seeds(2.0, 3.0, 7.0))
    assert values == [{0: 2.0, 1: 3.0, 2: 7.0}]


def test_a_combination_without_runs_and_one_without_values_are_dashes() -> None:
    (group,) = grouped(spec(), rows(Run(match=0.5)))
    _, (none, empty), values = metric_column(LOSS, [None, group])
    assert (none.text, empty.text) == ("—", "—")
    assert values == [{}, {}]


def test_of_runs_of_which_none_completed_it_is_said_what_became_of_them() -> None:
    failed = [
        Run(status=RunStatus.diverged),
        Run(seed=1, status=RunStatus.out_of_memory),
        Run(seed=2, status=RunStatus.diverged),
    ]
    _, (cell,), _ = column(failed)
    assert cell.text == "OOM, diverged"
    assert len(cell.run_ids) == 3


def test_what_is_not_finite_is_no_mean_and_no_value_to_compare() -> None:
    _, (cell,), values = column(seeds(1.0, float("nan")))
    assert (cell.text, cell.n, cell.value) == ("not finite", 2, None)
    assert values == [{}]


def test_fewer_values_than_runs_are_remarked() -> None:
    runs = [Run(loss=1.0), Run(seed=1, loss=3.0), Run(seed=2, match=0.5)]
    _, (cell,), _ = column(runs)
    assert cell.note == "(n=2)"
    _, (one,), _ = column(runs[1:])
    assert one.note == "(n=1)", "its line has two runs"
    _, (alone,), _ = column(runs[:1])
    assert alone.note is None, "the column n says it"


def test_what_is_counted_has_no_interval_where_it_does_not_vary() -> None:
    same = [Run(seed=s, loss=1.0, adapter=2048.0) for s in (0, 1)]
    header, (cell,), _ = column(same, "memory/adapter_bytes")
    assert (cell.text, cell.note, header.unit) == ("2.00", None, "KiB")
    other = [Run(seed=s, loss=1.0, adapter=2048.0 + 1024 * s) for s in (0, 1)]
    _, (varied,), _ = column(other, "memory/adapter_bytes")
    assert varied.text.startswith("2.50 ± ")


def test_costs_that_a_cohort_shares_are_left_out_and_marked() -> None:
    runs = [Run(seed=s, loss=1.0, peak=2.0**20 * (1 + s)) for s in (0, 1)]
    _, (left,), _ = column(runs, PEAK)
    assert (left.text, left.note) == ("—", "†")
    solo = [Run(loss=1.0, peak=2.0**20, measured_in=MeasuredIn.solo)]
    _, (own,), _ = column(solo, PEAK)
    assert (own.text, own.note) == ("1.00", None)


def test_thousands_are_set_apart_in_mean_and_spread() -> None:
    runs = [
        Run(seed=s, loss=1.0, step_ms=1000.0 * (1 + 2 * s), measured_in=MeasuredIn.solo)
        for s in (0, 1)
    ]
    _, (cell,), _ = column(runs, "throughput/step_ms")
    assert cell.text == "2,000.0 ± 12,706.2"
    assert cell.number == "2000.0"


# Shares --------------------------------------------------------------------------------------------


def scored(*table: tuple[int, ...]) -> list[Any]:
    found = rows(*(Run(seed=s, match=sum(row) / len(row)) for s, row in enumerate(table)))
    for row, answers in zip(found, table, strict=True):
        row[f"rows.{MATCH}"] = RowScores(
            rows=tuple(range(len(answers))),
            sums=tuple(map(float, answers)),
            weights=(1,) * len(answers),
        )
    return found


TABLE = ((1, 1, 0, 1, 0), (1, 0, 0, 1, 1), (1, 1, 0, 1, 1))


def test_a_share_stands_with_the_ends_of_its_interval_over_rows_too() -> None:
    found = scored(*TABLE)
    _, (cell,), _ = metric_column(MATCH, grouped(spec(columns=(MATCH,)), found))
    whole = crossed([row[f"rows.{MATCH}"] for row in found])
    assert whole is not None
    expected = whole.share_interval()
    assert cell.interval is not None
    assert (cell.interval.low, cell.interval.high) == (expected.low, expected.high)
    assert cell.interval.deviation == pytest.approx(stats.tstd([0.6, 0.6, 0.8]))
    assert cell.spread == f"[{expected.low:.3f}, {expected.high:.3f}]"


def test_without_its_rows_a_share_has_an_interval_from_its_errors() -> None:
    found = scored(*TABLE)
    for row in found:
        row |= {f"after.{MATCH}.standard_error": 0.2, f"after.{MATCH}.n": 5}
    whole = share_interval(found, MATCH)
    del found[0][f"rows.{MATCH}"]
    rough = share_interval(found, MATCH)
    assert whole is not None
    assert rough is not None
    assert rough != whole
    for row in found:
        row.pop(f"rows.{MATCH}", None)
    assert share_interval(found, MATCH) == rough
    found[0][f"after.{MATCH}.n"] = None
    assert share_interval(found, MATCH) is None, "of how many answers it is not known"
    assert share_interval(found[:1], MATCH) is None
    assert share_interval(found, LOSS) is None


@pytest.mark.parametrize("value", [1.25, -0.25])
def test_what_is_no_share_has_the_interval_of_any_mean(value: float) -> None:
    found = scored(*TABLE)
    for row in found:
        row |= {f"after.{MATCH}.standard_error": 0.2, f"after.{MATCH}.n": 5}
    assert share_interval(found, MATCH) is not None
    found[1][f"after.{MATCH}"] = value
    assert share_interval(found, MATCH) is None
    _, (cell,), _ = metric_column(MATCH, grouped(spec(columns=(MATCH,)), found))
    assert cell.interval is not None
    low, high = cell.interval.low, cell.interval.high
    assert low is not None
    assert high is not None
    assert low <= cell.interval.mean <= high


@pytest.mark.parametrize(
    ("name", "share"),
    [
        (MATCH, True),
        ("eval/token_accuracy", True),
        (LOSS, False),
        ("eval/arc_easy/acc", True),
        ("eval/arc_easy/acc_norm", True),
        ("eval/wikitext/word_perplexity", False),
    ],
)
def test_which_metrics_are_shares(name: str, share: bool) -> None:
    assert is_share(name) is share
