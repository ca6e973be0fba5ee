"""What processes that share a base gather of it, by hand: buffers are whole everywhere, nobody sends them."""

import pytest
import torch
from torch import nn

from harness.base.storage import storage_of
from harness.base.targets import LinearSpec
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.plan.base_bytes import ModuleOutline, base_bytes, gathered_bytes
from harness.plan.outline import module_outlines

NF4 = storage_of(QuantConfig(format=QuantFormat.nf4, compute_dtype=FloatType.bfloat16))
PACKED = 64 * 128 // 2 + 4 * 64 * 128 // 64  # half a byte a weight, a float32 scale for each 64


def module(name: str, kind: str, *, others: int = 0, buffers: int = 0, linear: bool = False):
    spec = LinearSpec(name, 128, 64) if linear else None
    return ModuleOutline(
        name=name, kind=kind, linear=spec, other_params=others, buffer_bytes=buffers
    )


BLOCKS = [
    module("layers.0.q_proj", "linear", linear=True),
    module("layers.0.norm", "norm", others=128, buffers=5000),
    module("layers.1.q_proj", "linear", linear=True),
    module("layers.1.up_proj", "linear", linear=True, buffers=70),
]
EMBEDDING = module("embed", "embedding", others=1000, buffers=300)
HEAD = module("lm_head", "head", others=900)


@pytest.mark.parametrize(
    ("outside", "beside"),
    [([EMBEDDING], 2 * 1000), ([EMBEDDING, HEAD], 2 * 900), ([], 0)],
    ids=["tied", "a head of its own", "blocks alone"],
)
def test_three_of_the_largest_block_and_the_head_without_any_buffer(outside, beside) -> None:
    assert gathered_bytes([*BLOCKS, *outside], NF4) == 3 * (2 * PACKED) + beside


def test_a_base_weighs_its_buffers_too() -> None:
    found = base_bytes([*BLOCKS, EMBEDDING, HEAD], NF4)
    assert found.weight_bytes == 3 * 4096 + 2 * (128 + 1000 + 900) + 5000 + 70 + 300
    assert found.constant_bytes == 3 * 512 + 16 * 4  # and the table of 16 values
    assert found.logical_params == 3 * 8192 + 128 + 1000 + 900


class Rotating(nn.Module):
    """A module of buffers alone, as rotary embeddings are."""

    def __init__(self, frequencies: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("halved", torch.zeros(3, dtype=torch.bfloat16))


class Model(nn.Module):
    """Two of them, which share a buffer, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        shared = torch.zeros(16)
        self.first, self.second = Rotating(shared), Rotating(shared)
        self.norm = nn.LayerNorm(10)

    def get_output_embeddings(self) -> None:
        """Have no head."""


def test_buffers_of_a_model_are_counted_as_they_are_stored_and_what_is_shared_once() -> None:
    found = {outline.name: outline for outline in module_outlines(Model(), [])}
    assert found.keys() == {"first", "second", "norm"}
    assert found["first"].buffer_bytes == 16 * 4 + 3 * 2
    assert found["second"].buffer_bytes == 3 * 2
    assert (found["norm"].buffer_bytes, found["norm"].other_params) == (0, 20)
    assert [outline.kind for outline in found.values()] == ["buffers", "buffers", "norm"]
