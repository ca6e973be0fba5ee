"""What the planner says of a pass is what the engine keeps in one, to the byte."""

from typing import Any

import pytest

from harness.config.schema import (
    Attention,
    FloatType,
    LoraConfig,
    LoraMethod,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.config.storage import ROUNDING
from harness.errors import RequestError
from harness.plan.model import PlannedModel
from harness.plan.passes import PlannedRun, chosen_blocks, pass_bytes, traced_pass
from harness.plan.predict import predict
from harness.plan.prediction import BatchSize
from tests.plan.engine import Bases, live_bytes, saved_bytes
from tests.random_models import LLAMA, save_random_model

SMALL, LONG = BatchSize(2, 16, 11), BatchSize(3, 33, 40)
PACKED = BatchSize(2, 24, 30, packed=True)
NF4, BFLOAT16 = QuantFormat.nf4, FloatType.bfloat16

# model, storage, compute type, attention, batch, cohort, dropout, gradient checkpointing
GRID: list[tuple[Any, ...]] = [
    ("uneven", NF4, FloatType.float32, "sdpa", SMALL, 1, 0.0, False),
    ("uneven", NF4, BFLOAT16, "sdpa", LONG, 1, 0.0, False),
    ("uneven", NF4, FloatType.float32, "sdpa", LONG, 1, 0.0, True),
    ("uneven", NF4, FloatType.float32, "sdpa", SMALL, 4, 0.0, False),
    ("uneven", NF4, BFLOAT16, "sdpa", SMALL, 3, 0.1, True),
    ("uneven", QuantFormat.none, FloatType.float32, "eager", LONG, 2, 0.0, False),
    ("uneven", QuantFormat.int4_asym, FloatType.float32, "sdpa", PACKED, 2, 0.1, False),
    ("uneven", QuantFormat.int8, BFLOAT16, "eager", SMALL, 1, 0.1, True),
    ("qwen2", NF4, FloatType.float32, "sdpa", SMALL, 1, 0.0, False),
    ("qwen2", QuantFormat.none, BFLOAT16, "sdpa", PACKED, 3, 0.0, False),
    ("qwen2", QuantFormat.int4, BFLOAT16, "sdpa", LONG, 2, 0.1, False),
    ("gpt2", NF4, FloatType.float32, "sdpa", SMALL, 1, 0.0, False),
    ("gpt2", QuantFormat.fp4, BFLOAT16, "sdpa", LONG, 2, 0.1, False),
    ("gpt2", QuantFormat.none, FloatType.float32, "eager", SMALL, 2, 0.0, True),
    ("gpt_neox", NF4, FloatType.float32, "sdpa", LONG, 1, 0.0, False),
    ("gpt_neox", QuantFormat.int8, BFLOAT16, "sdpa", PACKED, 2, 0.1, True),
    ("gpt_neox", QuantFormat.int4, BFLOAT16, "eager", SMALL, 3, 0.0, False),
]


@pytest.mark.parametrize(
    ("name", "storage", "compute", "attention", "batch", "cohort", "dropout", "checkpointing"),
    GRID,
    ids=lambda value: getattr(value, "value", None),
)
def test_predicted_activations_are_what_autograd_keeps(
    bases: Bases,
    name: str,
    storage: QuantFormat,
    compute: FloatType,
    attention: str,
    batch: BatchSize,
    cohort: int,
    dropout: float,
    checkpointing: bool,
) -> None:
    config = RunConfig(
        quant=QuantConfig(format=storage, compute_dtype=compute),
        lora=LoraConfig(rank=3, alpha=12, dropout=dropout),
        optim=OptimConfig(steps=1, gradient_checkpointing=checkpointing),
    )
    implementation = Attention(attention)
    real = saved_bytes(
        bases.real(name, config.quant, implementation), [config.lora] * cohort, config.optim, batch
    )
    planned = bases.planned(name, implementation)
    assert (
        predict(planned, config, batch, cohort=cohort, device="cpu").cohort_parts["activation"]
        == real
    )


def test_cohorts_of_different_ranks_and_targets_are_traced_too(bases: Bases) -> None:
    loras = [
        LoraConfig(rank=8, alpha=8),
        LoraConfig(rank=2, alpha=3, target_modules=["q_proj", "v_proj"]),
        LoraConfig(rank=8, alpha=16),
        LoraConfig(rank=4, alpha=8, target_modules=["model.layers.3.mlp.down_proj"]),
    ]
    quant, optim = QuantConfig(), OptimConfig(steps=1)
    real = saved_bytes(bases.real("uneven", quant, Attention.sdpa), loras, optim, SMALL)
    planned = bases.planned("uneven")
    planned.use(quant)
    runs = [PlannedRun(lora, optim, SMALL) for lora in loras]
    assert pass_bytes(planned, runs, "cpu").saved == real


METHODS = {
    "dora": [
        LoraConfig(rank=8, alpha=8, method=LoraMethod.dora),
        LoraConfig(rank=2, alpha=3, method=LoraMethod.dora, dropout=0.1, target_modules=["mlp"]),
    ],
    "qalora": [LoraConfig(rank=4, alpha=3, method=LoraMethod.qalora, qalora_group_size=4)] * 2,
    "patterns": [
        LoraConfig(
            rank=4, alpha=8, rank_pattern={"0.self_attn.*": 8}, alpha_pattern={"v_proj": 2.0}
        )
    ],
    "whole": [LoraConfig(rank=4, alpha=8, train_also=["embed_tokens", "lm_head"])],
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_traced_and_counted_too(bases: Bases, name: str) -> None:
    loras, quant, optim = METHODS[name], QuantConfig(), OptimConfig(steps=1, neftune_alpha=5.0)
    shared = bases.real("uneven", quant, Attention.sdpa)
    real = saved_bytes(shared, loras, optim, SMALL)
    planned = bases.planned("uneven")
    planned.use(quant)
    runs = [PlannedRun(lora, optim, SMALL) for lora in loras]
    assert pass_bytes(planned, runs, "cpu").saved == real
    adapter = shared.attach(loras[0], seed=0)
    config = RunConfig(quant=quant, lora=loras[0], optim=optim)
    prediction = predict(planned, config, SMALL, device="cpu")
    assert prediction.trainable_params == adapter.num_parameters
    shared.detach(adapter)


def test_blocks_before_the_first_adapted_one_keep_nothing(bases: Bases) -> None:
    lora = LoraConfig(rank=4, alpha=8, target_modules=["model.layers.3.mlp.down_proj"])
    optim, quant = OptimConfig(steps=1), QuantConfig()
    real = saved_bytes(bases.real("uneven", quant, Attention.sdpa), [lora], optim, SMALL)
    planned = bases.planned("uneven")
    planned.use(quant)
    assert pass_bytes(planned, [PlannedRun(lora, optim, SMALL)], "cpu").saved == real


# A few blocks stand for all --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PlannedModel]:
    """A Llama of seven blocks, and a Gemma 2 whose blocks alternate between a window and all positions."""
    directory = tmp_path_factory.mktemp("deep")
    llama = {**LLAMA, "num_hidden_layers": 7}
    gemma = {**llama, "num_hidden_layers": 10, "head_dim": 16, "sliding_window": 8}
    return {
        "llama": _planned(directory, "llama", Attention.sdpa, llama),
        "gemma2": _planned(directory, "gemma2", Attention.eager, gemma),
    }


def _planned(
    directory: Any, name: str, attention: Attention, fields: dict[str, Any]
) -> PlannedModel:
    from harness.base.source import ModelSource

    save_random_model(directory / name, name, **fields)
    for file in (directory / name).iterdir():  # nothing but the config is needed
        if file.name != "config.json":
            file.unlink()
    source = ModelSource(name=name, directory=directory / name, revision=None)
    return PlannedModel.from_source(source, ModelConfig(attention=attention))


SOME_BLOCKS = ["model.layers.4.mlp.up_proj", "layers.5.mlp.up_proj"]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize(
    ("device", "checkpointing", "targets"),
    [
        *(("cpu", True, ["all_linear"]), ("cuda", False, ["all_linear"])),
        *(("cpu", False, targets) for targets in (["all_linear"], SOME_BLOCKS)),
        *(("cuda", True, targets) for targets in (["q_proj"], SOME_BLOCKS)),
    ],
)
def test_extrapolation_over_blocks_is_the_trace_of_all_blocks(
    deep: dict[str, PlannedModel], name: str, checkpointing: bool, device: str, targets: list[str]
) -> None:
    model = deep[name]
    model.use(QuantConfig(format=NF4, double_quant=True, compute_dtype=BFLOAT16))
    optim = OptimConfig(steps=1, gradient_checkpointing=checkpointing)
    lora = LoraConfig(rank=4, alpha=8, target_modules=targets)
    runs = [PlannedRun(lora, optim, LONG)] * 2
    whole = traced_pass(model, runs, device, range(model.num_blocks))
    assert pass_bytes(model, runs, device) == whole
    assert whole.peak >= whole.saved


def test_inputs_on_the_host_are_what_a_gpu_no_longer_keeps(deep: dict[str, PlannedModel]) -> None:
    model = deep["llama"]
    model.use(QuantConfig(format=NF4, double_quant=True, compute_dtype=BFLOAT16))
    lora = LoraConfig(rank=4, alpha=8)
    kept, away = (
        pass_bytes(model, [PlannedRun(lora, optim, LONG)], "cuda")
        for optim in (
            OptimConfig(steps=1, gradient_checkpointing=True),
            OptimConfig(steps=1, gradient_checkpointing=True, offload_activations=True),
        )
    )
    width = model.model.config.hidden_size
    assert kept.saved - away.saved == model.num_blocks * LONG.rows * LONG.length * width * 2
    assert away.peak < kept.peak


def test_one_block_of_each_kind_and_then_one_more_is_traced() -> None:
    assert chosen_blocks("ABBBB") == ([0, 4], [([0, 1, 4], 3)])
    assert chosen_blocks("A") == ([0], [])
    first, further = chosen_blocks("aBABABAB")
    assert (first, further) == ([0, 2, 7], [([0, 1, 2, 7], 3), ([0, 2, 4, 7], 2)])


# The peak of a pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uneven", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("compute", FloatType)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_pass_is_that_of_its_real_tensors(
    bases: Bases, name: str, compute: FloatType, checkpointing: bool
) -> None:
    # Dense storage and eager attention: nothing is allocated inside of an operation.
    quant = QuantConfig(format=QuantFormat.none, compute_dtype=compute)
    optim = OptimConfig(steps=1, gradient_checkpointing=checkpointing)
    loras = [LoraConfig(rank=4, alpha=8), LoraConfig(rank=4, alpha=8), LoraConfig(rank=2, alpha=6)]
    real = live_bytes(bases.real(name, quant, Attention.eager), loras, optim, LONG)
    planned = bases.planned(name, Attention.eager)
    planned.use(quant)
    of_pass = pass_bytes(planned, [PlannedRun(lora, optim, LONG) for lora in loras], "cpu")
    assert of_pass.peak == real


@pytest.mark.parametrize("storage", ROUNDING)
def test_a_pass_on_a_gpu_needs_a_dense_weight_for_a_moment(storage: QuantFormat) -> None:
    model = PlannedModel.from_shape("pythia_1.4b", ModelConfig())
    optim, lora = OptimConfig(steps=1, gradient_checkpointing=True), LoraConfig(rank=1, alpha=1)
    run = PlannedRun(lora, optim, BatchSize(1, 4, 1))
    dense = 2 * 2048 * 8192
    model.use(QuantConfig(format=storage, compute_dtype=BFLOAT16))
    of_pass = pass_bytes(model, [run], "cuda")
    above = of_pass.peak - of_pass.saved
    match storage:
        case QuantFormat.none:
            assert above < dense
        case QuantFormat.int8:  # decoded in float32
            assert 3 * dense <= above < 4.2 * dense
        case QuantFormat.int4_asym | QuantFormat.int3_asym | QuantFormat.int2_asym:  # likewise
            assert 3 * dense <= above < 4.2 * dense
        case _:  # both halves written into one
            assert dense <= above < 1.2 * dense


def test_fused_attention_keeps_no_scores_and_eager_attention_does(llama: PlannedModel) -> None:
    size = BatchSize(1, 1024, 100)
    lora, optim = LoraConfig(rank=8, alpha=8), OptimConfig(steps=1)
    eager = PlannedModel.from_shape("llama2_7b", ModelConfig(attention=Attention.eager))
    kept = []
    for model in (llama, eager):
        model.use(QuantConfig(compute_dtype=BFLOAT16))
        kept.append(pass_bytes(model, [PlannedRun(lora, optim, size)], "cuda").saved)
    scores = 32 * 32 * 1024 * 1024 * 2  # blocks, heads, positions squared, bfloat16
    assert kept[1] - kept[0] >= scores


def test_a_pass_that_fails_without_a_word_is_refused_by_the_name_of_its_error(
    deep: dict[str, PlannedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep["llama"]
    model.use(QuantConfig(format=NF4, double_quant=True, compute_dtype=BFLOAT16))

    def forward(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(model.model, "forward", forward)
    runs = [PlannedRun(LoraConfig(rank=4, alpha=8), OptimConfig(steps=1), SMALL)]
    with pytest.raises(RequestError, match="cannot be planned: NotImplementedError "):
        traced_pass(model, runs, "cpu", range(model.num_blocks))
