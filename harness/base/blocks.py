"""The linear layers of a model's blocks: find them, pack them, freeze the rest in the compute type."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from harness.base.experts import experts_forward
from harness.base.storage import Storage
from harness.base.targets import LinearSpec, in_block
from harness.errors import RequestError


def weight_and_bias(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (weight [out, in], bias) of an nn.Linear or of GPT-2's transposed Conv1D.

    Raises RequestError for a layer that is called linear and holds something else than its weights.
    """
    weight: Any = module.weight
    bias: Any = module.bias
    if isinstance(module, nn.Linear):
        dense = (module.out_features, module.in_features)
        if tuple(weight.shape) != dense or not weight.is_floating_point():
            raise RequestError(
                f"a layer of the model is a {type(module).__name__} of {dense[1]} -> {dense[0]} whose "
                f"weight is {tuple(weight.shape)} of {weight.dtype}: it is packed already; give the "
                "unquantized checkpoint"
            )
    return (weight if isinstance(module, nn.Linear) else weight.T.contiguous()), bias


def linear_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear layers of the blocks, by full name, in the model's order."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and in_block(name)
        and not _computes_something_else(module)
    ]


def _computes_something_else(module: nn.Module) -> bool:
    """Say whether a model's own subclass of nn.Linear is no linear layer, as Llama 4's router is not.

    Falcon's is one, in words of its own. Tried without numbers: a linear layer gives one tensor of its size.
    """
    kind = type(module)
    of_a_model = kind.__module__.startswith(("transformers.", "transformers_modules."))
    if not of_a_model or not isinstance(module, nn.Linear) or kind.forward is nn.Linear.forward:
        return False
    empty = {
        name: torch.empty_like(each, device="meta") for name, each in module.named_parameters()
    }
    given = torch.empty(1, module.in_features, device="meta", dtype=empty["weight"].dtype)
    out = torch.func.functional_call(module, empty, (given,))
    return not (isinstance(out, torch.Tensor) and out.shape == (1, module.out_features))


def block_linears(model: nn.Module) -> Iterator[LinearSpec]:
    """Yield name and dimensions of the linear layers of the blocks; the parameters may be on meta."""
    for name, module in linear_modules(model):
        experts = experts_forward(model.get_submodule(name.rpartition(".")[0]))
        if isinstance(module, nn.Linear):
            spec = LinearSpec(name, module.in_features, module.out_features)
            if experts is not None:
                of = experts.module
                spec = replace(spec, experts=of.num_experts, transposed=of.is_transposed)
            yield spec
        else:
            weight: Any = module.weight
            yield LinearSpec(name, weight.shape[0], weight.shape[1])


def uncovered_weights(model: nn.Module, linears: Sequence[LinearSpec]) -> dict[str, int]:
    """Return the matrices of the blocks that lie in no linear layer, as fused experts, with their sizes."""
    inside = {spec.name for spec in linears}
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and in_block(name)
        and not any(
            ".".join(name.split(".")[:depth]) in inside for depth in range(1, name.count(".") + 1)
        )
    }


def pack_blocks(
    model: nn.Module,
    storage: Storage,
    device: torch.device,
    quantized_on: torch.device | None = None,
) -> None:
    """Replace the linear layers of the blocks one by one, so that one dense layer at a time is extra.

    They are kept on `device` and quantized there, unless another place is given for that.
    """
    quantized_on = quantized_on or device
    for name, module in linear_modules(model):
        weight, bias = weight_and_bias(module)
        with torch.no_grad():
            layer = storage.quantize(weight, bias, quantized_on)
            if quantized_on != device:
                layer = storage.moved(layer, device)
            if not isinstance(module, nn.Linear):
                object.__setattr__(layer, "is_transposed_in_file", True)
            model.set_submodule(name, layer)


def finish_base(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Move and freeze what is not packed: in the compute type, the same for every storage."""
    packed = {name for name, _ in linear_modules(model)}
    for name, module in model.named_modules():
        if name in packed or any(name.startswith(f"{p}.") for p in packed):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device, dtype)
        for key, buffer in module.named_buffers(recurse=False):
            module._buffers[key] = buffer.to(device)
    model.config.use_cache = False
    model.requires_grad_(False)
    model.eval()
