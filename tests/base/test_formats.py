"""Frozen layers of every format: values, gradients, storage, and the way through the cache."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from harness.base.formats import (
    constant_tensors,
    layer_from_tensors,
    layer_tensors,
    quantize_linear,
)
from harness.base.library_faults import cure_bitsandbytes
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.measure.memory import SavedBytes, distinct_bytes

ALL = [
    QuantConfig(format=quant_format, double_quant=double)
    for quant_format in QuantFormat
    for double in (False, True)
    if not (double and quant_format in (QuantFormat.none, QuantFormat.int8))
]
PACKED = [quant for quant in ALL if quant.format is not QuantFormat.none]
CPU = torch.device("cpu")


def name(quant: QuantConfig) -> str:
    return f"{quant.format.value}{'_dq' if quant.double_quant else ''}-b{quant.block_size}"


@pytest.fixture(autouse=True)
def _cured() -> None:
    cure_bitsandbytes()


def make(quant: QuantConfig, inner: int = 128, outer: int = 64) -> tuple[nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outer, inner, generator=generator) / inner**0.5
    bias = torch.randn(outer, generator=generator)
    return quantize_linear(weight, bias, quant, CPU), weight


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
    assert 0 < relative < (1e-4 if quant.format is QuantFormat.int8 else 0.025)


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("quant", [q for q in PACKED if q.format is not QuantFormat.int8], ids=name)
def test_every_block_size_works_and_smaller_blocks_cost_more_constants(
    quant: QuantConfig, block_size: int
) -> None:
    layer, weight = make(replace(quant, block_size=block_size), inner=256, outer=96)
    assert (dense(layer) - weight).abs().max() < weight.abs().max()
    scales = constant_tensors(layer)[0]
    assert scales.numel() == 256 * 96 // block_size


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_a_layer_comes_back_from_its_tensors_exactly(quant: QuantConfig) -> None:
    layer, _ = make(quant)
    tensors = {key: tensor.clone() for key, tensor in layer_tensors(layer).items()}
    again = layer_from_tensors(tensors, 128, 64, layer.bias.data, quant)
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
        (QuantConfig(format=QuantFormat.int4), 4.50),
        (QuantConfig(format=QuantFormat.nf4, double_quant=True), 4.14),
        (QuantConfig(format=QuantFormat.int4, double_quant=True), 4.14),
        (QuantConfig(format=QuantFormat.int4_asym), 5.00),
        (QuantConfig(format=QuantFormat.int4_asym, double_quant=True), 4.27),
    ],
    ids=lambda value: name(value) if isinstance(value, QuantConfig) else str(value),
)
def test_bits_per_parameter_at_hidden_1024(quant: QuantConfig, at_most: float) -> None:
    layer, weight = make(quant, inner=1024, outer=1024)
    tables = distinct_bytes(t for t in constant_tensors(layer) if t.numel() in (16, 256))
    own = distinct_bytes([layer.weight.data, *constant_tensors(layer)]) - tables
    assert 8 * own / weight.numel() <= at_most + 1e-9
    # The tables are shared by all layers of a model: here they weigh on one.
    assert 8 * (own + tables) / weight.numel() <= at_most + 0.02


def test_int8_product_does_not_depend_on_the_other_rows_of_the_batch() -> None:
    layer, _ = make(QuantConfig(format=QuantFormat.int8))
    x = torch.randn(4, 128)
    outlier = torch.full((1, 128), 50.0)  # LLM.int8 would choose outlier columns by it
    torch.testing.assert_close(layer(x), layer(torch.cat([x, outlier]))[:4], rtol=0, atol=1e-6)
