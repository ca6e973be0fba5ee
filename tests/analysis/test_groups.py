"""Groups of runs: who may be averaged, who is let in, and which setting of a line is chosen."""

from typing import Any

import pytest

from analysis.cells import TableRefused
from analysis.frame import Role, Row
from analysis.groups import (
    check_alike,
    chosen_groups,
    counted,
    grouped,
    measured,
    metric_name,
    sort_key,
)
from analysis.spec import Spec
from harness.records.record import MeasuredIn, RunStatus
from tests.analysis.records_for_tables import Run, rows, seeds

LOSS, PEAK, ADAPTER = "eval/loss", "memory/peak_bytes", "memory/adapter_bytes"


def spec(**options: Any) -> Spec:
    return Spec(**{"name": "t", "title": "T", "rows": ("lora.rank",), "columns": (LOSS,)} | options)


def cell(seed: int, cell_id: str | None, **more: Any) -> Row:
    (row,) = rows(Run(seed=seed, loss=1.0, provenance={"cell_id": cell_id}))
    return row | more


def test_two_identities_of_one_configuration_are_refused() -> None:
    named = {"lora.rank": 8}
    check_alike([cell(0, "c"), cell(1, "c")], named)
    check_alike([cell(0, None), cell(1, "c")], named)
    with pytest.raises(TableRefused, match=r"runs of lora.rank=8 have .* identities \(c, d\)"):
        check_alike([cell(0, "c"), cell(1, "d")], named)
    check_alike([cell(0, "c"), cell(0, "d")], named, costs_only=True)
    with pytest.raises(TableRefused, match="runs of the table have"):
        check_alike([cell(0, "c"), cell(1, "d")], {})


def test_runs_of_one_identity_may_be_spelled_otherwise_and_others_may_not() -> None:
    check_alike([cell(0, "c"), cell(1, "c", **{"data.x": 1})], {})
    with pytest.raises(TableRefused, match=r"data\.x varies \(1, absent\) among the 2 runs"):
        check_alike([cell(0, None), cell(1, None, **{"data.x": 1})], {})
    check_alike([cell(0, None), cell(1, None, **{"tracker.x": 1})], {})


def test_a_seed_comes_once_among_the_completed() -> None:
    with pytest.raises(TableRefused, match="2 runs of the table have seed 3"):
        check_alike([cell(3, "c"), cell(3, "c")], {})
    check_alike([cell(3, "c"), cell(3, "c", status=RunStatus.diverged)], {})


def test_confirmation_stands_alone() -> None:
    search, confirmation, none = (
        cell(0, "c", role="search"),
        cell(1, "c", role="confirmation"),
        cell(2, "c"),
    )
    check_alike([search, none], {})
    check_alike([confirmation, confirmation | {"seed": 5}], {})
    with pytest.raises(TableRefused, match="are of the roles None, confirmation"):
        check_alike([confirmation, none], {})


def test_costs_may_differ_in_what_costs_nothing() -> None:
    cheap = [cell(0, "c"), cell(0, "d", **{"optim.lr": 1.0, "eval.rows": 5, "lora.alpha": 2.0})]
    check_alike(cheap, {}, costs_only=True)
    with pytest.raises(TableRefused, match=r"lora\.rank varies"):
        check_alike([cell(0, "c"), cell(0, "d", **{"lora.rank": 2})], {}, costs_only=True)


