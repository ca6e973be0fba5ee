"""A base that processes hold together: a share of it in each, and the same run as with all of it in one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from harness.base.storage import storage_of
from harness.config.schema import (
    LoraConfig,
    ModelConfig,
    OptimizerName,
    QuantConfig,
    QuantFormat,
)
from harness.config.storage import ROUNDING, has_blocks, label_of
from harness.engine.shared_base import SharedBase
from harness.measure.memory import base_size
from harness.plan.base_bytes import base_bytes
from harness.plan.model import PlannedModel
from harness.records.record import Record, RunStatus, read_record
from tests.parallel.conftest import Lead, Sharding
from tests.parallel.test_ranks import assert_same, run_all
from tests.random_models import SHAPES, save_random_model
from tests.training.conftest import MakeBase, MakeJob

IN_SUITE = ("none", "int8", "nf4_dq", "int4", "int4_asym_dq", "int3_asym", "int2_asym_dq")
"""Every kind of share: dense, rows, packed at 4, 3 and 2 bits, with and without offsets."""
FORMATS = [
    pytest.param(quant, marks=[] if label_of(quant) in IN_SUITE else pytest.mark.slow)
    for quant_format in ROUNDING
    for double in (False, True)
    if not double or has_blocks(quant_format)
    for quant in [QuantConfig(format=quant_format, double_quant=double)]
]
RANK_4 = LoraConfig(rank=4, alpha=8.0, dropout=0.1)


def name_of(quant: QuantConfig) -> str:
    return label_of(quant)


def assert_shared(base: SharedBase, whole: SharedBase, processes: int) -> None:
    """Check that this process keeps its share of everything but tables and single numbers, and no more."""
    frozen = {n: p for n, p in base.model.named_parameters() if ".lora_" not in n}
    assert frozen
    assert not [n for n, p in frozen.items() if not isinstance(p, DTensor)]
    now, one = base_size(base.base), whole.size
    assert now == base.size
    assert now.weight_bytes == pytest.approx(one.weight_bytes / processes, rel=1e-2)
    rounded_up = base.base.storage.table_bytes + 8 * len(base.base.linears)
    assert now.constant_bytes <= one.constant_bytes / processes + rounded_up
    assert now.logical_params == one.logical_params
    assert now.bits_per_param == pytest.approx(one.bits_per_param, rel=1e-3)


# The same run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", FORMATS, ids=name_of)
def test_in_every_format_half_a_base_trains_and_is_scored_as_a_whole_one(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding, quant: QuantConfig
) -> None:
    whole = make_base(quant)
    sections: dict[str, Any] = {"lora": RANK_4, "optim": {"steps": 3}, "eval": {"every_steps": 2}}
    alone, together = (make_job(whole, n, **sections) for n in ("alone", "together"))
    run_all(whole, [alone])
    with sharding(quant) as (leader, half):
        assert_shared(half, whole, 2)
        record = run_all(half, [together], leader)["together"]
        assert_shared(half, whole, 2)
    assert record.status is RunStatus.completed, record.error
    assert_same(alone, together)
    assert record.metrics["memory/base_bytes"] == half.size.weight_bytes
    planned = base_bytes(
        PlannedModel.from_source(half.base.source, ModelConfig()).outline, storage_of(quant), 2
    )
    assert planned.weight_bytes == half.size.weight_bytes
    assert planned.constant_bytes == half.size.constant_bytes
    assert planned.bits_per_param == pytest.approx(half.size.bits_per_param, rel=1e-9)


RUNS: dict[str, dict[str, Any]] = {
    "activations recomputed, micro-batches": {
        "lora": RANK_4,
        "optim": {"gradient_checkpointing": True, "micro_batch_size": 2, "steps": 3},
    },
    "8-bit optimizer, rows of several examples": {
        "optim": {"name": OptimizerName.adamw_8bit, "steps": 3},
        "data": {"packing": True, "max_length": 128},
    },
    "answers generated": {
        "optim": {"steps": 1},
        "eval": {"generate": True, "generate_rows": 2, "max_new_tokens": 4},
    },
}


def test_what_a_run_may_ask_for_it_may_ask_of_a_shared_base(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding
) -> None:
    quant = QuantConfig(format=QuantFormat.nf4, double_quant=True)
    whole, asked_for = make_base(quant), set()
    with sharding(quant) as (leader, half):
        for name, sections in RUNS.items():
            alone, together = (make_job(whole, f"{name} {n}", **sections) for n in (1, 2))
            run_all(whole, [alone])
            record = run_all(half, [together], leader)[together.run_id]
            assert record.status is RunStatus.completed, record.error
            assert_same(alone, together)
            scores = [read_record(job.directory.record).evals["after"] for job in (alone, together)]
            assert scores[0].keys() == scores[1].keys()
            asked_for |= scores[1].keys()
    assert "eval/exact_match" in asked_for


@pytest.mark.parametrize("model_type", sorted(SHAPES))
def test_other_architectures_can_be_shared_by_three(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding, tmp_path: Path, model_type: str
) -> None:
    """Tied and untied heads, biases, GPT-2's transposed layers; no dimension here is a multiple of three."""
    model = save_random_model(tmp_path / model_type, model_type, **SHAPES[model_type])
    quant = QuantConfig(format=QuantFormat.nf4)
    whole = make_base(quant, model)
    optim = {"batch_size": 6, "steps": 2}
    alone, together = (make_job(whole, n, lora=RANK_4, optim=optim) for n in ("one", "three"))
    run_all(whole, [alone])
    with sharding(quant, model=model, size=3) as (leader, third):
        record = run_all(third, [together], leader)["three"]
        assert record.status is RunStatus.completed, record.error
        assert base_size(third.base).total_bytes < 0.36 * whole.size.total_bytes
    assert_same(alone, together)


