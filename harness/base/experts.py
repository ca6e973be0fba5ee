"""Fused experts of transformers: their 3-D matrices as linear layers that are packed like all others.

transformers holds the experts of a layer as parameters [experts, out, in] of one module (or where it is
`is_transposed` [experts, in, out]), and computes them through an interface (`integrations/moe.py`). Here each
parameter becomes a linear layer that has the experts' matrices one below another, so that storages, caches,
sizes and sharding need to know nothing of experts, and the product decodes it once for all of them.

Shape suffixes: N tokens, K experts of a token, S = N · K pairs sorted by expert, E experts, D rows of an
expert's stored matrix, I inputs, O outputs, H hidden.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.base.layers import dense_linear, dense_weight

_INTERFACE = ("num_experts", "has_gate", "has_bias", "is_transposed", "_apply_gate")
"""What transformers' `use_experts_implementation` gives a class of experts."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Which tokens each expert sees, in the order of the experts and within one in that of the tokens."""

    experts: int
    token_S: torch.Tensor
    expert_S: torch.Tensor
    order_S: torch.Tensor
    """Where a sorted pair stands among the pairs [N, K] as they came."""
    tokens: int

    @classmethod
    def of(cls, index_NK: torch.Tensor, experts: int) -> "Routing":
        """Return the routing of a layer."""
        tokens, per_token = index_NK.shape
        expert_S, order_S = torch.sort(index_NK.reshape(-1), stable=True)
        return cls(experts, order_S // per_token, expert_S, order_S, tokens)

    def counts(self, owners: int = 1, owner_N: torch.Tensor | None = None) -> list[list[int]]:
        """Return how many pairs each expert has of each owner of tokens, whose owners ascend.

        On the meta device, where nobody is routed, all have as many.
        """
        parts = self.experts * owners
        if self.expert_S.is_meta:
            each, more = divmod(self.expert_S.numel(), parts)
            flat = [each + (part < more) for part in range(parts)]
        else:
            part_S = self.expert_S
            if owner_N is not None:
                part_S = part_S * owners + owner_N[self.token_S]
            flat = torch.bincount(part_S, minlength=parts).tolist()
        return [flat[start : start + owners] for start in range(0, parts, owners)]


Updated = Callable[[str, torch.Tensor, torch.Tensor, Routing], torch.Tensor]
"""(name, x [S, I], y [S, O], routing) -> y with what adapters add to the parameter of that name; y may be
written into."""


class ExpertsForward:
    """The forward of one module of experts, with packed matrices; equal to transformers' but for rounding."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.updated: Updated | None = None

    def __call__(
        self, hidden_NH: torch.Tensor, index_NK: torch.Tensor, weight_NK: torch.Tensor
    ) -> torch.Tensor:
        module: Any = self.module
        routing = Routing.of(index_NK, module.num_experts)
        x_SI = hidden_NH[routing.token_S]
        if module.has_gate:
            inner = module._apply_gate(self._product("gate_up_proj", x_SI, routing))
        else:
            inner = module.act_fn(self._product("up_proj", x_SI, routing))
        y_SH = self._product("down_proj", inner, routing)
        if getattr(module, "has_post_expert_norm", False):
            y_SH = module.post_expert_norm(y_SH)
        y_SH = y_SH * weight_NK.reshape(-1)[routing.order_S].unsqueeze(-1)
        back_S = torch.empty_like(routing.order_S)
        back_S[routing.order_S] = torch.arange(back_S.numel(), device=back_S.device)
        of_token = y_SH[back_S].view(*index_NK.shape, -1)
        return of_token.sum(dim=1).to(hidden_NH.dtype)

    def _product(self, name: str, x_SI: torch.Tensor, routing: Routing) -> torch.Tensor:
        layer = getattr(self.module, name)
        layer = getattr(layer, "base_layer", layer)
        y_SO: torch.Tensor = _ExpertsMatmul.apply(  # pyright: ignore[reportAssignmentType]
            x_SI, layer, routing, self.module.is_transposed
        )
        if self.updated is not None:
            y_SO = self.updated(name, x_SI, y_SO, routing)
        if self.module.has_bias:
            y_SO = y_SO + getattr(self.module, f"{name}_bias")[routing.expert_S]
        return y_SO


class _ExpertsMatmul(torch.autograd.Function):
    """Each expert's product with its own rows; weights are decoded in forward and again in backward."""

    @staticmethod
    def forward(
        ctx: Any, x_SI: torch.Tensor, layer: nn.Linear, routing: Routing, transposed: bool
    ) -> torch.Tensor:
        ctx.layer, ctx.routing, ctx.transposed = layer, routing, transposed
        weight_EOI = _weights(layer, routing, transposed, x_SI.dtype)
        y_SO = x_SI.new_empty(len(x_SI), weight_EOI.shape[1])
        for expert, start, stop in _spans(routing):
            torch.matmul(x_SI[start:stop], weight_EOI[expert].T, out=y_SO[start:stop])
        return y_SO

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        grad_SO = grad_outputs[0].contiguous()
        weight_EOI = _weights(ctx.layer, ctx.routing, ctx.transposed, grad_SO.dtype)
        grad_SI = grad_SO.new_empty(len(grad_SO), weight_EOI.shape[2])
        for expert, start, stop in _spans(ctx.routing):
            torch.matmul(grad_SO[start:stop], weight_EOI[expert], out=grad_SI[start:stop])
        return grad_SI, None, None, None


def _weights(
    layer: nn.Linear, routing: Routing, transposed: bool, dtype: torch.dtype
) -> torch.Tensor:
    stored_EDI = dense_weight(layer, dtype).view(routing.experts, -1, layer.in_features)
    return stored_EDI.transpose(1, 2) if transposed else stored_EDI


def _spans(routing: Routing) -> Iterator[tuple[int, int, int]]:
    """Yield (expert, start, stop) of the pairs of experts that see any."""
    start = 0
    for expert, (count,) in enumerate(routing.counts()):
        if count:
            yield expert, start, start + count
        start += count


# In the place of transformers' parameters --------------------------------------------------------


def expose_experts(model: nn.Module) -> None:
    """Make linear layers of the fused experts' matrices in the model's blocks, wherever they lie."""
    for module in list(model.modules()):
        has_interface = all(hasattr(module, name) for name in _INTERFACE)
        if experts_forward(module) is not None or not has_interface:
            continue
        matrices = {
            name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 3
        }
        expected = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
        if set(matrices) != expected:
            continue
        for name, parameter in matrices.items():
            delattr(module, name)
            one_below_another = parameter.detach().view(-1, parameter.shape[2])
            setattr(module, name, dense_linear(one_below_another))
        # An attribute of the instance comes before the method of its class.
        object.__setattr__(module, "forward", ExpertsForward(module))


def experts_forward(module: nn.Module) -> ExpertsForward | None:
    """Return the forward of a module of exposed experts; None for any other module."""
    found = vars(module).get("forward")
    return found if isinstance(found, ExpertsForward) else None
