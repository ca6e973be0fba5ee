"""What varies among rows: which keys count, in what order, which are numbers, and how levels are sorted."""

from dataclasses import replace

import pytest

from analysis.figures.factors import (
    ALPHA,
    BLOCK_SIZE,
    FORMAT,
    KNOWN,
    LEARNING_RATE,
    RANK,
    TARGETS,
    is_numeric,
    levels,
    varying_factors,
)
from analysis.frame import Row
from tests.analysis.rows_for_figures import Run, asked, rows


def test_known_factors_come_first_and_what_has_no_effect_is_none() -> None:
    found = rows(
        Run(format="nf4", block=32, rank=2, alpha=4.0, targets=("mlp",), lr=1e-3, steps=1),
        Run(format="int4", block=64, rank=8, alpha=8.0, targets=("qv",), lr=1e-2, steps=2, seed=1),
    )
    for number, row in enumerate(found):
        row |= {"tracker.name": str(number), "paths.out": str(number), "resources.devices": number}
        row |= {"eval.split": str(number), "unknown.key": number, "plain": number}
    assert varying_factors(found)[:6] == [*KNOWN]
    assert [factor.name for factor in varying_factors(found)[6:]] == ["eval.split", "optim.steps"]
    steps = varying_factors(found)[-1]
    assert steps.is_logarithmic
    assert (steps.label, steps.keys, steps.value(found[1])) == (
        *("optim.steps", ("optim.steps",)),
        2,
    )
    assert not varying_factors(found)[-2].is_logarithmic
    assert varying_factors(found[:1]) == []


def test_a_key_that_one_row_lacks_varies() -> None:
    one, other = rows(Run(), Run())
    one["data.rows"] = 5
    assert [factor.name for factor in varying_factors([one, other])] == ["data.rows"]
    assert [factor.name for factor in varying_factors([other, one])] == ["data.rows"]


def test_what_full_fine_tuning_lacks_and_all_adapters_have_alike_is_no_choice() -> None:
    full, few, many = asked(["lora=none"], ["lora.rank=4"], ["lora.rank=16"])
    assert full["lora.dropout"] is None is not few["lora.dropout"]
    assert [factor.name for factor in varying_factors([full, few])] == ["lora.method"]
    assert [f.name for f in varying_factors([few, full, many])] == ["lora.rank", "lora.method"]
    assert varying_factors([full, full]) == []


def test_a_factor_s_value_is_what_its_keys_spell() -> None:
    (row,) = rows(Run(rank=4, targets=("q_proj", "v_proj")))
    assert FORMAT.value(row) == "nf4"
    assert FORMAT.value(row | {"quant.double_quant": True}) == "nf4_dq"
    assert FORMAT.value({}) is None
    assert TARGETS.value(row) == "q_proj+v_proj"
    assert TARGETS.value({}) is None
    assert (RANK.value(row), BLOCK_SIZE.value(row), LEARNING_RATE.value(row)) == (4, 64, 1e-3)
    assert ALPHA.value(row) == 8.0
    assert ALPHA.value(row | {"lora.alpha": 3}) == 3.0
    assert ALPHA.value(row | {"lora.rank": None}) is None
    assert ALPHA.value(row | {"lora.alpha_over_rank": None}) is None
    assert ALPHA.value(row | {"lora.alpha_over_rank": 0.5}) == 2.0
    numbers = [factor.name for factor in KNOWN if factor.is_logarithmic]
    assert numbers == ["quant.block_size", "lora.rank", "lora.alpha", "optim.lr"]


def of(*values: object) -> list[Row]:
    return [{"data.x": value} for value in values]


X = replace(RANK, name="data.x", value=lambda row: row.get("data.x"))


@pytest.mark.parametrize(
    ("values", "numeric"),
    [((1, 2.5), True), ((1, None), True), ((None,), False), ((1, "a"), False), ((1, True), False)],
)
def test_numbers_are_no_truth_values(values: tuple[object, ...], numeric: bool) -> None:
    assert is_numeric(X, of(*values)) is numeric


def test_levels_are_in_order_a_missing_one_first() -> None:
    given = of("b", 10, None, 2, "a", 2, True, 1.5)
    assert levels(X, given) == [None, True, 1.5, 2, 10, "a", "b"]
    assert levels(X, []) == []
