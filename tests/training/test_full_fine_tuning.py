"""`lora=none`: the model itself in an adapter's place, against plain torch and transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer

from harness.config.compose import compose_run
from harness.config.resources import BackendName
from harness.config.schema import (
    FloatType,
    LoraConfig,
    LoraMethod,
    OptimizerName,
    QuantConfig,
    QuantFormat,
)
from harness.config.validate import validate
from harness.data.order import batch_rows
from harness.engine.whole_model import WholeModel
from harness.errors import RequestError
from harness.plan.model import PlannedModel
from harness.records.metrics import MEMORY_PARTS, memory_part_name
from harness.records.record import RunStatus
from harness.training.job import Job
from harness.training.optimizers import AdapterOptimizer
from tests.random_models import SHAPES, save_random_model
from tests.training.conftest import MakeBase, MakeJob
from tests.training.test_same_as_alone import CLOSE, losses, worst
from tests.training.test_session import run_one

FULL = LoraConfig(method=LoraMethod.none)
UNROUNDED = QuantConfig(format=QuantFormat.none)
STEPS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models, one of them with weights the other way round and with biases."""
    place = tmp_path_factory.mktemp("models")
    return {
        kind: save_random_model(place / kind, kind, **SHAPES[kind]) for kind in ("llama", "gpt2")
    }


@pytest.fixture
def make_whole(make_base: MakeBase, make_job: MakeJob):
    """Return a function that makes a base to be trained whole, and a run on it."""

    def make(model: Path, name: str, quant: QuantConfig = UNROUNDED, **sections: Any):
        shared = make_base(quant, model, BackendName.reference)
        optim = {"lr": 1e-3, "steps": STEPS, **sections.pop("optim", {})}
        job = make_job(shared, name, lora=FULL, quant=quant, optim=optim, **sections)
        return shared, job

    return make


def trained_weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.directory.model / "model.safetensors")


