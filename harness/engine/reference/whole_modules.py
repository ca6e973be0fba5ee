"""Embeddings and head that a run trains whole, beside its adapter: PEFT's `modules_to_save`.

The run has a copy of its own in float32, in its flat tensor; the base's stays what it is. One matrix serves
all rows of a pass, so such a run trains alone. Gradients are written where they belong, as those of A and B
are.

Shape suffixes: B rows, T positions, N rows of both or of chosen positions, H hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from harness.engine.rows import AdapterGroup, RowPlan
from harness.errors import RequestError

HEAD = "lm_head"


def whole_module(model: Any, part: str) -> tuple[str, Any]:
    """Return the module that a name of `lora.train_also` means in a model, and what it is called there.

    Raises RequestError for one that does more than to look up, or to multiply.
    """
    is_head = part == HEAD
    module: Any = model.get_output_embeddings() if is_head else model.get_input_embeddings()
    name = next(name for name, each in model.named_modules() if each is module)
    kind = nn.Linear if is_head else nn.Embedding
    if type(module).forward is not kind.forward or getattr(module, "bias", None) is not None:
        raise RequestError(
            f"lora.train_also: {part} of this model ({name}) is a {type(module).__name__} with a bias, a "
            f"scale or a product of its own, and plain nn.{kind.__name__}s are trained; leave it out"
        )
    return name, module


def install(module: Any, part: str, plan: RowPlan) -> None:
    """Let a module be computed with the copy of the run in the pass, where it has one."""
    before = module.forward
    if isinstance(before, _Whole):
        return
    # An attribute of the instance comes before the method of its class.
    object.__setattr__(module, "forward", _Whole(part, before, module, plan))


class _Whole:
    """The forward of one such module."""

    def __init__(
        self, part: str, before: Callable[[torch.Tensor], torch.Tensor], module: Any, plan: RowPlan
    ) -> None:
        self._part = part
        self._before = before
        self._padding: int | None = getattr(module, "padding_idx", None)
        self._dtype: torch.dtype = module.weight.dtype
        self._plan = plan

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        group = next((g for g in self._plan.present if self._part in g.layout.wholes), None)
        if group is None:
            return self._before(x)
        if self._part == HEAD:
            return _Multiplied.apply(x, self._plan.anchor, group, self._part)  # pyright: ignore[reportReturnType]
        found = _LookedUp.apply(x, self._plan.anchor, group, self._part, self._padding)
        assert isinstance(found, torch.Tensor)
        return found.to(self._dtype)


class _LookedUp(torch.autograd.Function):
    """Embeddings of tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        ids_BT: torch.Tensor,
        anchor: torch.Tensor,
        group: AdapterGroup,
        part: str,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.group, ctx.part, ctx.padding = group, part, padding
        ctx.save_for_backward(ids_BT)
        return F.embedding(ids_BT, group.whole(part))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[None, None, None, None, None]:
        (grad_BTH,) = grad_outputs
        (ids_BT,) = ctx.saved_tensors
        ids_N, grad_NH = ids_BT.reshape(-1), grad_BTH.reshape(-1, grad_BTH.shape[-1]).float()
        if ctx.padding is not None:
            grad_NH = torch.where((ids_N == ctx.padding).unsqueeze(1), 0.0, grad_NH)
        ctx.group.whole_target(ctx.part).index_add_(0, ids_N, grad_NH)
        return None, None, None, None, None


class _Multiplied(torch.autograd.Function):
    """Logits of hidden states."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, group: AdapterGroup, part: str
    ) -> torch.Tensor:
        ctx.group, ctx.part = group, part
        ctx.save_for_backward(x)
        return F.linear(x, group.whole(part).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = grad_outputs
        (x,) = ctx.saved_tensors
        grad_NV, x_NH = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        ctx.group.whole_target(ctx.part).addmm_(grad_NV.float().T, x_NH.float())
        return grad @ ctx.group.whole(ctx.part).to(grad.dtype), None, None, None
