"""What a model's modules and blocks are, read off the model on the meta device before anything is planned."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.base.targets import LinearSpec
from harness.errors import RequestError
from harness.plan.base_bytes import ModuleOutline

_INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "training")
"""Attributes that number a block, or say nothing about what it computes."""


def module_outlines(model: nn.Module, linears: Sequence[LinearSpec]) -> tuple[ModuleOutline, ...]:
    """Return every module that has tensors of its own; what is tied stands where it comes first."""
    by_name = {spec.name: spec for spec in linears}
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    seen: set[int] = set()
    outlines = []
    for name, module in model.named_modules():
        spec = by_name.get(name)
        parameters = _new(module.named_parameters(recurse=False), seen)
        buffers = _new(module.named_buffers(recurse=False), seen)
        if spec is not None:
            parameters.pop("weight")
        if spec is None and not parameters and not buffers:
            continue
        outlines.append(
            ModuleOutline(
                name=name,
                kind=_kind(module, spec, module is head, bool(parameters)),
                linear=spec,
                other_params=sum(tensor.numel() for tensor in parameters.values()),
                buffer_bytes=sum(t.untyped_storage().nbytes() for t in buffers.values()),
            )
        )
    return tuple(outlines)


def _new(named: Any, seen: set[int]) -> dict[str, torch.Tensor]:
    new = {}
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            new[name] = tensor
    return new


def _kind(module: nn.Module, spec: LinearSpec | None, is_head: bool, has_parameters: bool) -> str:
    if spec is not None:
        return "block linear"
    if is_head:
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if not has_parameters:
        return "buffers"
    return "norm" if "norm" in type(module).__name__.lower() else "other"


@dataclass(frozen=True, slots=True)
class Blocks:
    """The repeated blocks: where they stand, and which of them compute alike."""

    name: str
    """Name of the list of blocks in the model, such as model.layers."""
    signatures: tuple[int, ...]
    """Equal for blocks that allocate and keep the same."""

    def __len__(self) -> int:
        return len(self.signatures)

    def block_of(self, linear_name: str) -> int:
        """Return the number of the block in which a linear layer lies."""
        return int(linear_name[len(self.name) + 1 :].split(".", 1)[0])


def find_blocks(model: Any, linears: Sequence[LinearSpec]) -> Blocks:
    """Return the blocks of a model. Raises RequestError where they are not one list."""
    names = {_list_name(spec.name) for spec in linears}
    if len(names) != 1:
        raise RequestError(
            f"a model of type {model.config.model_type} cannot be planned: its linear layers lie in "
            f"{', '.join(sorted(names)) or 'no block'}, and one list of blocks is understood"
        )
    (name,) = names
    blocks = model.get_submodule(name)
    per_block = per_block_fields(model.config, len(blocks))
    signatures = [
        (_signature(block), tuple(str(values[index]) for values in per_block.values()))
        for index, block in enumerate(blocks)
    ]
    numbers = {signature: number for number, signature in enumerate(dict.fromkeys(signatures))}
    return Blocks(name, tuple(numbers[signature] for signature in signatures))


def _list_name(linear_name: str) -> str:
    parts = linear_name.split(".")
    first = next(index for index, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:first])


def per_block_fields(config: Any, num_blocks: int) -> dict[str, list[Any]]:
    """Return the config's fields that have one entry for each block, e.g. `layer_types`."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == num_blocks
    }


def _signature(block: nn.Module) -> Hashable:
    parts = []
    for name, module in block.named_modules():
        shapes = tuple((key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False))
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, (str, int, float, bool)) and key not in _INDEX_NAMES
        )
        parts.append((name, type(module).__name__, shapes, settings))
    return tuple(parts)
