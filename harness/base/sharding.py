"""A base whose every tensor is divided among the processes of a run: FSDP2 over packed storage.

A block is whole in a process only while it is computed, forward and backward. The base is frozen, so nothing
is reduced and adapters, which are attached afterwards, stay whole in every process. FSDP2 takes frozen
parameters of any type: packed bytes stay uint8. (A floating `quant_storage`, which FSDP1 needs, invites
arithmetic on bytes that are no numbers: bitsandbytes issue 1945.)
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from harness.base.layers import FrozenLinear
from harness.base.storage import Storage
from harness.base.targets import LinearSpec, block_name


def shard_model(
    model: nn.Module, linears: tuple[LinearSpec, ...], storage: Storage, device: torch.device
) -> list[FSDPModule]:
    """Divide a model that lies on the CPU among all processes, each of which keeps its share on `device`.

    Every process calls this, with equal models; none is sent anything. The model goes to the device block
    by block, so that no process has all of it there. Returns what gathers: blocks, embedding, head, rest.
    """
    for spec in linears:
        layer = model.get_submodule(spec.name)
        assert isinstance(layer, nn.Linear), spec.name
        model.set_submodule(spec.name, shareable(layer, storage))
    group = dist.group.WORLD
    assert group is not None, "the processes of the run have not met"
    mesh = DeviceMesh.from_group(group, device.type)
    parts: list[FSDPModule] = []
    for part in (*_blocks(model, linears), *_untied_ends(model), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        assert isinstance(part, FSDPModule)
        parts.append(part)
    return parts


def shareable(layer: nn.Linear, storage: Storage) -> FrozenLinear:
    """Return a layer whose weight is read anew in backward, as one that is gathered for each pass must be.

    Packed layers do so anyway; torch's own keep the weight that they were given in forward.
    """
    if isinstance(layer, FrozenLinear):
        return layer
    bias = None if layer.bias is None else layer.bias.data
    return FrozenLinear(
        storage, storage.tensors(layer), layer.in_features, layer.out_features, bias
    )


def _blocks(model: nn.Module, linears: tuple[LinearSpec, ...]) -> Iterator[nn.Module]:
    """Yield the repeated blocks, each once, in the model's order."""
    for name in dict.fromkeys(block_name(spec.name) for spec in linears):
        yield model.get_submodule(name)


def _untied_ends(model: nn.Module) -> Iterator[nn.Module]:
    """Yield embedding and head where they are two: then each is gathered only for its own product."""
    embedding = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if head is not None and head.weight is not embedding.weight:
        yield embedding
        yield head


def held_here(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: its share, or all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
