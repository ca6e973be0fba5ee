"""Footnotes: what a reader of a table is told, by what its rows and cells are."""

from typing import Any

import pytest

from analysis.cells import Cell
from analysis.footnotes import how_tested, mixed
from analysis.frame import Role
from analysis.inference import Method
from analysis.spec import Spec
from analysis.tables import build_table
from harness.records.metrics import METRICS
from harness.records.record import RESUMED
from tests.analysis.records_for_tables import Run, rows, seeds


def notes(runs: list[Run], **options: Any) -> list[str]:
    given: dict[str, Any] = {"rows": ("quant.format",), "columns": ("eval/loss",)} | options
    return build_table(Spec(name="t", title="T", **given), rows(*runs)).footnotes


PAIR = [*seeds(1.0, 2.0), *seeds(3.0, 4.0, format="int4")]


def test_what_stands_after_the_mean_is_said() -> None:
    said = "Cells are means ± half-widths of 95 % t-intervals over the n seeds."
    assert notes(PAIR)[0] == said
    assert notes(seeds(1.0)) == ["n=1: one run, so no interval."]


def test_what_bold_and_tied_mean_is_said_where_there_are_such() -> None:
    across = notes([Run(rank=2, loss=1.0), Run(rank=8, loss=2.0)], across="lora.rank")
    assert "Bold: the best mean of each line." in across
    marked = notes([*seeds(1.0, 1.2), *seeds(1.1, 1.25, format="int4")])
    assert "Bold: the best mean of each column." in marked
    assert any("for all lines of a column together" in note for note in marked)
    assert not any("Bold" in note for note in notes(seeds(1.0, 2.0)))


@pytest.mark.parametrize(("pairs", "leans"), [(2, True), (5, True), (6, False)])
def test_few_pairs_lean_on_a_distribution(pairs: int, leans: bool) -> None:
    said = how_tested("all", pairs, Method.paired_t)
    assert said.startswith("Two-sided paired t test; p by Holm's procedure (1979) over all;")
    assert (f"With {pairs} pairs it leans" in said) is leans
    assert "leans" not in how_tested("all", pairs, Method.sign_flips)


def test_a_comparison_is_explained_as_far_as_there_are_pairs() -> None:
    against = {"against": {"quant.format": "nf4"}}
    (one,) = [n for n in notes([*seeds(1.0), *seeds(2.0, format="int4")], **against) if "Δ" in n]
    assert one == "Δ: mean difference to the line with quant.format=nf4, paired over shared seeds."
    (two,) = [note for note in notes(PAIR, **against) if note.startswith("Δ")]
    assert two.startswith(one)
    assert "With 2 pairs it leans" in two
    absent = notes(PAIR, against={"quant.format": "fp4"})
    assert "No line has quant.format=fp4, with which the others were to be compared." in absent
    best = notes(PAIR, against_best=True)
    assert any(note.startswith("Δ to the best other: constrained 95 %") for note in best)
    two_keys = {
        "rows": ("quant.format", "lora.rank"),
        "against": {"quant.format": "nf4", "lora.rank": 9},
    }
    assert any(
        "No line has quant.format=nf4, lora.rank=9" in note for note in notes(PAIR, **two_keys)
    )


@pytest.mark.parametrize(("rates", "among"), [((2, 2), "2"), ((1, 2), "1 to 2")])
def test_a_choice_is_named_with_among_how_many(rates: tuple[int, int], among: str) -> None:
    runs = [
        Run(format=f, lr=0.1 * (n + 1), loss=1.0 + n)
        for f, count in zip(("nf4", "int4"), rates, strict=True)
        for n in range(count)
    ]
    columns = ("eval/loss", "eval/exact_match")
    chosen = notes(runs, choose=("optim.lr",), columns=columns)
    (note,) = [note for note in chosen if "setting" in note]
    assert note.startswith(
        f"optim.lr: for each line the setting with the best mean eval/loss among {among},"
    )
    assert not any("setting" in note for note in notes(PAIR))


def test_where_a_line_has_one_setting_the_search_chose_it_before() -> None:
    runs = [Run(format=f, lr=0.1, loss=1.0, role="confirmation") for f in ("nf4", "int4")]
    said = "optim.lr: each line's best of the search, chosen before these runs."
    assert said in notes(runs, choose=("optim.lr",), role=Role.confirmation)
    assert not any("optim.lr" in note for note in notes(runs, choose=("optim.lr",)))


def test_trials_of_a_search_are_no_result_but_their_costs_are() -> None:
    runs = [Run(loss=1.0, adapter=5.0, role="search")]
    assert any("not a result" in note for note in notes(runs, role=Role.search))
    costs = notes(runs, role=Role.search, columns=("memory/adapter_bytes",))
    assert not any("not a result" in note for note in costs)
    assert not any("not a result" in note for note in notes(runs))


def test_what_a_cohort_shares_is_left_out() -> None:
    runs = [Run(loss=1.0, peak=5.0)]
    columns = ("eval/loss", "memory/peak_bytes")
    (left_out,) = [note for note in notes(runs, columns=columns) if "cohort" in note]
    assert left_out.endswith("not the cost of a run alone, so left out.")
    assert METRICS["memory/peak_bytes"].label == "peak memory"


@pytest.mark.parametrize(
    ("count", "more"), [(1, None), (4, ""), (5, "; and 1 more"), (6, "; and 2 more")]
)
def test_of_many_machines_four_are_named_the_frequent_first(count: int, more: str | None) -> None:
    given = [{"provenance.host": f"h{n}", "provenance.dirty": False} for n in range(count)]
    given += given[-1:]
    found = mixed(given)
    if more is None:
        assert found == []
        return
    (line,) = found
    assert line.startswith(f"Runs of {count} machines: h{count - 1} (2 runs); h0 (1 run); ")
    assert line.endswith(f"{more}.")
    assert line.count("run)") + line.count("runs)") == 4


def test_what_records_note_is_counted_but_not_that_a_run_went_on() -> None:
    runs = [
        Run(seed=n, loss=1.0, notes=(*(f"note {m}" for m in range(n)), f"{RESUMED} at 3"))
        for n in range(11)
    ]
    found = [note for note in notes(runs) if "note" in note]
    assert found[:2] == ["note 0 (10 runs).", "note 1 (9 runs)."]
    assert len(found) == 9
    assert found[-1] == "2 further notes stand in the records."
    assert [n for n in notes(runs[:9]) if "note" in n][-1] == "note 7 (1 run)."
    assert not any(RESUMED in note for note in notes(runs))


def test_a_cell_s_mark_stands_behind_its_text() -> None:
    assert Cell(text="1.0", note="(n=1)").marked == "1.0 (n=1)"
