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

from harness.base.code_books import CODE_BOOKS, nibble_tables
from harness.base.formats import dense_from_tensors, layer_tensors
from harness.base.layers import FrozenLinear, dynamic_table
from harness.base.layout import LinearSpec, block_name
from harness.config.schema import QuantConfig, QuantFormat


class ShardedLinear(FrozenLinear):
    """A frozen linear layer in any storage, whose constants are parameters too: these are what is sharded."""

    def __init__(self, layer: nn.Linear, quant: QuantConfig) -> None:
        """Take over the tensors of a layer that `quantize_linear` has made."""
        dense = quant.format is QuantFormat.none
        tensors = {"packed": layer.weight.data} if dense else layer_tensors(layer)
        bias = None if layer.bias is None else layer.bias.data
        super().__init__(layer.in_features, layer.out_features, tensors["packed"], bias)
        self.quant = quant
        self._attributes = {key: key.replace(".", "_") for key in tensors if key != "packed"}
        for key, name in self._attributes.items():
            if tensors[key].ndim == 0:  # one number, which each process keeps
                self.register_buffer(name, tensors[key])
            else:
                self.register_parameter(name, nn.Parameter(tensors[key], requires_grad=False))

    @property
    def constants(self) -> list[torch.Tensor]:
        """What decoding reads besides the packed weight and the tables that layers share."""
        return [getattr(self, name) for name in self._attributes.values()]

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        tensors = {key: getattr(self, name) for key, name in self._attributes.items()}
        tensors["packed"] = self.weight
        return dense_from_tensors(tensors, self.in_features, self.out_features, self.quant, dtype)


def shard_model(
    model: nn.Module, linears: tuple[LinearSpec, ...], quant: QuantConfig, device: torch.device
) -> list[FSDPModule]:
    """Divide a model that lies on the CPU among all processes, each of which keeps its share on `device`.

    Every process calls this, with equal models; none is sent anything. The model goes to the device block
    by block, so that no process has all of it there. Returns what gathers: blocks, embedding, head, rest.
    """
    for spec in linears:
        layer = model.get_submodule(spec.name)
        assert isinstance(layer, nn.Linear), spec.name
        model.set_submodule(spec.name, ShardedLinear(layer, quant))
    group = dist.group.WORLD
    assert group is not None, "the processes of the run have not met"
    mesh = DeviceMesh.from_group(group, device.type)
    parts: list[FSDPModule] = []
    for part in (*_blocks(model, linears), *_untied_ends(model), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        assert isinstance(part, FSDPModule)
        parts.append(part)
    return parts


def shared_tables(quant: QuantConfig, device: torch.device) -> list[torch.Tensor]:
    """Return the tables that decoding reads, one of each on a device; bitsandbytes has its own."""
    book = CODE_BOOKS.get(quant.format)
    tables = [] if book is None else [*nibble_tables(book, device)]
    return [*tables, dynamic_table(device)] if quant.double_quant else tables


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