def test_contents_differ_only_where_every_run_names_them() -> None:
    key = "provenance.data_fingerprint"
    with pytest.raises(TableRefused, match=r"data_fingerprint varies \('a', 'b'\)"):
        check_alike([cell(0, None, **{key: "a"}), cell(1, None, **{key: "b"})], {})
    unknown = cell(1, None)
    del unknown[key]
    check_alike([cell(0, None, **{key: "a"}), unknown], {})
    with pytest.raises(TableRefused, match="data_fingerprint varies"):
        check_alike([cell(0, None, **{key: "a"}), cell(1, None)], {})


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({}, [2, 8]),
        ({"role": Role.search}, [8]),
        ({"where": {"seed": (1,)}}, [8]),
        ({"where": {"lora.rank": (2, 4)}}, [2]),
        ({"where": {"lora.rank": (2, 4), "seed": (0,)}}, [2]),
    ],
)
def test_who_is_let_in(options: dict[str, Any], ranks: list[int]) -> None:
    found = rows(
        Run(rank=8, seed=1, role="search"), Run(rank=2), Run(rank=4, measured_in=MeasuredIn.probe)
    )
    assert [group.values[0] for group in grouped(spec(**options), found)] == ranks


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"role": Role.confirmation}, "none of 1 runs of the role confirmation is let in"),
        ({"where": {"seed": (5,)}}, r"none of 1 runs is let in by where=\{'seed': \(5,\)\}"),
    ],
)
def test_where_nobody_is_let_in_it_says_by_what(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TableRefused, match=f"{said}$"):
        grouped(spec(**options), rows(Run()))


def test_missing_values_come_first_then_numbers_then_words() -> None:
    values = [("b",), (10,), (None,), (2.5,), ("a",), (True,)]
    assert sorted(values, key=sort_key) == [(None,), (True,), (2.5,), (10,), ("a",), ("b",)]


def test_a_column_may_name_its_phase() -> None:
    assert [
        metric_name(c) for c in (LOSS, "before.eval/loss", "after.eval/loss", "during.eval/loss")
    ] == [
        *(LOSS, LOSS, LOSS),
        "during.eval/loss",
    ]


def test_of_a_line_s_settings_the_best_with_the_most_seeds_is_chosen() -> None:
    runs = [*seeds(2.0, 2.2, lr=0.1), *seeds(1.0, 1.1, lr=0.2), *seeds(0.1, lr=0.3)]
    runs += [
        Run(rank=2, lr=0.1, status=RunStatus.diverged),
        Run(rank=2, lr=0.2, status=RunStatus.diverged),
    ]
    of = spec(choose=("optim.lr",))
    groups = grouped(of, rows(*runs))
    chosen, counts = chosen_groups(groups, of)
    assert [group.values for group in chosen] == [(2, 0.1), (8, 0.2)]
    assert counts == [2, 3]
    scores = spec(columns=("eval/exact_match",), choose=("optim.lr",))
    found = rows(*(Run(lr=lr, match=m) for lr, m in ((0.1, 0.5), (0.2, 0.9), (0.3, 0.7))))
    (best,), _ = chosen_groups(grouped(scores, found), scores)
    assert best.values == (8, 0.2)


def test_quality_is_of_every_run_and_cost_of_those_alone() -> None:
    found = rows(
        Run(loss=1.0, peak=9.0, adapter=3.0),
        Run(seed=1, loss=2.0, peak=8.0, adapter=4.0, measured_in=MeasuredIn.solo),
        Run(seed=2, status=RunStatus.diverged, peak=1.0, measured_in=MeasuredIn.solo),
        Run(lr=9.0, loss=7.0, peak=6.0, measured_in=MeasuredIn.probe),
        Run(lr=8.0, peak=5.0, measured_in=MeasuredIn.probe, status=RunStatus.failed),
        Run(rank=64, peak=4.0, measured_in=MeasuredIn.probe),
    )
    (group,) = grouped(spec(columns=(LOSS, PEAK)), found)
    assert measured(group, LOSS) == {0: 1.0, 1: 2.0}
    assert list(measured(group, PEAK).values()) == [8.0, 6.0]
    assert measured(group, ADAPTER) == {found[0]["run_id"]: 3.0, found[1]["run_id"]: 4.0}
    assert [row["run_id"] for _, row in counted(group, PEAK)] == [
        *(found[1]["run_id"], found[3]["run_id"])
    ]
    (without,) = grouped(spec(columns=(LOSS, ADAPTER)), found)
    assert without.probes == [], "nothing that a probe measures is shown"


def test_a_probe_of_another_backend_is_none_of_these_runs() -> None:
    run, probe = rows(Run(loss=1.0), Run(peak=6.0, measured_in=MeasuredIn.probe))
    run["provenance.backend"], probe["provenance.backend"] = "cpu", "cuda"
    (group,) = grouped(spec(columns=(PEAK,)), [run, probe])
    assert group.probes == []
