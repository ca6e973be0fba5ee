"""Fused experts: transformers' outputs, PEFT's adapters, every storage's bytes, and cohorts as alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.blocks import uncovered_weights
from harness.base.build import build_base, freeze, inspect_model
from harness.base.coverage import coverage
from harness.base.experts import experts_forward, expose_experts
from harness.base.quick_imports import quiet_libraries
from harness.base.source import find_model
from harness.base.twin import twin_of
from harness.config.compose import compose_run
from harness.config.schema import LoraConfig, LoraInit, ModelConfig, QuantConfig, QuantFormat
from harness.engine.shared_base import SharedBase
from harness.errors import RequestError
from harness.measure.memory import base_size
from tests.engine.test_cpu import outcome, trained, work_of
from tests.random_models import save_random_model

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48, "norm_topk_prob": True},
    "gpt_oss": {"num_local_experts": 4},  # transposed, interleaved, with biases
}
EXPERT_WEIGHTS = {
    "mixtral": 2 * 4 * 3 * 32 * 64,
    "qwen3_moe": 2 * 4 * 3 * 32 * 48,
    "gpt_oss": 2 * 4 * 3 * 32 * 64,
}
ALL = LoraConfig(rank=2, alpha=4.0, target_modules=["all_linear"])
NONE, NF4_DQ = QuantConfig(format=QuantFormat.none), QuantConfig(double_quant=True)


def model_of(kind: str) -> Any:
    """Return a random model of a kind; the same one every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **KINDS[kind])
    config._attn_implementation = "eager"
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.15) if parameter.ndim > 1 else parameter.data.add_(0.05)
    return model.eval()


def shared_of(kind: str, quant: QuantConfig = NONE) -> SharedBase:
    return SharedBase(freeze(model_of(kind), quant, CPU))


