"""Columns of comparisons: who is best, whom the others are set against, and how a p-value is printed."""

from typing import Any

import pytest
from scipy import stats as scipy_stats

from analysis.cells import Cell, Table
from analysis.compare import among_best, best_index, bounds, marked_best, p_text, paired
from analysis.printing import scale_of
from analysis.spec import Spec
from analysis.tables import build_table
from harness.records.metrics import Direction
from harness.records.record import MeasuredIn
from tests.analysis.records_for_tables import Run, rows, seeds

stats: Any = scipy_stats


def cells(*values: float | None) -> list[Cell]:
    return [Cell(text="", value=value) for value in values]


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        ((3.0, 1.0, 2.0), 1, 0),
        ((None, 2.0, 1.0), 2, 1),
        ((1.0, 1.0, 2.0), 0, 2),  # the first of equal ones
        ((2.0, 1.0, 2.0), 1, 0),
        ((1.0, 1.0), None, None),
        ((1.0, None), None, None),
        ((), None, None),
    ],
)
def test_the_best_is_the_least_or_the_most_of_different_values(values, least, most) -> None:
    assert best_index(cells(*values), Direction.minimize) == least
    assert best_index(cells(*values), Direction.maximize) == most
    assert best_index(cells(*values), Direction.neither) is None


def test_those_that_equal_the_best_are_bold_and_those_not_set_apart_are_tied() -> None:
    values = [{0: 1.0, 1: 1.2}, {0: 1.2, 1: 1.0}, {0: 1.15, 1: 1.1}, {0: 9.0, 1: 9.1}, {0: 1.3}, {}]
    means = [1.1, 1.1, 1.125, 9.05, 1.3, None]
    marked = marked_best(cells(*means), values, Direction.minimize)
    assert [cell.best for cell in marked] == [True, True, False, False, False, False]
    assert [cell.tied for cell in marked] == [False, False, True, False, False, False]
    found = among_best(values, Direction.minimize)
    assert [each is None for each in found] == [False] * 4 + [True, True]
    equal = cells(1.0, 1.0)
    assert marked_best(equal, [{0: 1.0, 1: 1.0}] * 2, Direction.minimize) == equal
    largest = marked_best(cells(1.1, 9.05), [values[0], values[3]], Direction.maximize)
    assert [cell.best for cell in largest] == [False, True]
    assert among_best([{0: 1.0}, {0: 2.0}], Direction.minimize) == [None, None]


def test_differences_are_over_the_seeds_that_both_have() -> None:
    assert paired({0: 3.0, 1: 5.0, 2: 7.0}, {2: 1.0, 0: 1.0, 9: 4.0}) == [2.0, 6.0]
    assert paired({0: 1.0}, {1: 1.0}) == []


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "<0.001"), (0.00049, "<0.001"), (0.0006, "0.001"), (0.0123, "0.012"), (1.0, "1.000")],
)
def test_a_small_p_is_named_as_such(p: float, text: str) -> None:
    assert p_text(p) == text


def test_an_interval_has_both_ends_or_none() -> None:
    scale = scale_of("eval/loss", [])
    assert bounds(-0.5, 0.25, scale) == "[-0.5000, +0.2500]"
    assert bounds(None, 0.25, scale) == bounds(-0.5, None, scale) == "—"


def table_of(runs: list[Run], **options: Any) -> Table:
    given = {"name": "t", "title": "T", "rows": ("quant.format",), "columns": ("eval/loss",)}
    return build_table(Spec(**given | options), rows(*runs))


def column(table: Table, key: str) -> list[Cell]:
    index = [each.key for each in table.columns].index(key)
    return [line[index] for line in table.rows]


def test_every_line_is_set_against_the_one_that_is_otherwise_the_same() -> None:
    runs = [
        *seeds(1.0, 1.1, 1.3, rank=2),
        *seeds(1.5, 1.4, 1.9, rank=2, format="int4"),
        *seeds(2.0, 2.2, 2.1, rank=8),
        *seeds(2.5, 2.9, 2.6, rank=8, format="int4"),
        *seeds(7.0, rank=8, format="fp4"),
        *seeds(7.0, 7.1, rank=16, format="fp4"),  # there is no nf4 of rank 16
    ]
    table = table_of(runs, rows=("quant.format", "lora.rank"), against={"quant.format": "nf4"})
    keys = [tuple(cell.text for cell in line[:2]) for line in table.rows]
    shown = dict(zip(keys, column(table, "difference"), strict=True))
    assert {key: cell.text for key, cell in shown.items()} == {
        ("fp4", "8"): "+5.0000",
        ("fp4", "16"): "—",
        ("int4", "2"): "+0.4667",
        ("int4", "8"): "+0.5667",
        ("nf4", "2"): "reference",
        ("nf4", "8"): "reference",
    }
    ids = {run.record().run_id for run in runs if run.rank == 2}
    assert set(shown["int4", "2"].run_ids) == ids
    assert shown["int4", "2"].n == 3
    ps = [float(stats.ttest_1samp(gaps, 0).pvalue) for gaps in ((0.5, 0.3, 0.6), (0.5, 0.7, 0.5))]
    low, high = sorted(ps)
    expected = {low: f"{2 * low:.3f}", high: f"{max(2 * low, high):.3f}"}
    p_cells = dict(zip(keys, column(table, "p"), strict=True))
    assert [p_cells["int4", "2"].text, p_cells["int4", "8"].text] == [expected[p] for p in ps]
    assert p_cells["int4", "2"].number == p_cells["int4", "2"].text
    assert p_cells["fp4", "8"].text == "—", "one pair is not tested"
    assert [each.header for each in table.columns[-3:]] == [
        *("Δ eval loss (nats/token)", "interval"),
        "p (Holm)",
    ]
    certain = table_of(
        [*seeds(1.0, 1.1), *seeds(2.0, 2.1, format="int4")], against={"quant.format": "nf4"}
    )
    p = column(certain, "p")[0]
    assert (p.text, p.number) == ("<0.001", None)


