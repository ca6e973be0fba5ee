"""Frozen layers of every format: values, gradients, storage, and the way through the cache."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from harness.base.layers import FrozenLinear
from harness.base.quick_imports import quiet_libraries
from harness.base.storage import storage_of
from harness.base.targets import LinearSpec
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.config.storage import BLOCKWISE, ROUNDING, has_blocks, label_of
from harness.measure.memory import SavedBytes, distinct_bytes

ALL = [
    QuantConfig(format=quant_format, double_quant=double)
    for quant_format in ROUNDING
    for double in (False, True)
    if not double or has_blocks(quant_format)
]
PACKED = [quant for quant in ALL if quant.format is not QuantFormat.none]
CPU = torch.device("cpu")


def name(quant: QuantConfig) -> str:
    return f"{label_of(quant)}-b{quant.block_size}"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def make(quant: QuantConfig, inner: int = 128, outer: int = 64) -> tuple[nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outer, inner, generator=generator) / inner**0.5
    bias = torch.randn(outer, generator=generator)
    return storage_of(quant).quantize(weight, bias, CPU), weight


def dense(layer: nn.Linear) -> torch.Tensor:
    """The weight that the layer acts with: its rows applied to the identity."""
    with torch.no_grad():
        return (layer(torch.eye(layer.in_features)) - layer.bias).T


@pytest.mark.parametrize("quant", ALL, ids=name)
def test_gradient_of_the_input_is_that_of_the_decoded_dense_layer(quant: QuantConfig) -> None:
    layer, _ = make(quant)
    x = torch.randn(5, 7, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = layer(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    torch.testing.assert_close(gradient, weights @ dense(layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_values_are_near_the_dense_weight(quant: QuantConfig) -> None:
    layer, weight = make(quant)
    relative = (dense(layer) - weight).square().mean() / weight.square().mean()
    coarse = {
        QuantFormat.int8: 1e-4,
        QuantFormat.fp4_e3m0: 0.04,
        QuantFormat.int3_asym: 0.06,
        QuantFormat.int2_asym: 0.3,
    }  # powers of two: few levels near 1
    assert 0 < relative < coarse.get(quant.format, 0.025)


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("quant", [q for q in PACKED if has_blocks(q.format)], ids=name)
def test_every_block_size_works_and_smaller_blocks_cost_more_constants(
    quant: QuantConfig, block_size: int
) -> None:
    layer, weight = make(replace(quant, block_size=block_size), inner=256, outer=96)
    assert (dense(layer) - weight).abs().max() < weight.abs().max()
    assert isinstance(layer, FrozenLinear)
    scales = layer.constants["scale_codes" if quant.double_quant else "scale"]
    assert scales.numel() == 256 * 96 // block_size


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_a_layer_comes_back_from_its_tensors_exactly(quant: QuantConfig) -> None:
    layer, _ = make(quant)
    storage = storage_of(quant)
    tensors = {key: tensor.clone() for key, tensor in storage.tensors(layer).items()}
    again = storage_of(quant).restore(tensors, 128, 64, layer.bias.data)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(5))
    assert torch.equal(layer(x), again(x))


@pytest.mark.parametrize("quant", PACKED, ids=name)
@pytest.mark.parametrize("compute", [FloatType.float32, FloatType.bfloat16])
def test_backward_keeps_no_more_than_an_unquantized_layer(
    quant: QuantConfig, compute: FloatType
) -> None:
    dtype = getattr(torch, compute.value)

    def saved(of: QuantConfig) -> int:
        layer, _ = make(replace(of, compute_dtype=compute))
        x = torch.randn(16, 128, dtype=dtype).requires_grad_()
        counter = SavedBytes(layer)
        with counter.counting():
            layer(x).float().square().sum()
        return counter.total

    assert saved(quant) == saved(QuantConfig(format=QuantFormat.none))


@pytest.mark.parametrize(
    ("quant", "at_most"),
    [
        (QuantConfig(format=QuantFormat.nf4), 4.50),
        (QuantConfig(format=QuantFormat.fp4), 4.50),
        (QuantConfig(format=QuantFormat.int4), 4.50),
        (QuantConfig(format=QuantFormat.nf4, double_quant=True), 4.14),
        (QuantConfig(format=QuantFormat.int4, double_quant=True), 4.14),
        (QuantConfig(format=QuantFormat.int4_asym), 5.00),
        (QuantConfig(format=QuantFormat.int4_asym, double_quant=True), 4.27),
        (QuantConfig(format=QuantFormat.af4), 4.50),
        (QuantConfig(format=QuantFormat.int3_asym), 4.00),
        (QuantConfig(format=QuantFormat.int3_asym, double_quant=True), 3.27),
        (QuantConfig(format=QuantFormat.int2_asym), 3.00),
        (QuantConfig(format=QuantFormat.int2_asym, double_quant=True), 2.27),
    ],
    ids=lambda value: name(value) if isinstance(value, QuantConfig) else str(value),
)
def test_bits_per_parameter_at_hidden_1024(quant: QuantConfig, at_most: float) -> None:
    layer, weight = make(quant, inner=1024, outer=1024)
    assert isinstance(layer, FrozenLinear)
    tables = distinct_bytes(storage_of(quant).tables(CPU))
    own = distinct_bytes(layer.tensors.values())
    assert 8 * own / weight.numel() <= at_most + 1e-9
    # The tables are shared by all layers of a model: here they weigh on one.
    assert 8 * (own + tables) / weight.numel() <= at_most + 0.02


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_int8_is_rounded_to_the_nearest_level_at_any_size_of_weights(size: float) -> None:
    """16-bit floats would be too coarse for 1e-6, and end at 65,504."""
    storage = storage_of(QuantConfig(format=QuantFormat.int8))
    weight = size * torch.randn(64, 128, generator=torch.Generator().manual_seed(8))
    weight[3] = 0
    tensors = storage.encode(weight)
    exact = weight.double() / (weight.double().abs().amax(dim=1, keepdim=True) / 127).clamp(1e-300)
    off = (tensors["packed"].double() - exact).abs().max()
    assert off <= 0.5 + 1e-5
    assert torch.equal(storage.decode(tensors, (64, 128), torch.float32)[3], torch.zeros(128))


def test_int8_product_does_not_depend_on_the_other_rows_of_the_batch() -> None:
    layer, _ = make(QuantConfig(format=QuantFormat.int8))
    x = torch.randn(4, 128)
    outlier = torch.full((1, 128), 50.0)  # LLM.int8 would choose outlier columns by it
    torch.testing.assert_close(layer(x), layer(torch.cat([x, outlier]))[:4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("quant", ALL, ids=name)
@pytest.mark.parametrize(("inner", "outer"), [(128, 64), (96, 43), (7, 1)])
def test_the_outline_is_what_encoding_makes(quant: QuantConfig, inner: int, outer: int) -> None:
    """Of an odd number of rows the last byte row has weights in its high nibbles alone."""
    storage = storage_of(quant)
    made = storage.encode(torch.randn(outer, inner, generator=torch.Generator().manual_seed(0)))
    planned = storage.outline(LinearSpec("layer", inner, outer))
    assert list(made) == list(planned)
    assert {key: (t.shape, t.dtype) for key, t in made.items()} == {
        key: (t.shape, t.dtype) for key, t in planned.items()
    }
    assert storage.decode(made, (outer, inner), torch.float32).shape == (outer, inner)


@pytest.mark.parametrize("quant", ALL, ids=name)
def test_formats_with_blocks_are_those_with_constants_for_each(quant: QuantConfig) -> None:
    assert (storage_of(quant).constants_per_block > 0) == (quant.format in BLOCKWISE)


@pytest.mark.parametrize("double_quant", [False, True])
def test_storages_that_keep_the_same_weigh_the_same(double_quant: bool) -> None:
    """NF4, AF4, FP4 and symmetric int4: an index a weight, a constant a block, a table of 16 values."""
    spec = LinearSpec("layer", 384, 128)
    weights = set()
    affine = {QuantFormat.int4_asym, QuantFormat.int3_asym, QuantFormat.int2_asym}
    for quant_format in set(BLOCKWISE) - affine:
        storage = storage_of(QuantConfig(format=quant_format, double_quant=double_quant))
        assert storage.tables(CPU)[0].shape == (16,)
        weights.add((storage.packed_bytes(spec), storage.constant_bytes(spec), storage.table_bytes))
    assert len(weights) == 1


@pytest.mark.parametrize("quant", ALL, ids=name)
def test_another_weight_stored_in_place_is_that_weight_stored(quant: QuantConfig) -> None:
    layer, _ = make(quant)
    kept = [tensor.data_ptr() for tensor in storage_of(quant).tensors(layer).values()]
    other = torch.randn(64, 128, generator=torch.Generator().manual_seed(7))
    storage_of(quant).overwrite(layer, other)
    fresh = storage_of(quant).quantize(other, None, CPU)
    for one, two in zip(
        storage_of(quant).tensors(layer).values(),
        storage_of(quant).tensors(fresh).values(),
        strict=True,
    ):
        assert torch.equal(one, two)
    assert kept == [tensor.data_ptr() for tensor in storage_of(quant).tensors(layer).values()]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "quant", [QuantConfig(format=QuantFormat.nf4, double_quant=True), QuantConfig()], ids=label_of
)
def test_processes_that_share_a_layer_keep_torchs_largest_chunk_of_each_tensor(
    quant: QuantConfig, processes: int
) -> None:
    """FSDP2 cuts the first dimension as `torch.chunk` does; of a single number each has its own."""
    storage, spec = storage_of(quant), LinearSpec("layer", 20, 33)
    sizes = {
        name: (torch.chunk(tensor, processes)[0] if tensor.ndim else tensor).numel()
        * tensor.element_size()
        for name, tensor in storage.encode(torch.randn(33, 20)).items()
    }
    assert storage.packed_bytes(spec, processes) == sizes.pop("packed")
    assert storage.constant_bytes(spec, processes) == sum(sizes.values())


@pytest.mark.parametrize(("compute", "bits"), [("float32", 32), ("bfloat16", 16), ("float16", 16)])
def test_a_dense_weight_has_the_bits_of_its_type(compute: str, bits: int) -> None:
    quant = QuantConfig(format=QuantFormat.none, compute_dtype=FloatType(compute))
    assert storage_of(quant).bits == bits
