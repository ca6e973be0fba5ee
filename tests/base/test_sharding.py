"""What is gathered of a shared base, in one process: which parts, in which order, and the same outputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from harness.base.build import Base, build_base
from harness.base.layers import FrozenLinear
from harness.base.sharding import held_here, shard_model, shareable
from harness.base.source import find_model, model_fingerprint
from harness.config.schema import ModelConfig, QuantConfig, QuantFormat
from tests.random_models import LLAMA, save_random_model

CPU = torch.device("cpu")
IDS = torch.arange(3, 19).view(2, 8)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def base_of(directory: Path, format: QuantFormat, **changes: Any) -> Base:
    model = save_random_model(directory / "model", "llama", **{**LLAMA, **changes})
    config = ModelConfig(name=str(model))
    source = find_model(config)
    fingerprint = model_fingerprint(source, directory / "memo.json")
    return build_base(
        source,
        config,
        QuantConfig(format=format),
        fingerprint=fingerprint,
        device=CPU,
        cache=directory / "cache",
    )


@pytest.mark.parametrize("format", [QuantFormat.none, QuantFormat.nf4])
@pytest.mark.parametrize("tied", [False, True])
def test_blocks_are_gathered_one_by_one_ends_only_where_they_are_two_and_outputs_stay(
    tmp_path: Path, alone: None, format: QuantFormat, tied: bool
) -> None:
    base = base_of(tmp_path, format, tie_word_embeddings=tied)
    model: Any = base.model
    with torch.no_grad():
        before = model(IDS).logits
    parts = shard_model(model, base.linears, base.storage, CPU)
    ends = [] if tied else [model.model.embed_tokens, model.lm_head]
    expected = [*model.model.layers, *ends, model]
    assert len(parts) == len(expected)
    assert all(one is other for one, other in zip(parts, expected, strict=True))
    assert all(isinstance(p, DTensor) for p in model.parameters())
    for spec in base.linears:
        assert isinstance(model.get_submodule(spec.name), FrozenLinear)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)


def test_a_layer_of_torch_becomes_one_that_reads_its_weight_anew_and_a_packed_one_stays(
    tmp_path: Path,
) -> None:
    storage = base_of(tmp_path, QuantFormat.none).storage
    for bias in (False, True):
        layer = torch.nn.Linear(6, 4, bias=bias)
        shared = shareable(layer, storage)
        assert isinstance(shared, FrozenLinear)
        x = torch.randn(3, 6)
        assert torch.equal(shared(x), layer(x))
        assert (shared.bias is None) is not bias
        assert shareable(shared, storage) is shared


def test_of_a_tensor_that_is_not_shared_all_is_held_here() -> None:
    tensor = torch.zeros(3)
    assert held_here(tensor) is tensor