def test_without_any_reference_or_two_seeds_there_is_no_column() -> None:
    def names(table: Table) -> set[str]:
        return {each.key for each in table.columns}

    pair = [*seeds(1.0, 1.1), *seeds(2.0, 2.3, format="int4")]
    assert "difference" not in names(table_of(pair, against={"quant.format": "fp4"}))
    assert "to best" in names(table_of(pair, against_best=True))
    ones = [Run(loss=1.0), Run(loss=2.0, format="int4")]
    assert "to best" not in names(table_of(ones, against_best=True))
    counted = [*seeds(1.0, 1.0), *seeds(2.0, 2.0, format="int4")]
    assert "to best" not in names(table_of(counted, against_best=True)), "nothing varies"


def test_lines_of_one_seed_have_no_distance_to_the_best() -> None:
    runs = [*seeds(1.0, 1.1), *seeds(2.0, 2.3, format="int4"), Run(loss=3.0, format="none")]
    table = table_of(runs, against_best=True)
    assert [cell.text for cell in column(table, "to best")][-1] == "—"
    shown = column(table, "to best")[:2]
    assert [cell.number for cell in shown] == [cell.text for cell in shown]
    assert [cell.n for cell in shown] == [2, 2]
    assert all(cell.text.startswith("[") for cell in column(table, "to best interval")[:2])


def test_a_difference_of_bytes_is_in_a_unit_in_which_it_can_be_read() -> None:
    """What a run costs is nobody's replicate: runs of two formats share no seed, and are not paired."""
    runs = [
        Run(format=f, seed=s, peak=8 * 2.0**20 + more + 512 * s, measured_in=MeasuredIn.solo)
        for f, more in (("nf4", 0.0), ("int4", 3072.0))
        for s in (0, 1)
    ]
    table = table_of(runs, columns=("memory/peak_bytes",), against_best=True)
    units = {each.key: each.unit for each in table.columns}
    assert (units["memory/peak_bytes"], units["to best"]) == ("MiB", "KiB")
    assert [cell.text for cell in column(table, "to best")] == ["+3.00", "-3.00"]


def test_a_line_without_a_value_is_on_no_front() -> None:
    runs = [
        Run(format="nf4", loss=1.0, adapter=5.0),
        Run(format="int4", loss=2.0),
        Run(format="none", loss=2.0, adapter=9.0),
        Run(format="fp4", loss=0.5, adapter=9.0),
    ]
    front = {"eval/loss": Direction.minimize, "memory/adapter_bytes": Direction.minimize}
    table = table_of(runs, columns=("eval/loss", "memory/adapter_bytes"), front=front)
    marks = {
        line[0].text: cell.text
        for line, cell in zip(table.rows, column(table, "front"), strict=True)
    }
    assert marks == {"nf4": "yes", "int4": "no", "none": "no", "fp4": "yes"}


def test_the_first_column_is_compared_and_best_first() -> None:
    runs = [
        Run(format=f, seed=s, loss=loss + s * wide, match=match + s / 10)
        for f, loss, match, wide in (("nf4", 1.0, 0.2, 0.1), ("int4", 2.0, 0.4, 0.2))
        for s in (0, 1)
    ]
    both = {"columns": ("eval/loss", "eval/exact_match"), "against": {"quant.format": "nf4"}}
    table = table_of(runs, **both)
    assert [cell.text for cell in column(table, "difference")] == ["+1.0500", "reference"]
    turned = {**both, "columns": ("eval/exact_match", "eval/loss")}
    assert [cell.text for cell in column(table_of(runs, **turned), "difference")] == [
        *("+0.200", "reference")
    ]
    first = table_of(runs, columns=both["columns"], best_first=True)
    assert [line[0].text for line in first.rows] == ["nf4", "int4"]
    other = table_of(runs, columns=turned["columns"], best_first=True)
    assert [line[0].text for line in other.rows] == ["int4", "nf4"]
