"""Full fine-tuning: every parameter of the base as one flat float32 tensor, trained in an adapter's place.

To slots, optimizers and passes it is an adapter without layers: what an update changes are the model's own
weights, so that its base serves no other run. A model that computes in 16 bits does so with a rounded copy,
renewed in each pass; float32 weights are those that are trained.

Shape suffix: P elements of all parameters, tied ones once.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from harness.engine.adapter import Adapter, ParameterLayout, saved_tensors
from harness.engine.rows import RowPlan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WholeModel(Adapter):
    """All parameters of a model: its matrices first, then its vectors (norms and biases)."""

    own: dict[str, nn.Parameter]
    """What the model computes with, by full name and in the order of `parameters`."""
    handles: list[RemovableHandle] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, model: nn.Module, plan: RowPlan) -> "WholeModel":
        """Return all parameters of `model`, whose gradients go from now on where those of `plan` are kept."""
        own = dict(sorted(model.named_parameters(), key=lambda item: item[1].ndim < 2))
        sizes = [parameter.numel() for parameter in own.values()]
        first = next(iter(own.values()))
        flat_P = torch.empty(sum(sizes), device=first.device)
        parameters: dict[str, nn.Parameter] = {}
        for (key, parameter), part in zip(own.items(), flat_P.split(sizes), strict=True):
            view = part.view(parameter.shape).copy_(parameter.data)
            parameters[key] = nn.Parameter(view)
            if parameter.dtype is torch.float32 and not parameter.is_meta:
                parameter.data = view
        whole = cls(
            name=name,
            layout=ParameterLayout({}),
            flat_P=flat_P,
            parameters=parameters,
            scalings={},
            dropout=0.0,
            own=own,
        )
        whole._take_gradients(plan)
        return whole

    def _take_gradients(self, plan: RowPlan) -> None:
        """Add each parameter's gradient to the flat one as soon as autograd has it, and free it."""
        for index, parameter in enumerate(self.own.values()):

            def add(parameter: torch.Tensor, index: int = index) -> None:
                (group,) = plan.present
                (gradient,) = group.finished_gradients()
                assert parameter.grad is not None
                gradient.of_parameters[index].add_(parameter.grad)
                parameter.grad = None

            parameter.requires_grad_(True)
            self.handles.append(parameter.register_post_accumulate_grad_hook(add))

    def release(self) -> None:
        """Let the model be as it was, but for its weights."""
        for handle in self.handles:
            handle.remove()
        for parameter in self.own.values():
            parameter.requires_grad_(False)

    @property
    def computes_apart(self) -> bool:
        """Whether the model computes with a copy in 16 bits, not with what is trained."""
        return any(parameter.dtype is not torch.float32 for parameter in self.own.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the float32 copy; 0 where the base's own weights are trained."""
        return self.gradient_bytes if self.computes_apart else 0

    def begin_pass(self) -> None:
        """Give the model its weights as they are now."""
        for key, parameter in self.own.items():
            if parameter.dtype is not torch.float32:
                parameter.data.copy_(self.parameters[key].data)

    def halves(self, flat_P: torch.Tensor) -> list[torch.Tensor]:
        """Return the matrices and the vectors of a flat tensor."""
        edge = sum(each.numel() for each in self.own.values() if each.ndim >= 2)
        return [flat_P[:edge], flat_P[edge:]]

    def is_in_first(self, name: str) -> bool:
        return self.own[name].ndim >= 2

    def of_parameters(self, flat_P: torch.Tensor) -> list[torch.Tensor]:
        sizes = [each.numel() for each in self.own.values()]
        pairs = zip(flat_P.split(sizes), self.own.values(), strict=True)
        return [part.view(own.shape) for part, own in pairs]


def save_model(whole: WholeModel, model: Any, tokenizer: Any, directory: Path) -> None:
    """Write the model in float32 so that transformers loads it as it does any other."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {key: each.cpu().contiguous() for key, each in as_in_file(whole, model).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.use_cache, config.dtype = True, torch.float32
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def as_in_file(whole: WholeModel, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return views of the trained parameters as transformers' own model has them, by name."""
    transposed = {  # the weights of GPT-2's layers, which a file has the other way round
        f"{name}.weight"
        for name, module in model.named_modules()
        if getattr(module, "is_transposed_in_file", False)
    }
    return {
        key: parameter.data.T if key in transposed else parameter.data
        for key, parameter in whole.parameters.items()
    }


def load_model(whole: WholeModel, model: Any, directory: Path) -> None:
    """Read what `save_model` has written; RequestError for another model's file."""
    own = as_in_file(whole, model)
    given = saved_tensors(directory / "model.safetensors", own, "model")
    for key, tensor in own.items():
        tensor.copy_(given[key])
