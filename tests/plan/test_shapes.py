"""Shapes have the parameters that their publishers count, and adapters those of the papers."""

import pytest

from harness.base.storage import storage_of
from harness.base.targets import adapted_layers
from harness.config.schema import (
    Attention,
    FloatType,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    QuantFormat,
)
from harness.errors import RequestError
from harness.plan.base_bytes import base_bytes
from harness.plan.model import PlannedModel
from harness.plan.passes import PlannedRun, pass_bytes
from harness.plan.predict import adapter_params
from harness.plan.prediction import BatchSize
from harness.plan.settings import shape_config, shape_names

PUBLISHED_PARAMETERS = {
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "falcon3_10b": 10_305_653_760,
    "qwen2.5_0.5b": 494_032_768,
    "qwen3_0.6b": 596_049_920,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_3b": 3_085_938_688,
    "qwen2.5_7b": 7_615_616_512,
    "qwen2.5_14b": 14_770_033_664,
    "qwen2.5_32b": 32_763_876_352,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_30b_a3b": 30_532_122_624,
    "pythia_160m": 162_322_944,
    "pythia_1.4b": 1_414_647_808,
    "pythia_6.9b": 6_857_302_016,
}
"""Elements of the safetensors files on the hub."""


def params(model: PlannedModel, rank: int, *targets: str) -> int:
    lora = LoraConfig(rank=rank, alpha=1, target_modules=list(targets))
    return adapter_params(adapted_layers(lora, model.linears), lora)


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    model = PlannedModel.from_shape(name, ModelConfig(attention=Attention.eager))
    base = base_bytes(model.outline, storage_of(QuantConfig(format=QuantFormat.none)))
    assert base.logical_params == PUBLISHED_PARAMETERS[name]


def test_every_shape_has_a_published_count_but_two() -> None:
    assert set(shape_names()) == {*PUBLISHED_PARAMETERS, "gpt3_175b", "falcon_180b"}


def test_the_shape_of_180b_parameters_has_as_many() -> None:
    model = PlannedModel.from_shape("falcon_180b", ModelConfig())
    base = base_bytes(model.outline, storage_of(QuantConfig(format=QuantFormat.none)))
    assert round(base.logical_params / 1e9) in (179, 180)


def test_a_shape_that_is_not_there_is_refused_with_near_names() -> None:
    with pytest.raises(RequestError, match=r"near names: .*llama2_70b"):
        shape_config("llama2_70")


def test_a_model_that_transformers_has_only_eager_attention_for_is_planned_with_it() -> None:
    plans = []
    for config in (ModelConfig(), ModelConfig(attention=Attention.eager)):
        model = PlannedModel.from_shape("gemma2_2b", config)
        model.use(QuantConfig(compute_dtype=FloatType.bfloat16))
        run = PlannedRun(LoraConfig(rank=8, alpha=8), OptimConfig(steps=1), BatchSize(1, 64, 8))
        plans.append(pass_bytes(model, [run], "cuda"))
    assert plans[0] == plans[1]


def test_adapter_parameters_are_those_of_the_lora_and_qlora_papers(llama: PlannedModel) -> None:
    assert params(llama, 1, "q_proj", "v_proj") == 524_288
    assert params(llama, 1, "all_linear") == 2_498_560
    assert params(llama, 64, "all_linear") == 159_907_840


def test_gpt3_has_175_billion_parameters_and_the_adapters_of_the_lora_paper() -> None:
    model = PlannedModel.from_shape("gpt3_175b", ModelConfig())
    base = base_bytes(model.outline, storage_of(QuantConfig(format=QuantFormat.none)))
    assert round(base.logical_params / 1e9) == 175
    # The paper counts d -> d for q and for v, 2 * 2d; GPT-2's fused c_attn is d -> 3d, d + 3d as well.
    assert params(model, 1, "c_attn") == 4_718_592
    assert round(params(model, 8, "c_attn") / 1e6, 1) == 37.7
    assert round(params(model, 64, "c_attn") / 1e6, 2) == 301.99


def test_double_quantization_saves_0_302_gigabytes_of_llama_2_7b(llama: PlannedModel) -> None:
    plain, double = (
        base_bytes(
            llama.outline,
            storage_of(
                QuantConfig(
                    format=QuantFormat.nf4, double_quant=dq, compute_dtype=FloatType.bfloat16
                )
            ),
        )
        for dq in (False, True)
    )
    assert round((plain.constant_bytes - double.constant_bytes) / 1e9, 3) == 0.302
    assert round(plain.bits_per_param, 3) == 4.5
    assert round(double.bits_per_param, 3) == 4.127


def test_the_table_of_modules_adds_up_and_names_what_stays_dense(llama: PlannedModel) -> None:
    quant = QuantConfig(format=QuantFormat.nf4, compute_dtype=FloatType.bfloat16)
    base = base_bytes(llama.outline, storage_of(quant))
    by_name = {module.name: module for module in base.modules}
    assert by_name["model.layers.31.mlp.down_proj"].weight_bytes == 4096 * 11008 // 2
    assert by_name["model.layers.31.mlp.down_proj"].constant_bytes == 4096 * 11008 // 64 * 4
    assert by_name["lm_head"].weight_bytes == by_name["model.embed_tokens"].weight_bytes
    assert by_name["lm_head"].weight_bytes == 2 * 32000 * 4096
    linears = [module for module in base.modules if module.kind == "block linear"]
    assert len(linears) == 7 * 32
    assert sum(module.logical_params for module in linears) == 6_476_005_376
