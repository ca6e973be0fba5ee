"""Static parts are the bytes of the tensors of a really built model, to the last byte."""

import pytest

from harness.base.storage import storage_of
from harness.base.targets import adapter_shapes
from harness.config.schema import (
    Attention,
    FloatType,
    LoraConfig,
    OptimConfig,
    OptimizerName,
    QuantConfig,
    QuantFormat,
)
from harness.config.storage import BLOCKWISE, ROUNDING
from harness.measure.memory import BaseSize, base_size
from harness.plan.base_bytes import base_bytes
from harness.plan.predict import adapter_sizes, optimizer_bytes
from tests.plan.engine import Bases, optimizer_state_bytes

MODELS = ("embedded", "uneven", "gpt2", "gpt_neox", "qwen2")
STORAGES = [(quant_format, False) for quant_format in ROUNDING] + [
    (quant_format, True) for quant_format in BLOCKWISE
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("quant_format", "double_quant"), STORAGES, ids=[f"{f.value}{'_dq' * d}" for f, d in STORAGES]
)
def test_base_and_constants_are_the_bytes_of_the_built_base(
    bases: Bases, name: str, quant_format: QuantFormat, double_quant: bool
) -> None:
    compute = FloatType.bfloat16 if double_quant else FloatType.float32
    quant = QuantConfig(format=quant_format, double_quant=double_quant, compute_dtype=compute)
    real = base_size(bases.real(name, quant, Attention.sdpa).base)
    planned = base_bytes(bases.planned(name).outline, storage_of(quant))
    assert real == BaseSize(
        weight_bytes=planned.weight_bytes,
        constant_bytes=planned.constant_bytes,
        logical_params=planned.logical_params,
        bits_per_param=planned.bits_per_param,
    )


@pytest.mark.parametrize("block_size", [32, 4096])
def test_blocks_that_do_not_divide_a_layer_are_counted_whole(bases: Bases, block_size: int) -> None:
    quant = QuantConfig(format=QuantFormat.int4_asym, double_quant=True, block_size=block_size)
    real = base_size(bases.real("uneven", quant, Attention.sdpa).base)
    planned = base_bytes(bases.planned("uneven").outline, storage_of(quant))
    assert planned.constant_bytes == real.constant_bytes
    assert planned.weight_bytes == real.weight_bytes


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", OptimizerName)
@pytest.mark.parametrize("rank", [2, 32])
def test_optimizer_states_are_the_bytes_of_the_optimizer_after_a_step(
    bases: Bases, name: OptimizerName, rank: int
) -> None:
    # At rank 32 some tensors of this model have 4096 elements and more, from where 8 bits are used.
    lora = LoraConfig(rank=rank, alpha=8)
    shared = bases.real("uneven", QuantConfig(format=QuantFormat.none), Attention.sdpa)
    adapted = list(adapter_shapes(lora, shared.base.linears).values())
    real = optimizer_state_bytes(shared, lora, OptimConfig(name=name, steps=1))
    assert optimizer_bytes(name, adapter_sizes(adapted)).total == real


def test_only_large_tensors_of_paged_optimizers_are_paged(llama) -> None:
    lora = LoraConfig(rank=16, alpha=16)
    adapted = list(adapter_shapes(lora, llama.linears).values())
    sizes = [16 * size for shape in adapted for size in (shape.inputs, shape.outputs)]
    of_32_bit = optimizer_bytes(OptimizerName.paged_adamw_32bit, sizes)
    assert of_32_bit.paged == 8 * sum(size for size in sizes if size >= 1e5)
    assert of_32_bit.total == 8 * sum(sizes)
    assert optimizer_bytes(OptimizerName.adamw_8bit, sizes).paged == 0