def tokens(rows: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
def test_unrounded_experts_compute_what_transformers_does(kind: str):
    ids = tokens()
    with torch.no_grad():
        theirs = model_of(kind)(input_ids=ids).logits
        ours = shared_of(kind).model(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "kind", ["qwen2_moe", "olmoe", "granitemoe", "hunyuan_v1_moe", "nemotron_h", "cohere2_moe"]
)
def test_small_models_of_other_architectures_keep_their_logits(kind: str):
    """Shared experts beside the fused ones, routers that scale, experts without a gate, dense layers."""
    from transformers import AutoConfig

    quiet_libraries()
    twin = twin_of(AutoConfig.for_model(kind), "eager")
    ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        before = twin(input_ids=ids).logits
        expose_experts(twin)
        after = twin(input_ids=ids).logits
    assert any(experts_forward(module) for module in twin.modules())
    assert torch.allclose(after, before, atol=1e-5)


def test_a_base_from_the_cache_has_its_experts_as_the_one_that_was_built(tmp_path: Path) -> None:
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    directory = save_random_model(tmp_path / "m", "qwen3_moe", **shape, **KINDS["qwen3_moe"])
    config = ModelConfig(name=str(directory))
    source = find_model(config)
    assert any(spec.experts > 1 for spec in inspect_model(source, config).linears)
    ids, logits = tokens(), []
    for from_cache in (False, True):
        base = build_base(
            *(source, config, NF4_DQ), fingerprint="it", device=CPU, cache=tmp_path / "cache"
        )
        assert base.from_cache is from_cache
        assert any(spec.experts > 1 for spec in base.linears)
        with torch.no_grad():
            logits.append(base.model(input_ids=ids).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_stored_as_every_other_layer(kind: str):
    shared = shared_of(kind, NF4_DQ)
    linears = shared.base.linears
    experts = [spec for spec in linears if spec.experts > 1]
    assert sum(s.in_features * s.out_features for s in experts) == EXPERT_WEIGHTS[kind]
    in_blocks = sum(
        p.numel() for n, p in model_of(kind).named_parameters() if ".layers." in n and p.ndim > 1
    )
    size = base_size(shared.base)
    left_out = uncovered_weights(shared.model, linears)
    assert (
        sum(s.in_features * s.out_features for s in linears) + sum(left_out.values()) == in_blocks
    )
    assert size.bits_per_param < 4.6  # of all of them: 4.127 and this model's tables
    config = compose_run(["quant=nf4_dq", "lora.rank=2"])
    shares = coverage(config, linears, left_out)
    routers = 2 * 4 * 32
    biases = (
        2 * 4 * (128 + 32) if kind == "gpt_oss" else 0
    )  # [experts, outputs], added and not multiplied
    assert shares.packed == shares.adapted == pytest.approx(1 - (routers + biases) / in_blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_experts_are_the_rounded_matrices(kind: str):
    """Each expert's matrix, rounded and put back into transformers' own model, gives the same logits."""
    shared, plain = shared_of(kind, NF4_DQ), model_of(kind)
    for spec in shared.base.linears:
        layer: Any = shared.model.get_submodule(spec.name)
        dense = layer.dense_weight(torch.float32)
        owner = plain.get_submodule(spec.name.rpartition(".")[0])
        target = getattr(owner, spec.name.rpartition(".")[2])
        weight = target if spec.experts > 1 else target.weight
        assert weight.shape == dense.view(weight.shape).shape
        weight.data.copy_(dense.view(weight.shape))
    ids = tokens()
    with torch.no_grad():
        theirs = plain(input_ids=ids).logits
        ours = shared.model(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=2e-5)


def peft_model(kind: str, lora: LoraConfig, seed: int) -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj"] if "all_linear" in lora.target_modules else []
    model = model_of(kind)
    torch.manual_seed(seed)
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=4,
        target_modules=names,
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        init_lora_weights=True if lora.init is LoraInit.default else "gaussian",
    )
    return get_peft_model(model, config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", [LoraInit.default, LoraInit.gaussian])
@pytest.mark.parametrize("targets", ["all_linear", "experts"])
def test_an_adapter_begins_and_is_called_as_pefts(kind: str, init: LoraInit, targets: str):
    from peft import get_peft_model_state_dict

    lora = LoraConfig(rank=2, alpha=4.0, target_modules=[targets], init=init)
    shared = shared_of(kind)
    ours = shared.state(shared.attach(lora, seed=3))
    theirs = get_peft_model_state_dict(peft_model(kind, lora, seed=3))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_pefts(kind: str):
    shared, peft = shared_of(kind), peft_model(kind, ALL, seed=1)
    adapter = trained(shared, ALL, seed=1)
    values = shared.state(adapter)
    named = {
        name.replace(".default", ""): parameter
        for name, parameter in peft.named_parameters()
        if "lora_" in name
    }
    assert named.keys() == values.keys()
    for name, parameter in named.items():
        parameter.data.copy_(values[name])
    work = work_of(adapter, 7, packed=False)
    (gradient,) = shared.backend.gradients([work])
    batch = work.batch
    logits = peft(input_ids=batch.input_ids_BT).logits.flatten(0, 1)[batch.loss_positions_N]
    loss = torch.nn.functional.cross_entropy(
        logits, batch.targets_BT.flatten()[batch.loss_positions_N]
    )
    loss.backward()
    assert gradient.loss.item() == pytest.approx(loss.item(), abs=2e-6)
    own = adapter.of_parameters(gradient.of_adapter.flat_P)
    full = dict(zip(adapter.parameters, own, strict=True))
    assert len(full) == len(named)
    of_parameter = {id(p): name for name, p in adapter.parameters.items()}
    for name, parameter in named.items():
        mine = full[of_parameter[id(_parameter(shared, adapter, name))]]
        assert torch.allclose(mine, parameter.grad, atol=1e-6), name


def _parameter(shared: SharedBase, adapter: Any, name: str) -> Any:
    """Return our parameter that shares memory with what the file calls `name`."""
    value = shared.state(adapter)[name]
    (found,) = [p for p in adapter.parameters.values() if p.data_ptr() == value.data_ptr()]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_loaded_by_peft(kind: str, tmp_path: Path):
    from peft import PeftModel

    shared = shared_of(kind)
    adapter = trained(shared, ALL, seed=2)
    shared.save(adapter, tmp_path)
    ids = tokens()
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(model_of(kind), str(tmp_path)).eval()
        theirs = loaded(input_ids=ids).logits
        with shared.only(adapter):
            ours = shared.model(input_ids=ids).logits
        base = model_of(kind)(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=5e-5)
    assert (theirs - base).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_a_cohort_are_as_alone(kind: str):
    """Other ranks, targets, numbers of rows; two leave the experts alone, one of them after all others."""
    loras = [
        ALL,
        LoraConfig(rank=4, alpha=4.0, target_modules=["experts"]),
        LoraConfig(rank=3, alpha=5.0, target_modules=["attention"]),
        LoraConfig(rank=6, alpha=5.0, target_modules=["q_proj"]),
        copy.deepcopy(ALL),
    ]
    alone = []
    for seed, lora in enumerate(loras):
        shared = shared_of(kind, NF4_DQ)
        work = work_of(trained(shared, lora, seed), seed, packed=False, rows=2 + seed % 2)
        alone += outcome(shared.backend.gradients([work]))
    shared = shared_of(kind, NF4_DQ)
    works = [
        work_of(trained(shared, lora, seed), seed, packed=False, rows=2 + seed % 2)
        for seed, lora in enumerate(loras)
    ]
    for (loss, gradient), (own_loss, own) in zip(
        outcome(shared.backend.gradients(works)), alone, strict=True
    ):
        assert loss == pytest.approx(own_loss, abs=1e-6)
        assert torch.allclose(gradient, own, atol=2e-6)


def test_an_adapter_goes_and_the_next_begins_as_on_an_untouched_base():
    shared = shared_of("mixtral")
    shared.detach(trained(shared, ALL, seed=1))
    experts_alone = LoraConfig(rank=2, alpha=4.0, target_modules=["experts"])
    shared.detach(trained(shared, experts_alone, seed=2))
    again = shared.state(shared.attach(ALL, seed=3))
    fresh_base = shared_of("mixtral")
    fresh = fresh_base.state(fresh_base.attach(ALL, seed=3))
    assert all(torch.equal(again[key], value) for key, value in fresh.items())


def test_recomputed_activations_give_the_same_gradients():
    kept, recomputed = (
        outcome(
            shared.backend.gradients(
                [work_of(trained(shared, ALL, 1), 1, packed=False, recompute=recompute)]
            )
        )
        for recompute in (False, True)
        for shared in [shared_of("mixtral", NF4_DQ)]
    )
    assert torch.equal(kept[0][1], recomputed[0][1])


def test_what_peft_has_no_parameters_for_is_refused():
    shared = shared_of("mixtral")
    with pytest.raises(RequestError, match=r"lora\.dropout=0\.1 .* use lora\.dropout=0"):
        shared.attach(LoraConfig(alpha=1.0, rank=2, dropout=0.1), seed=0)
    with pytest.raises(RequestError, match=r"lora\.init=olora"):
        shared.attach(LoraConfig(alpha=1.0, rank=2, init=LoraInit.olora), seed=0)
    attention = LoraConfig(alpha=1.0, rank=2, dropout=0.1, target_modules=["attention"])
    assert shared.attach(attention, seed=0).dropout == 0.1
    with pytest.raises(RequestError, match=r"above the smallest target dimension 32 .*experts"):
        shared.attach(LoraConfig(alpha=1.0, rank=33, target_modules=["experts"]), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_counts_what_the_built_base_has(kind: str):
    from harness.base.source import ModelSource
    from harness.config.schema import ModelConfig
    from harness.plan.base_bytes import base_bytes
    from harness.plan.model import PlannedModel
    from harness.plan.passes import PlannedRun, pass_bytes
    from harness.plan.prediction import BatchSize

    source = ModelSource(name=kind, directory=None, revision=None)
    planned = PlannedModel(model_of(kind).config, source, ModelConfig())
    planned.use(NF4_DQ)
    size, shared = base_bytes(planned.outline, planned.storage), shared_of(kind, NF4_DQ)
    built = base_size(shared.base)
    assert size.bits_per_param == built.bits_per_param
    assert size.constant_bytes == built.constant_bytes
    adapter = shared.attach(ALL, seed=0)
    from harness.plan.predict import adapter_params

    assert adapter_params(planned.linears, ALL) == adapter.num_parameters
    run = PlannedRun(ALL, compose_run([]).optim, BatchSize(2, 16, 11))
    assert pass_bytes(planned, [run], "cpu").saved > 0
