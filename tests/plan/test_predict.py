"""Predictions: parts, cohorts, devices, and how little is loaded for them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.resources import Shard
from harness.config.schema import (
    FloatType,
    LoraConfig,
    LoraMethod,
    OptimConfig,
    OptimizerName,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.errors import RequestError
from harness.plan.base_bytes import gathered_bytes
from harness.plan.model import PlannedModel
from harness.plan.predict import predict
from harness.plan.prediction import STATIC_PARTS, BatchSize
from harness.records.metrics import MEMORY_PARTS, METRICS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> RunConfig:
    """QLoRA as published: NF4 with double quantization, bfloat16, rank 64 on all linear layers."""
    return RunConfig(
        quant=QuantConfig(
            format=QuantFormat.nf4, double_quant=True, compute_dtype=FloatType.bfloat16
        ),
        lora=LoraConfig(rank=64, alpha=16),
        optim=OptimConfig(steps=1, batch_size=2, gradient_checkpointing=True),
    )


def test_on_a_cpu_the_peak_is_the_sum_of_the_parts(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    found = predict(llama, config, batch, device="cpu")
    assert tuple(found.parts) == MEMORY_PARTS
    assert found.parts == found.cohort_parts
    assert found.peak_bytes == sum(found.parts.values())
    assert found.parts["adapter"] == found.parts["gradient"] == 4 * 159_907_840
    assert set(found.metrics()) <= set(METRICS)
    assert found.metrics()["memory/peak_bytes"] == found.peak_bytes


def test_on_a_gpu_the_peak_is_static_bytes_and_the_peak_of_a_pass(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    found = predict(llama, config, batch, device="cuda")
    static = sum(found.parts[part] for part in STATIC_PARTS)
    of_pass = found.parts["activation"] + found.transient_bytes
    assert found.peak_bytes == static + found.library_bytes + of_pass
    assert found.transient_bytes >= 2 * 4096 * 11008  # a dense weight, for a moment


def test_a_cohort_has_one_base_and_everything_else_for_each_run(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    one = predict(llama, config, batch, device="cuda")
    four = predict(llama, config, batch, cohort=4, device="cuda")
    for part in STATIC_PARTS:
        times = 1 if part in ("base", "quant_constants") else 4
        assert four.cohort_parts[part] == times * one.parts[part]
        assert four.parts[part] == one.parts[part]
    assert four.parts["activation"] == pytest.approx(one.parts["activation"], rel=0.01)
    assert four.working_bytes == four.cohort_parts["adapter"]  # stacked side by side
    with_dropout = replace(config, lora=replace(config.lora, dropout=0.1))
    assert predict(llama, with_dropout, batch, cohort=4, device="cuda").working_bytes == 0


def test_gradients_of_micro_batches_are_summed_in_a_tensor_of_their_own(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    config.optim.batch_size = 8
    found = predict(llama, config, batch, device="cuda")
    assert found.working_bytes == found.parts["gradient"]


def test_the_best_adapter_so_far_takes_the_place_of_one_adapter(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    peak = predict(llama, config, batch, device="cuda").peak_bytes
    config.eval.keep_best = True
    found = predict(llama, config, batch, device="cuda")
    assert found.peak_bytes - peak == found.parts["adapter"]


def test_paged_states_count_as_optimizer_but_not_in_the_allocators_peak(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    peaks = {}
    for name in (OptimizerName.adamw, OptimizerName.paged_adamw_32bit):
        config.optim.name = name
        found = predict(llama, config, batch, device="cuda")
        assert found.parts["optimizer"] == pytest.approx(8 * found.trainable_params, rel=1e-6)
        peaks[name] = found.peak_bytes
    assert peaks[OptimizerName.adamw] - peaks[OptimizerName.paged_adamw_32bit] == pytest.approx(
        found.paged_bytes, rel=1e-6
    )


def test_an_adapter_that_does_not_fit_the_model_is_refused(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    config.lora.target_modules = ["q_projj"]
    with pytest.raises(RequestError, match="near names: q_proj"):
        predict(llama, config, batch, device="cpu")


def test_an_answer_needs_neither_peft_nor_bitsandbytes_and_names_need_no_torch() -> None:
    code = (
        "import json, sys\n"
        "from harness.plan import prediction, settings\n"
        "settings.shape_config('llama2_7b')\n"
        "light = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "from harness.config.schema import LoraConfig, ModelConfig, OptimConfig, RunConfig\n"
        "from harness.plan.model import PlannedModel\n"
        "from harness.plan.predict import predict\n"
        "model = PlannedModel.from_shape('pythia_160m', ModelConfig())\n"
        "config = RunConfig(lora=LoraConfig(alpha=8), optim=OptimConfig(steps=1))\n"
        "found = predict(model, config, prediction.BatchSize(1, 8, 4), device='cuda')\n"
        "heavy = ('peft', 'bitsandbytes', 'datasets', 'scipy')\n"
        "print(json.dumps([light, [name for name in heavy if name in sys.modules]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == [[], []]
    assert done.stderr == ""


def test_what_json_has_of_a_prediction(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    found = predict(llama, config, batch, cohort=3, device="cuda")
    tree = found.tree()
    assert tree["parts"] == found.cohort_parts
    assert (tree["cohort"], tree["device"]) == (3, "cuda")
    assert tree["transient_bytes"] == found.transient_bytes
    assert tree["peak_bytes"] == found.peak_bytes
    assert tree["metrics"] == found.metrics()
    assert found.metrics()["memory/gradient_bytes"] == 4 * 159_907_840
    assert found.metrics()["adapter/trainable_params"] == 159_907_840
    assert found.static_bytes == sum(found.cohort_parts[part] for part in STATIC_PARTS)
    assert found.bits_per_param == pytest.approx(4.127, abs=5e-4)


def test_a_share_of_the_activations_is_rounded_up(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    found = predict(llama, config, batch, cohort=3, device="cpu")
    share, rest = divmod(found.cohort_parts["activation"], 3)
    assert found.parts["activation"] == share + (rest > 0)


@pytest.mark.parametrize("compute", FloatType)
def test_full_fine_tuning_has_float32_copies_of_16_bit_weights_only(
    llama: PlannedModel, batch: BatchSize, compute: FloatType
) -> None:
    config = RunConfig(
        quant=QuantConfig(format=QuantFormat.none, compute_dtype=compute),
        lora=LoraConfig(method=LoraMethod.none),
        optim=OptimConfig(steps=1, batch_size=2),
    )
    found = predict(llama, config, batch, device="cuda")
    params, copies = 6_738_415_616, compute is not FloatType.float32
    assert found.trainable_params == found.logical_params == params
    assert found.parts["adapter"] == 4 * params * copies
    assert found.parts["gradient"] == 4 * params
    with pytest.raises(
        RequestError, match="2 runs side by side: a run that trains the model itself"
    ):
        predict(llama, config, batch, cohort=2, device="cuda")


def test_of_a_base_that_processes_share_each_has_its_part_and_what_it_gathers(
    llama: PlannedModel, config: RunConfig, batch: BatchSize
) -> None:
    alone = predict(llama, config, batch, device="cuda")
    config.resources.shard, config.resources.data_parallel = Shard.fsdp, 4
    found = predict(llama, config, batch, device="cuda")
    for part in ("base", "quant_constants"):
        assert found.parts[part] == pytest.approx(alone.parts[part] / 4, rel=0.01)
    gathered = gathered_bytes(llama.outline, llama.storage)
    assert found.transient_bytes == alone.transient_bytes + gathered
    static = sum(found.cohort_parts[part] for part in STATIC_PARTS)
    beside = found.working_bytes + found.library_bytes
    assert found.peak_bytes == static + beside + found.parts["activation"] + found.transient_bytes
