"""Steps, seconds and the axes that tell costs apart, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from harness.config.schema import OptimConfig, RunConfig
from harness.plan.costs import CostGroup, cost_groups, distinguishing_keys, stated_step_seconds
from harness.plan.prediction import BatchSize
from harness.plan.settings import PlanSettings


def group(
    optim: OptimConfig, *, rows: int | None = None, batch: BatchSize | None = None, **values: Any
) -> CostGroup:
    subject: Any = SimpleNamespace(num_rows=rows, batch=batch)
    config = RunConfig(optim=optim)
    return CostGroup(configs=[config], points=[{}], subject=subject, **values)


def test_steps_are_stated_or_follow_from_the_rows() -> None:
    assert group(OptimConfig(steps=7)).steps == 7
    epochs = OptimConfig(steps=None, epochs=1.5, batch_size=4)
    assert group(epochs, rows=10).steps == 4  # 15 rows in fours
    assert group(epochs).steps is None, "the rows are not at hand"
    assert CostGroup(configs=[RunConfig(optim=epochs)], points=[{}]).steps is None


def test_a_run_takes_its_steps_times_a_step() -> None:
    assert group(OptimConfig(steps=7), step_seconds=0.5).run_seconds == 3.5
    assert group(OptimConfig(steps=7)).run_seconds is None
    epochs = OptimConfig(steps=None, epochs=1.0)
    assert group(epochs, step_seconds=0.5).run_seconds is None


@pytest.mark.parametrize(("micro", "rows", "seconds"), [(None, 8, 8 * 100), (2, 2, 4 * 2 * 100)])
def test_a_step_at_a_stated_rate_is_all_positions_of_its_micro_batches(
    micro: int | None, rows: int, seconds: float
) -> None:
    optim = OptimConfig(steps=1, batch_size=8, micro_batch_size=micro)
    batch = BatchSize(rows=rows, length=100, loss_tokens=3)
    found = stated_step_seconds(group(optim, batch=batch), PlanSettings(tokens_per_second=50.0))
    assert found == seconds / 50
    assert stated_step_seconds(group(optim, batch=batch), PlanSettings()) is None


def test_axes_tell_groups_apart_that_are_constant_in_each_and_differ_between_them() -> None:
    def points(*given: dict[str, str]) -> CostGroup:
        return CostGroup(configs=[RunConfig()] * len(given), points=list(given))

    found = [
        points(
            {"seed": "1", "rank": "2", "quant": "nf4"}, {"seed": "2", "rank": "2", "quant": "nf4"}
        ),
        points(
            {"seed": "1", "rank": "4", "quant": "nf4"}, {"seed": "2", "rank": "4", "quant": "nf4"}
        ),
        points({"seed": "1", "rank": "8", "quant": "nf4", "only": "here"}),
    ]
    assert distinguishing_keys(found) == ["rank", "only"]
    assert distinguishing_keys(found[:1]) == []
    assert found[0].values("seed") == ("1", "2")
    assert found[0].values("only") == (None,)


def test_where_constant_axes_leave_groups_alike_one_whose_values_no_two_share_tells_them_apart() -> (
    None
):
    """Variants of which some cost the same, each at every rate."""

    def group_of(quant: str, *variants: str) -> CostGroup:
        points = [
            {"quant": quant, "variant": each, "lr": lr} for each in variants for lr in ("1", "2")
        ]
        return CostGroup(configs=[RunConfig()] * len(points), points=points)

    alike = [
        group_of(quant, *v) for quant in ("nf4", "int4") for v in (("lora", "plus"), ("dora",))
    ]
    assert distinguishing_keys(alike) == ["quant", "variant"]
    assert distinguishing_keys(alike[:2]) == ["variant"]
    assert distinguishing_keys([alike[0], alike[2]]) == ["quant"]
    assert distinguishing_keys([alike[0], alike[0]]) == []


def test_what_costs_the_same_is_planned_once_and_a_refusal_is_kept() -> None:
    def cell(rank: int, seed: int, length: int = 16) -> tuple[dict[str, str], RunConfig]:
        config = RunConfig(seed=seed, optim=OptimConfig(steps=2, lr=seed * 1e-3))
        config.lora.rank, config.lora.alpha = rank, 2.0 * rank
        return {"lora.rank": str(rank), "seed": str(seed)}, config

    settings = PlanSettings(shape="pythia_160m", device="cpu", length=8, tokens_per_second=16.0)
    cells = [cell(2, 1), cell(4, 1), cell(2, 2), cell(100_000, 1)]
    two, four, beyond = cost_groups(cells, settings)
    assert [point["seed"] for point in two.points] == ["1", "2"]
    assert [config.seed for config in two.configs] == [1, 2]
    assert two.prediction is not None
    assert four.prediction is not None
    assert four.prediction.trainable_params == 2 * two.prediction.trainable_params
    assert two.step_seconds == two.configs[0].optim.batch_size * 8 / 16
    assert beyond.prediction is None
    assert "lora.rank" in str(beyond.refusal)