def test_activations_are_those_of_processes_that_hold_the_base_whole(
    make_base: MakeBase, make_job: MakeJob, lead: Lead, sharding: Sharding
) -> None:
    """What is gathered for a pass belongs to the base."""
    records: list[Record] = []
    whole = make_base()
    jobs = [make_job(whole, name, lora=RANK_4, optim={"steps": 2}) for name in ("whole", "half")]
    with lead() as leader:
        records += run_all(whole, jobs[:1], leader).values()
    with sharding(QuantConfig()) as (leader, half):
        records += run_all(half, jobs[1:], leader).values()
    counted = [record.metrics["memory/activation_bytes"] for record in records]
    assert counted[0] == counted[1] != None  # noqa: E711


def test_each_run_of_a_cohort_is_as_alone_on_a_shared_base(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding
) -> None:
    whole = make_base()
    loras = [LoraConfig(rank=2 + 2 * i, alpha=8.0, dropout=i / 10) for i in range(2)]
    alone, together = (
        [make_job(whole, f"{n}{i}", seed=i, lora=loras[i], optim={"steps": 3}) for i in range(2)]
        for n in ("alone", "together")
    )
    for job in alone:
        run_all(whole, [job])
    with sharding(QuantConfig()) as (leader, half):
        run_all(half, together, leader, slots=2)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_a_run_goes_on_from_a_checkpoint_of_one_process_and_leaves_a_whole_adapter(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding
) -> None:
    whole = make_base()
    alone, parts = (make_job(whole, n, lora=RANK_4, optim={"steps": 6}) for n in ("alone", "parts"))
    run_all(whole, [alone])
    assert run_all(whole, [parts], stop_after=2)["parts"].status is RunStatus.interrupted
    with sharding(QuantConfig()) as (leader, half):
        assert run_all(half, [parts], leader, stop_after=4)["parts"].error == "stopped by SIGTERM"
        assert run_all(half, [parts], leader)["parts"].status is RunStatus.completed
    assert_same(alone, parts)
    files = [job.directory.adapter for job in (alone, parts)]
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in files)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=1e-4)
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in files]
    assert configs[0] == configs[1]
