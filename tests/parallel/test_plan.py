"""`harness plan` of a run whose base processes share: what the first of them would need."""

import json

import pytest

from harness.cli.main import dispatch
from harness.records.metrics import MEMORY_PARTS

SHAPE = ("plan.shape=qwen2.5_0.5b", "plan.device=cuda", "data.max_length=64", "optim.batch_size=4")
TWO = "resources.data_parallel=2"


def planned(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert dispatch(["plan", *SHAPE, *overrides]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("quant", ["none", "nf4_dq", "int4_asym"])
def test_a_process_holds_its_share_of_the_base_and_all_of_the_rest(
    capsys: pytest.CaptureFixture[str], quant: str
) -> None:
    asked = (f"quant={quant}", TWO, "--json")
    whole, half = (
        json.loads(planned(capsys, *asked, f"resources.shard={shard}"))
        for shard in ("none", "fsdp")
    )
    for part in MEMORY_PARTS:
        share = 2 if part in ("base", "quant_constants") else 1
        assert half["parts"][part] == pytest.approx(whole["parts"][part] / share, rel=1e-3), part
    for name in ("base/bits_per_param", "base/logical_params"):
        assert half["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-4)
    assert half["transient_bytes"] > whole["transient_bytes"]


def test_the_plan_says_whose_memory_it_is_and_what_is_not_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = planned(capsys, TWO, "resources.shard=fsdp")
    assert "of the first of 2 processes, which share the base (gathered blocks: as " in text
    assert "share the base" not in planned(capsys, TWO)


def test_a_probe_of_a_shared_base_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [TWO, "resources.shard=fsdp", "resources.device=cpu"]
    assert dispatch(["plan", *overrides, "--probe"]) == 2
    assert "resources.shard=fsdp divides it" in capsys.readouterr().err
