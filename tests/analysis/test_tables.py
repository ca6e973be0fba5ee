"""Tables as objects: what a cell says, what is best and tied, and what the records do not support."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.frame import Role
from analysis.tables import Cell, Spec, Table, TableRefused, build_table
from harness.records.metrics import Direction
from harness.records.record import MeasuredIn, RunStatus
from tests.analysis.records_for_tables import Run, rows, seeds


def spec(**options: Any) -> Spec:
    default: dict[str, Any] = {
        "name": "t",
        "title": "A table",
        "rows": ("quant.format",),
        "columns": ("eval/loss",),
    }
    return Spec(**default | options)


def table_of(runs: list[Run], **options: Any) -> Table:
    return build_table(spec(**options), rows(*runs))


def column(table: Table, key: str) -> list[Cell]:
    (index,) = [i for i, column in enumerate(table.columns) if column.key == key]
    return [row[index] for row in table.rows]


def texts(table: Table, key: str = "eval/loss") -> list[str]:
    return [cell.marked for cell in column(table, key)]


def test_a_cell_is_the_mean_and_its_t_interval() -> None:
    # By hand: mean of 2, 3, 7 is 4, deviation 2.6458, half-width 4.3027 * 2.6458 / sqrt(3) = 6.5724.
    runs = seeds(2.0, 3.0, 7.0)
    assert texts(table_of(runs)) == ["4.0000 ± 6.5724"]


@given(
    losses=st.dictionaries(
        st.tuples(st.sampled_from(["nf4", "int4", "fp4"]), st.integers(0, 3)),
        st.none() | st.floats(0.5, 9.0),
        min_size=1,
    )
)
def test_a_cell_is_the_mean_of_the_values_that_are_there(
    losses: dict[tuple[str, int], float | None],
) -> None:
    runs = [Run(format=name, seed=seed, loss=loss) for (name, seed), loss in losses.items()]
    table = table_of(runs)
    formats = [cell.text for cell in column(table, "quant.format")]
    assert sorted(formats) == sorted({name for name, _ in losses})
    for name, cell, count in zip(
        formats, column(table, "eval/loss"), column(table, "n"), strict=True
    ):
        there = [x for (each, _), x in losses.items() if each == name and x is not None]
        if not there:
            assert cell.text == "—"
            continue
        assert cell.text.split()[0] == f"{sum(there) / len(there):.4f}"
        assert ("±" in cell.text) is (len(there) > 1)
        assert count.text == str(sum(each == name for each, _ in losses))


def test_one_seed_is_a_value_with_n_1_and_no_interval() -> None:
    table = table_of(seeds(2.0))
    assert texts(table) == ["2.0000"]
    assert texts(table, "n") == ["1"]
    assert "n=1: one run, so no interval." in table.footnotes
    mixed = table_of([*seeds(2.0), *seeds(1.0, 2.0, format="int4")])
    assert texts(mixed)[1] == "2.0000 (n=1)"


@pytest.mark.parametrize(
    ("status", "label"), [(RunStatus.out_of_memory, "OOM"), (RunStatus.diverged, "diverged")]
)
def test_out_of_memory_and_divergence_are_results(status: RunStatus, label: str) -> None:
    failed = Run(format="int4", status=status, loss=9.0)
    table = table_of([failed, *seeds(2.0, 3.0), Run(seed=2, status=status)])
    assert texts(table) == [label, "2.5000 ± 6.3531"]
    assert texts(table, "n") == [f"1 {label}", f"2 + 1 {label}"]


def test_what_was_not_measured_is_a_dash() -> None:
    table = table_of(seeds(2.0), columns=("eval/loss", "eval/rouge_l"))
    assert texts(table, "eval/rouge_l") == ["—"]


def test_a_loss_that_is_not_finite_is_not_averaged_away() -> None:
    assert texts(table_of(seeds(2.0, float("inf")))) == ["not finite"]


def test_the_best_is_marked_and_what_cannot_be_told_from_it_is_tied() -> None:
    table = table_of(
        [
            *seeds(1.00, 1.10, 1.20, format="fp4"),
            *seeds(1.01, 1.09, 1.22, format="int4"),  # its differences to fp4 straddle 0
            *seeds(
                1.10, 1.20, 1.30, format="nf4"
            ),  # always .1 above: told apart, though it overlaps
            *seeds(None, format="none"),  # pyright: ignore[reportArgumentType]
        ]
    )
    cells = column(table, "eval/loss")
    assert [cell.best for cell in cells] == [True, False, False, False]
    assert [cell.tied for cell in cells] == [False, True, False, False]
    assert any(note.startswith("≈") for note in table.footnotes)


def test_a_direction_decides_what_is_best() -> None:
    runs = [Run(format="int4", match=0.5), Run(format="nf4", match=0.7)]
    cells = column(table_of(runs, columns=("eval/exact_match",)), "eval/exact_match")
    assert [cell.best for cell in cells] == [False, True]


def test_nothing_is_best_where_all_are_equal() -> None:
    cells = column(table_of([*seeds(1.0), *seeds(1.0, format="int4")]), "eval/loss")
    assert not any(cell.best or cell.tied for cell in cells)


def test_a_key_that_varies_unlisted_is_refused_by_name() -> None:
    runs = [Run(seed=0, loss=1.0), Run(seed=1, loss=2.0, lr=2e-3)]
    with pytest.raises(TableRefused, match=r"optim\.lr varies \(0\.0002, 0\.002\).*add optim\.lr"):
        table_of(runs)
    assert len(table_of(runs, rows=("quant.format", "optim.lr")).rows) == 2


def test_a_key_that_one_run_lacks_is_a_difference() -> None:
    one, other = rows(*seeds(1.0, 2.0))
    del other["optim.lr"]
    with pytest.raises(TableRefused, match=r"optim\.lr varies \(0\.0002, absent\)"):
        build_table(spec(), [one, other])


def test_other_contents_under_the_same_path_are_a_difference() -> None:
    runs = [Run(seed=s, loss=1.0, provenance={"data_fingerprint": f"sha:{s}"}) for s in (0, 1)]
    with pytest.raises(TableRefused, match="data_fingerprint varies"):
        table_of(runs)


def test_runs_of_one_cell_are_replicates_however_they_are_spelled() -> None:
    one, other = rows(*(Run(seed=s, loss=1.0 + s, provenance={"cell_id": "c"}) for s in (0, 1)))
    other["lora.alpha"], other["lora.alpha_over_rank"] = 16.0, None
    assert texts(build_table(spec(), [one, other])) == ["1.5000 ± 6.3531"]


def test_the_same_seed_twice_is_no_replicate() -> None:
    with pytest.raises(TableRefused, match=r"2 runs of quant\.format=nf4 have seed 0"):
        table_of([Run(loss=1.0), Run(loss=2.0, run_id="again")])


def test_confirmation_and_search_never_mix() -> None:
    runs = [Run(loss=1.0, role="search"), Run(seed=1, loss=2.0, role="confirmation")]
    with pytest.raises(TableRefused, match="confirmation and search do not mix"):
        table_of(runs)
    assert texts(table_of(runs, role=Role.confirmation)) == ["2.0000"]
    assert "not a result" in " ".join(table_of(runs, role=Role.search).footnotes)


def test_only_the_values_that_are_let_in_are_shown() -> None:
    runs = [*seeds(2.0, 3.0), *seeds(9.0, format="int4")]
    table = table_of(runs, where={"quant.format": ("nf4",)})
    assert texts(table) == ["2.5000 ± 6.3531"]
    with pytest.raises(TableRefused, match="none of 3 runs is let in by where="):
        table_of(runs, where={"quant.format": ("int8",)})


def test_mixed_commits_and_machines_get_a_footnote() -> None:
    other = {"git": {"commit": "fedcba9876543210", "dirty": True}, "host": "beta"}
    notes = table_of([*seeds(1.0), Run(seed=1, loss=2.0, provenance=other)]).footnotes
    assert "Runs of 2 commits: 012345678 (1 run); fedcba987 (1 run)." in notes
    assert "Runs of 2 machines: alpha (1 run); beta (1 run)." in notes
    assert "1 run of code with changes that no commit holds." in notes
    assert not any("Runs of" in note for note in table_of(seeds(1.0, 2.0)).footnotes)


def test_gpus_and_notes_of_the_records_get_a_footnote() -> None:
    gpu = {"gpus": [{"name": "H200", "memory_bytes": 1, "driver": "1"}]}
    runs = [Run(loss=1.0, notes=("3 rows cut",)), Run(seed=1, loss=2.0, provenance=gpu)]
    notes = table_of(runs).footnotes
    assert "Runs of 2 GPUs: none (1 run); H200 (1 run)." in notes
    assert "3 rows cut (1 run)." in notes


def test_cost_comes_from_probes_and_solo_runs() -> None:
    cohort = [Run(seed=s, loss=2.0, peak=9 * 2**20, adapter=2048) for s in (0, 1)]
    probe = Run(lr=1.0, loss=8.0, peak=2**20, measured_in=MeasuredIn.probe)
    columns = ("eval/loss", "memory/peak_bytes", "memory/adapter_bytes")
    table = table_of([*cohort, probe], columns=columns)
    assert texts(table, "memory/peak_bytes") == ["1.00 (n=1)"]
    assert table.columns[3].header == "peak memory (MiB) ↓"
    assert texts(table, "memory/adapter_bytes") == ["2.00"], "exact in a cohort, too"
    assert texts(table) == ["2.0000 ± 0.0000"], "what a probe learnt is not meant"
    table = table_of(cohort, columns=columns)
    assert texts(table, "memory/peak_bytes") == ["— †"]
    assert any(note.startswith("† Measured in a cohort") for note in table.footnotes)


def test_a_table_of_costs_joins_what_costs_the_same() -> None:
    runs = [Run(lr=lr, loss=1.0, adapter=2048) for lr in (0.1, 0.2)]
    assert texts(table_of(runs, columns=("memory/adapter_bytes",)), "memory/adapter_bytes") == [
        "2.00"
    ]
    with pytest.raises(TableRefused, match=r"lora\.rank varies"):
        table_of(
            [*runs, Run(rank=2, adapter=1.0)],
            columns=("memory/adapter_bytes",),
        )


def test_values_of_a_key_side_by_side() -> None:
    runs = [
        Run(format=f, rank=r, loss=loss)
        for f, r, loss in (("nf4", 2, 1.0), ("nf4", 16, 0.5), ("int4", 16, 2.0))
    ]
    table = table_of(runs, across="lora.rank")
    assert [c.header for c in table.columns] == [
        "quant.format",
        "n",
        "lora.rank=2: eval loss (nats/token) ↓",
        "lora.rank=16: eval loss (nats/token) ↓",
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["int4", "1", "—", "2.0000"],
        ["nf4", "1", "1.0000", "0.5000"],
    ]
    assert [cell.best for cell in table.rows[1]] == [False, False, False, True], "best of its line"


def test_the_best_setting_of_a_line_is_chosen_and_named() -> None:
    runs = [*seeds(1.0, 1.2, lr=0.1), *seeds(0.8, 0.9, lr=0.2), *seeds(0.1, lr=0.3)]
    table = table_of(runs, choose=("optim.lr",))
    assert texts(table, "optim.lr") == ["0.2"], "0.3 has one seed only"
    assert texts(table) == ["0.8500 ± 0.6353"]
    assert any("the setting with the best mean eval/loss among 3" in n for n in table.footnotes)


def test_one_setting_of_a_line_was_chosen_by_the_search_or_not_at_all() -> None:
    confirmed = [
        Run(lr=0.1, loss=loss, seed=seed, role="confirmation")
        for seed, loss in ((1, 1.0), (2, 1.2))
    ]
    notes = " ".join(table_of(confirmed, choose=("optim.lr",), role=Role.confirmation).footnotes)
    assert "optim.lr: each line's best of the search, chosen before these runs." in notes
    assert "among" not in notes
    assert "optim.lr: " not in " ".join(
        table_of(seeds(1.0, 1.2, lr=0.1), choose=("optim.lr",)).footnotes
    )


def test_the_best_lines_first_and_no_more_than_asked() -> None:
    runs = [Run(rank=rank, loss=loss) for rank, loss in ((1, 3.0), (2, 1.0), (4, 2.0))]
    runs.append(Run(rank=8, status=RunStatus.diverged))
    table = table_of(runs, rows=("lora.rank",), best_first=True, limit=2)
    assert texts(table, "lora.rank") == ["2", "4"]
    assert table.footnotes[0] == "The best 2 of 4 lines."


def test_differences_to_a_reference_are_paired_tested_and_adjusted() -> None:
    runs = [
        *seeds(1.0, 2.0, 3.0),
        *seeds(1.5, 2.4, 3.6, format="int4"),
        *seeds(1.1, 1.9, 3.0, format="fp4"),
    ]
    table = table_of(runs, against={"quant.format": "nf4"})
    assert texts(table, "difference") == ["+0.0000", "+0.5000", "reference"]
    # By hand: differences .5, .4, .6: deviation .1, t = 8.66, p = .0131; Holm tests it first, at .05/2, so
    # the half-width is 6.2053 * .1 / sqrt(3) = .3583.
    assert texts(table, "difference interval")[1] == "[+0.1417, +0.8583]"
    assert texts(table, "p") == ["1.000", "0.026", "—"], "2 * .0131 after Holm"
    assert any("With 3 pairs it leans on differences" in note for note in table.footnotes)
    without = table_of(runs, against={"quant.format": "int8"})
    assert "difference" not in {column.key for column in without.columns}
    assert any(note.startswith("No line has quant.format=int8") for note in without.footnotes)


def test_differences_to_the_best_line() -> None:
    runs = [*seeds(1.0, 2.0, 3.0), *seeds(1.5, 2.4, 3.6, format="int4")]
    table = table_of(runs, against_best=True)
    # By hand: the difference's deviation is .1, t(.95, 2) = 2.92, half-width 2.92 * .1 / sqrt(3) = .1686.
    assert texts(table, "to best") == ["+0.5000", "-0.5000"]
    assert texts(table, "to best interval") == ["[+0.0000, +0.6686]", "[-0.6686, +0.0000]"]


def test_the_pareto_front_is_marked() -> None:
    runs = [
        Run(format=name, loss=loss, adapter=size)
        for name, loss, size in (("int4", 1.0, 9.0), ("nf4", 2.0, 4.0), ("none", 3.0, 9.0))
    ]
    table = table_of(
        runs,
        columns=("eval/loss", "memory/adapter_bytes"),
        front={"eval/loss": Direction.minimize, "memory/adapter_bytes": Direction.minimize},
    )
    assert texts(table, "front") == ["yes", "yes", "no"]


def test_published_values_stand_beside_ours() -> None:
    runs = [Run(format=name, loss=1.0) for name in ("fp4", "int8", "none")]
    table = table_of(runs, published=("qlora_mmlu",))
    assert texts(table, "qlora_mmlu") == ["52.2", "—", "53.0"]
    assert "arXiv 2305.14314, Table 4" in table.footnotes[-1]
    assert "qlora_mmlu" not in {
        c.key for c in table_of([Run(format="x")], published=("qlora_mmlu",)).columns
    }


def test_the_runs_behind_every_cell_are_named() -> None:
    table = table_of([*seeds(1.0, 2.0), Run(seed=2, status=RunStatus.diverged)])
    cells = {cell["column"]: cell for cell in json.loads(table.sources())["cells"]}
    ids = [f"nf4-r8-0.0002-s{seed}-cohort" for seed in (0, 1, 2)]
    assert cells["eval/loss"]["runs"] == ids[:2]
    assert cells["n"]["runs"] == ids
    assert cells["eval/loss"]["row"] == {"quant.format": "nf4"}


def test_a_key_without_a_meaning_is_a_dash() -> None:
    found = rows(Run(format="none", loss=1.0), Run(loss=2.0))
    table = build_table(spec(rows=("quant.format", "quant.double_quant")), found)
    assert sorted(texts(table, "quant.double_quant")) == ["no", "—"]


def test_full_fine_tuning_is_called_so_and_its_costs_are_set_apart() -> None:
    given = rows(Run(loss=2.0), Run(loss=1.0))
    given[1] |= {"lora.method": "full fine-tuning", "point": {"lora": "none"}, "lora.rank": None}
    given[0]["point"] = {"lora": "all_linear"}
    table = build_table(spec(rows=("lora", "lora.rank")), given)
    assert texts(table, "lora") == ["all_linear", "full fine-tuning"]
    assert texts(table, "lora.rank") == ["8", "—"]
    (note,) = [note for note in table.footnotes if note.startswith("Full fine-tuning (1 run)")]
    assert "trained alone" in note


def test_what_is_asked_for_must_exist() -> None:
    with pytest.raises(TableRefused, match=r"lora\.rnk is no configuration key.*lora\.rank"):
        table_of(seeds(1.0), rows=("lora.rnk",))
    with pytest.raises(ValueError, match=r"column during\.eval/loss is no metric"):
        table_of(seeds(1.0), columns=("during.eval/loss",))
    with pytest.raises(ValueError, match="against"):
        spec(against={"lora.rank": 8})
    with pytest.raises(TableRefused, match="none of 0 runs"):
        build_table(spec(), [])


# Several sides, several lines ----------------------------------------------------------------------


def test_sides_are_in_order_each_line_with_its_own_best_and_its_counts() -> None:
    losses = {
        ("nf4", 2): 3.0,
        ("nf4", 8): 1.0,
        ("nf4", 16): 2.0,
        ("int4", 2): 1.0,
        ("int4", 16): 5.0,
    }
    runs = [Run(format=f, rank=r, loss=loss) for (f, r), loss in losses.items()]
    runs += [
        Run(format="nf4", rank=8, seed=1, loss=1.1),
        Run(format="nf4", rank=16, seed=1, loss=2.1),
    ]
    runs += [Run(format="nf4", rank=2, seed=1, status=RunStatus.diverged)]
    table = table_of(runs, across="lora.rank", columns=("eval/loss", "memory/adapter_bytes"))
    assert [column.key for column in table.columns] == [
        *("quant.format", "n"),
        *(f"eval/loss lora.rank={rank}" for rank in (2, 8, 16)),
        *(f"memory/adapter_bytes lora.rank={rank}" for rank in (2, 8, 16)),
    ]
    int4, nf4 = table.rows
    assert [cell.text.split()[0] for cell in int4[2:5]] == ["1.0000", "—", "5.0000"]
    assert [cell.best for cell in int4[2:5]] == [True, False, False]
    assert [cell.best for cell in nf4[2:5]] == [False, True, False]
    assert (int4[1].text, int4[1].n) == ("1", 2), "as many on each side"
    assert (nf4[1].text, nf4[1].n) == ("1 + 1 diverged; 2; 2", 5)
    assert len(nf4[1].run_ids) == 6


def test_lines_are_ordered_by_the_first_column_those_without_a_value_last() -> None:
    runs = [
        Run(rank=rank, match=match, loss=loss)
        for rank, match, loss in ((1, 0.2, 2.0), (2, None, 0.5), (4, 0.9, 3.0), (8, 0.5, 1.0))
    ]
    by_score = {
        "rows": ("lora.rank",),
        "columns": ("eval/exact_match", "eval/loss"),
        "best_first": True,
    }
    assert texts(table_of(runs, **by_score), "lora.rank") == ["4", "8", "1", "2"]
    by_loss = {**by_score, "columns": ("eval/loss",)}
    assert texts(table_of(runs, **by_loss), "lora.rank") == ["2", "8", "1", "4"]
    plain = table_of(runs, rows=("lora.rank",), columns=("eval/loss",), limit=3)
    assert texts(plain, "lora.rank") == ["1", "2", "4"]
    assert plain.footnotes[0] == "The first 3 of 4 lines."
    whole = table_of(runs, rows=("lora.rank",), columns=("eval/loss",), limit=4)
    assert not any("of 4 lines" in note for note in whole.footnotes)


def test_what_became_of_the_runs_is_counted_in_one_cell() -> None:
    runs = [
        Run(seed=0, status=RunStatus.diverged),
        Run(seed=1, status=RunStatus.out_of_memory),
        Run(seed=2, status=RunStatus.out_of_memory),
    ]
    (failed,) = column(table_of(runs), "n")
    assert (failed.text, failed.number, failed.n) == ("2 OOM + 1 diverged", None, 0)
    (both,) = column(table_of([*runs, Run(seed=3, loss=1.0), Run(seed=4, loss=1.0)]), "n")
    assert (both.text, both.n, len(both.run_ids)) == ("2 + 2 OOM + 1 diverged", 2, 5)
    (good,) = column(table_of(seeds(1.0, 2.0)), "n")
    assert (good.text, good.number, good.n) == ("2", "2", 2)


def test_comparisons_stand_behind_the_first_column_and_published_values_last() -> None:
    runs = [*seeds(1.0, 1.1, match=0.5), *seeds(2.0, 2.2, format="fp4", match=0.25)]
    table = table_of(
        runs,
        columns=("eval/loss", "eval/exact_match"),
        against={"quant.format": "nf4"},
        front={"eval/loss": Direction.minimize, "eval/exact_match": Direction.maximize},
        published=("qlora_mmlu",),
    )
    assert [each.key for each in table.columns] == [
        *("quant.format", "n", "eval/loss"),
        *("difference", "difference interval", "p"),
        *("eval/exact_match", "front", "qlora_mmlu"),
    ]
    assert table.footnotes[-1].startswith("QLoRA") or "arXiv 2305.14314" in table.footnotes[-1]


def test_a_published_value_beside_values_of_several_sides() -> None:
    runs = [Run(format=f, rank=r, loss=1.0) for f in ("fp4", "none") for r in (2, 8)]
    table = table_of(runs, across="lora.rank", published=("qlora_mmlu",))
    assert texts(table, "qlora_mmlu") == ["52.2", "53.0"]
