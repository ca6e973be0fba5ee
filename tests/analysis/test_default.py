"""Which default tables a sweep gets: by its method, its axes, what was measured and what changes a cost."""

from pathlib import Path
from typing import Any

import pytest

from analysis.frame import Row
from analysis.sources import SweepData
from analysis.specs import confirmation_spec, cost_spec, search_spec, specs_for
from harness.records.metrics import Direction
from harness.records.record import MeasuredIn
from tests.analysis.rows_for_figures import Run, rows

LOSS, MATCH, PEAK = "eval/loss", "eval/exact_match", "memory/peak_bytes"


def placed(role: str, point: dict[str, str], trial: int | None = 0, **run: Any) -> Row:
    (row,) = rows(Run(role=role, **run))
    return row | {"trial": trial, "point": point}


def sweep_of(
    found: list[Row], *, method: str = "grid", axes: tuple[str, ...] = ("lora.rank",), **more: Any
) -> SweepData:
    given: dict[str, Any] = {
        "objectives": {LOSS: "minimize"},
        "asked": {},
        "directory": Path(),
    } | more
    return SweepData(
        name="small",
        question=given.pop("question", "Which rank?"),
        expect="",
        method=method,
        base=(),
        axes=axes,
        state={},
        rows=found,
        problems=[],
        **given,
    )


SEARCHED = placed("search", {"lora.rank": "8"}, loss=1.0)
CONFIRMED = placed("confirmation", {"lora.rank": "8"}, loss=1.0, exact=0.5)


def test_the_verdict_is_on_the_confirmed_axes_each_line_against_the_best() -> None:
    spec = confirmation_spec(sweep_of([CONFIRMED, SEARCHED], axes=("optim.lr", "lora.rank")))
    assert spec is not None
    assert spec.name == "confirmation"
    assert spec.title == "Which rank? Confirmed on fresh seeds."
    assert spec.rows == ("lora.rank",), "no confirmed run has a rate of its own"
    assert spec.columns == (LOSS, MATCH)
    assert spec.best_first
    assert spec.against_best
    assert confirmation_spec(sweep_of([SEARCHED])) is None
    unasked = confirmation_spec(sweep_of([CONFIRMED], question=""))
    assert unasked is not None
    assert unasked.title.startswith("small Confirmed")
    pointless = confirmation_spec(sweep_of([CONFIRMED | {"point": {}}]))
    assert pointless is not None
    assert pointless.rows == ("trial",)


@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_a_grid_is_shown_whole_by_its_axes_and_another_search_by_trial(method: str) -> None:
    spec = search_spec(sweep_of([SEARCHED], method=method))
    assert spec is not None
    is_grid = method == "grid"
    assert spec.rows == (("lora.rank",) if is_grid else ("trial", "lora.rank"))
    assert spec.best_first is not is_grid
    assert spec.limit == (None if is_grid else 20)
    assert spec.front == {}
    assert search_spec(sweep_of([CONFIRMED], method=method)) is None
    assert search_spec(sweep_of([SEARCHED | {"trial": None}], method=method)) is None


def test_a_search_with_two_objectives_marks_the_front_and_shows_both_whatever_was_measured() -> (
    None
):
    spec = search_spec(sweep_of([SEARCHED], objectives={LOSS: "minimize", MATCH: "maximize"}))
    assert spec is not None
    assert spec.front == {LOSS: Direction.minimize, MATCH: Direction.maximize}
    assert spec.columns == (LOSS, MATCH)
    assert search_spec(sweep_of([SEARCHED | {"point": {}}])).rows == ("trial",)  # pyright: ignore


def test_a_cost_is_shown_by_the_axes_that_change_it_where_something_was_measured() -> None:
    point = {"lora.rank": "8", "optim.lr": "0.001"}
    axes = ("optim.lr", "lora.rank")
    shared = placed("search", point, loss=1.0, parameters=9.0, measured_in=MeasuredIn.cohort)
    alone = placed("probe", point, peak=5.0, measured_in=MeasuredIn.probe)
    spec = cost_spec(sweep_of([shared], axes=axes))
    assert spec is not None
    assert spec.rows == ("lora.rank",)
    assert spec.columns == ("adapter/trainable_params",)
    cohort_peak = shared | {PEAK: 7.0}
    assert cost_spec(sweep_of([cohort_peak], axes=axes)).columns == spec.columns  # pyright: ignore
    both = cost_spec(sweep_of([shared, alone], axes=axes))
    assert both is not None
    assert both.columns == (PEAK, "adapter/trainable_params")
    assert cost_spec(sweep_of([shared], axes=("optim.lr",))) is None, "a rate costs nothing"
    assert cost_spec(sweep_of([placed("search", point, loss=1.0)], axes=axes)) is None


@pytest.mark.parametrize(
    ("cases", "is_cost"),
    [
        ({"a": ["optim.lr=1"], "b": ["+optim.lr=2"]}, False),
        ({"a": ["optim.lr=1"], "b": ["~lora.rank"]}, True),
        ({"a": ["lora.rank=4"], "b": ["lora.rank=8"]}, True),
    ],
)
def test_a_named_axis_costs_what_its_cases_change(cases: dict[str, list[str]], is_cost) -> None:
    row = placed("search", {"which": "a"}, loss=1.0, parameters=9.0)
    sweep = sweep_of([row], axes=("which",), asked={"space": {"which": {"cases": cases}}})
    spec = cost_spec(sweep)
    assert (spec is not None) is is_cost
    assert spec is None or spec.rows == ("which",)


def test_a_sweep_has_the_tables_for_which_it_has_runs() -> None:
    names = [spec.name for spec in specs_for(sweep_of([SEARCHED, CONFIRMED]))]
    assert names == ["confirmation", "search"]
    measured = placed("search", {"lora.rank": "8"}, loss=1.0, parameters=9.0)
    assert [spec.name for spec in specs_for(sweep_of([measured]))] == ["search", "cost"]
    assert specs_for(sweep_of([])) == []