def plain_training(model: Path, job: Job) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training in plain transformers and torch: losses and weights."""
    optim, rows = job.config.optim, job.data.train
    own: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    parameters = list(own.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr)
    curve = []
    for step in range(STEPS):
        batch = rows.batch(batch_rows(len(rows), optim.batch_size, job.config.seed, step))
        logits = own(input_ids=batch.input_ids_BT).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve, own.state_dict()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_equals_plain_transformers_and_torch(make_whole, models, kind: str) -> None:
    shared, job = make_whole(models[kind], kind, optim={"weight_decay": 0.1, "micro_batch_size": 2})
    record = run_one(shared, job)
    curve, weights = plain_training(models[kind], job)
    assert worst(losses(job), curve) < CLOSE
    assert curve[0] - curve[-1] > 0.1
    trained = trained_weights(job)
    parameters = {name for name, _ in shared.model.named_parameters()}
    assert trained.keys() == parameters
    for name in parameters:
        assert torch.allclose(trained[name], weights[name], atol=1e-5), name
    assert record.metrics["adapter/trainable_params"] == sum(
        weights[name].numel() for name in parameters
    )
    own: Any = AutoModelForCausalLM.from_pretrained(job.directory.model)
    assert all(torch.equal(own.state_dict()[name], trained[name]) for name in parameters)


@pytest.mark.parametrize("optimizer", [OptimizerName.adamw, OptimizerName.adamw_8bit])
def test_an_interrupted_one_goes_on_bit_for_bit(make_whole, pretrained, optimizer) -> None:
    sections: dict[str, Any] = {
        "optim": {"name": optimizer, "warmup_steps": 2, "micro_batch_size": 2},
        "eval": {"every_steps": 2, "keep_best": True},
    }
    shared, whole = make_whole(pretrained, "whole", **sections)
    run_one(shared, whole)
    shared, parts = make_whole(pretrained, "parts", **sections)
    assert run_one(shared, parts, stop_after=3).status is RunStatus.interrupted
    shared, _ = make_whole(pretrained, "another")
    assert "resumed after step 3" in run_one(shared, parts).notes
    first, second = trained_weights(whole), trained_weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(whole) == losses(parts)


@pytest.mark.parametrize(
    ("compute", "optimizer", "recomputes"),
    [
        (FloatType.float32, OptimizerName.adamw, False),
        (FloatType.bfloat16, OptimizerName.adamw_8bit, False),
        (FloatType.bfloat16, OptimizerName.adamw, True),
    ],
)
def test_its_memory_is_what_the_planner_says(
    make_whole, pretrained, compute, optimizer, recomputes: bool
) -> None:
    quant = replace(UNROUNDED, compute_dtype=compute)
    optim = {"name": optimizer, "gradient_checkpointing": recomputes, "steps": 2}
    shared, job = make_whole(pretrained, "run", quant, optim=optim)
    record = run_one(shared, job)
    parts = [memory_part_name(part) for part in MEMORY_PARTS]
    for name in [*parts, "adapter/trainable_params"]:
        assert record.predicted[name] == record.metrics[name], name
    params = record.metrics["adapter/trainable_params"]
    assert params is not None
    copied = compute is not FloatType.float32
    assert record.metrics["memory/adapter_bytes"] == 4 * params * copied
    assert record.metrics["memory/gradient_bytes"] == 4 * params


def test_a_model_in_16_bits_is_trained_in_float32_and_computes_with_its_rounding(
    make_whole, pretrained
) -> None:
    quant = replace(UNROUNDED, compute_dtype=FloatType.bfloat16)
    shared, job = make_whole(pretrained, "run", quant, optim={"lr": 1e-5})
    record = run_one(shared, job)
    assert record.status is RunStatus.completed
    trained, began = trained_weights(job), load_file(pretrained / "model.safetensors")
    moved = [
        name for name in trained if not torch.equal(trained[name].bfloat16().float(), trained[name])
    ]
    assert len(moved) == len(trained)  # steps far below bfloat16's are not lost
    for name, parameter in shared.model.named_parameters():
        assert torch.equal(parameter, trained[name].bfloat16()), name
        assert not torch.equal(trained[name], began[name].float())


def test_what_decays_is_what_transformers_lets_decay(models, make_base: MakeBase) -> None:
    for model in models.values():
        shared = make_base(UNROUNDED, model, BackendName.reference)
        whole = shared.attach(FULL, seed=0)
        assert isinstance(whole, WholeModel)
        config = compose_run(["lora=none", "quant=none", "optim.weight_decay=0.1"]).optim
        for name in (OptimizerName.adamw, OptimizerName.adamw_8bit):
            groups = AdapterOptimizer(whole, replace(config, name=name)).optimizer.param_groups
            assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        own = AutoModelForCausalLM.from_pretrained(model)
        decaying = set(Trainer.get_decay_parameter_names(None, own))  # pyright: ignore[reportArgumentType]
        ours = {name for name in whole.parameters if whole.is_in_first(name)}
        assert ours == decaying & whole.parameters.keys()


def test_its_base_serves_no_other_run_afterwards(make_whole, models) -> None:
    shared, job = make_whole(models["llama"], "run")
    run_one(shared, job)
    assert shared.is_rewritten
    assert not any(parameter.requires_grad for parameter in shared.model.parameters())
    with pytest.raises(AssertionError, match="full fine-tuning"):
        shared.attach(LoraConfig(alpha=8), seed=0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["quant=nf4"], "quant.format=nf4 keeps codes; use quant=none"),
        (["quant=int8"], "quant.format=int8 keeps codes"),
        (["quant=none", "lora.rank=4"], "lora.rank=4 would be ignored by lora=none"),
        (["quant=none", "lora.init=pissa"], "lora.init=pissa would be ignored"),
        (["quant=none", "lora.dropout=0.1"], "lora.dropout=0.1 would be ignored"),
        (["quant=none", "optim.loraplus_ratio=4"], "optim.loraplus_ratio=4.0 would be"),
        (["quant=none", "resources.backend=cpu"], "resources.backend=cpu computes a frozen base"),
    ],
)
def test_what_it_cannot_have_is_refused_in_words(words: list[str], told: str) -> None:
    with pytest.raises(RequestError, match=told.replace(".", r"\.")):
        validate(compose_run(["lora=none", *words]))


def test_fused_experts_are_refused_before_anything_is_loaded() -> None:
    from harness.base.targets import LinearSpec, adapted_layers

    with pytest.raises(RequestError, match="fused experts"):
        adapted_layers(FULL, [LinearSpec("model.layers.0.mlp.experts.up_proj", 8, 32, experts=4)])


def test_it_has_no_company_in_a_plan(pretrained: Path) -> None:
    from harness.base.source import find_model
    from harness.plan.predict import predict
    from harness.plan.prediction import BatchSize

    config = compose_run(["lora=none", "quant=none"])
    model = PlannedModel.from_source(find_model(config.model), config.model)
    with pytest.raises(RequestError, match="trains alone"):
        predict(model, config, BatchSize(2, 16, 8), cohort=2, device="cpu")
