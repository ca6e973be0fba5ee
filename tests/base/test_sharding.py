"""What FSDP2 is given: a layer of parameters alone that decodes as the layer it replaces, to the bit."""

import pytest
import torch
from torch import nn

from harness.base.quick_imports import quiet_libraries
from harness.base.sharding import shareable
from harness.base.storage import storage_of
from harness.base.targets import block_name
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.config.storage import ROUNDING, has_blocks, label_of

CPU = torch.device("cpu")
FORMATS = [
    QuantConfig(format=quant_format, double_quant=double, compute_dtype=dtype)
    for quant_format in ROUNDING
    for double in (False, True)
    for dtype in FloatType
    if not double or has_blocks(quant_format)
]


def name_of(quant: QuantConfig) -> str:
    return f"{label_of(quant)}-{quant.compute_dtype.value}"


def layer_of(quant: QuantConfig, in_features: int) -> nn.Linear:
    quiet_libraries()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, in_features, generator=generator)
    return storage_of(quant).quantize(weight, torch.randn(48, generator=generator), CPU)


def products(layer: nn.Linear, quant: QuantConfig, in_features: int) -> list[torch.Tensor]:
    """Return y and the gradient of x for some x and some gradient of y."""
    dtype = getattr(torch, quant.compute_dtype.value)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, in_features, generator=generator).to(dtype).requires_grad_()
    y = layer(x)
    y.backward(torch.randn(2, 5, 48, generator=generator).to(dtype))
    assert x.grad is not None
    return [y.detach(), x.grad]


@pytest.mark.parametrize("in_features", [128, 96])
@pytest.mark.parametrize("quant", FORMATS, ids=name_of)
def test_products_are_those_of_the_layer_it_replaces(quant: QuantConfig, in_features: int) -> None:
    """Of 96 inputs blocks of 64 weights run from one row into the next."""
    layer = layer_of(quant, in_features)
    expected = products(layer, quant, in_features)
    ours = products(shareable(layer, storage_of(quant)), quant, in_features)
    for one, other in zip(expected, ours, strict=True):
        if quant.format is QuantFormat.none:  # another order of the same sums, in backward
            torch.testing.assert_close(other, one)
        else:
            assert torch.equal(other, one)


@pytest.mark.parametrize("quant", FORMATS, ids=name_of)
def test_all_but_single_numbers_are_frozen_parameters(quant: QuantConfig) -> None:
    layer = shareable(layer_of(quant, 128), storage_of(quant))
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert all(buffer.ndim == 0 for buffer in layer.buffers())
    held = {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
    assert {id(t) for t in (*layer.tensors.values(), layer.bias)} == held


@pytest.mark.parametrize("quant", FORMATS, ids=name_of)
def test_parameters_stand_in_one_order_however_their_tensors_come(quant: QuantConfig) -> None:
    """One process makes a layer, another reads it from a file that sorts: both gather by the order."""
    storage, layer = storage_of(quant), layer_of(quant, 128)
    backwards = dict(reversed(storage.tensors(layer).items()))
    again = storage.restore(backwards, 128, 48, layer.bias.data)
    assert [name for name, _ in again.named_parameters()] == [
        name for name, _ in layer.named_parameters()
    ]


@pytest.mark.parametrize("quant", FORMATS, ids=name_of)
def test_a_layer_that_is_moved_is_the_same(quant: QuantConfig) -> None:
    layer = layer_of(quant, 128)
    expected = products(layer, quant, 128)
    for one, other in zip(
        expected, products(storage_of(quant).moved(layer, CPU), quant, 128), strict=True
    ):
        assert torch.equal(other, one)


def test_a_block_ends_at_the_first_index_of_a_path() -> None:
    assert block_name("model.layers.11.self_attn.q_proj") == "model.layers.11"
    assert block_name("transformer.h.0.mlp.experts.3.up") == "transformer.h.0"
