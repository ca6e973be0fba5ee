"""A probe keeps the settings that the cost of a step depends on; tables and figures find it by these."""

from dataclasses import fields, replace
from enum import Enum
from typing import Any

import pytest

from analysis.figures.cells import cells_of
from analysis.groups import grouped
from analysis.spec import Spec
from harness.config.schema import EvalConfig, LoraConfig, OptimConfig, RunConfig
from harness.plan.probe import cost_key, costs_nothing
from harness.records.record import MeasuredIn
from tests.analysis.rows_for_figures import Run, rows

BASE = RunConfig(lora=LoraConfig(rank=8, alpha=16.0), optim=OptimConfig(steps=40))
ADAPTER = {"rank": 4, "alpha": 8.0, "rslora": True, "dropout": 0.1, "target_modules": ["mlp"]}
PEAK = "memory/peak_bytes"


def another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case Enum():
            return next(each for each in type(value) if each is not value)
        case int() | float():
            return 2 * value + 1
        case _:
            return 3


def changes(section: str, given: Any) -> dict[str, Any]:
    """Every field of a section with another value."""
    return {f"{section}.{f.name}": another(getattr(given, f.name)) for f in fields(given)}


CHANGES = {
    **changes("optim", BASE.optim),
    **{key: value for key, value in changes("eval", EvalConfig()).items() if value != 3},
    **{f"lora.{name}": value for name, value in ADAPTER.items()},
    "seed": 7,
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_costs_nothing_is_what_a_probe_sets_aside(key: str) -> None:
    section, _, name = key.rpartition(".")
    value: Any = CHANGES[key]
    changed = replace(BASE, seed=value) if not section else replace(
        BASE, **{section: replace(getattr(BASE, section), **{name: value})}
    )  # fmt: skip
    assert (cost_key(changed) == cost_key(BASE)) is costs_nothing(key)


@pytest.mark.parametrize(
    ("key", "joins"),
    [
        *((f"optim.{name}", True) for name in ("min_lr_ratio", "patience", "schedule_cycles")),
        *(("optim.lr", True), ("eval.split", True), ("tracker.name", True)),
        *(("optim.max_grad_norm", False), ("lora.dropout", False), ("provenance.backend", False)),
    ],
)
def test_tables_and_figures_give_a_run_the_probe_that_costs_the_same(key: str, joins: bool) -> None:
    run, probe = rows(
        Run(loss=1.0, measured_in=MeasuredIn.cohort),
        Run(peak=5.0, measured_in=MeasuredIn.probe, role="probe"),
    )
    run[key], probe[key] = "one", "another"
    (cell,) = cells_of([run, probe])
    assert cell.values(PEAK) == [5.0] * joins
    (group,) = grouped(
        Spec(name="t", title="T", rows=("lora.rank",), columns=(PEAK,)), [run, probe]
    )
    assert [each["run_id"] for each in group.probes] == [probe["run_id"]] * joins
