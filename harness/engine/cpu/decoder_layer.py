"""Decoder layers of transformers replaced by `LlamaBlock`, and the passes for which it stands in."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend

from harness.engine.cpu.llama_block import BlockInput, LlamaBlock, SavedTensors
from harness.engine.cpu.matmul import FrozenWeight
from harness.engine.rows import RowPlan

if TYPE_CHECKING:
    from harness.engine.shared_base import SharedBase

_KNOWN = (
    "transformers.models.llama.modeling_llama.LlamaDecoderLayer",
    "transformers.models.mistral.modeling_mistral.MistralDecoderLayer",
    "transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer",
)
_LINEARS_OF_BLOCK = 7
_TYPES_OF_LAYER = 2
"""Most masks of a pass: one for layers that see a window, one for those that see all."""


def known_blocks(shared: "SharedBase", weights: Mapping[str, FrozenWeight]) -> list["QuickBlock"]:
    """Put a `QuickBlock` before each decoder layer, if all are of one known kind without a peculiarity."""
    index = {spec.name: number for number, spec in enumerate(shared.base.linears)}
    layers = [
        (name, module)
        for name, module in shared.model.named_modules()
        if f"{type(module).__module__}.{type(module).__qualname__}" in _KNOWN
    ]
    if len(layers) * _LINEARS_OF_BLOCK != len(index) or not _is_plain(shared.model.config, layers):
        return []
    masks = _Masks()
    blocks = []
    for name, module in layers:
        inside = {full.rpartition(".")[2]: full for full in index if full.startswith(f"{name}.")}
        block = LlamaBlock(
            module,
            {own: weights[full] for own, full in inside.items()},
            {own: index[full] for own, full in inside.items()},
        )
        blocks.append(QuickBlock(module, block, shared.plan, masks))
        object.__setattr__(module, "forward", blocks[-1])
    return blocks


def _is_plain(config: Any, blocks: Sequence[tuple[str, Any]]) -> bool:
    """Say whether attention is the CPU's flash kernel, and the activation SiLU."""
    if config._attn_implementation != "sdpa" or config.hidden_act != "silu" or not blocks:
        return False
    size = blocks[0][1].self_attn.head_dim
    query, mask = torch.zeros(1, 1, 2, size), torch.zeros(1, 1, 2, 2)
    kernels = {
        torch._fused_sdp_choice(query, query, query, given, 0.0, given is None)
        for given in (None, mask)
    }
    return kernels == {SDPBackend.FLASH_ATTENTION.value}


class QuickBlock:
    """The forward that takes the place of a decoder layer's."""

    def __init__(
        self, module: nn.Module, block: LlamaBlock, plan: RowPlan, masks: "_Masks"
    ) -> None:
        self.module = module
        self.block = block
        self.plan = plan
        self.masks = masks
        self.is_used = False
        """Whether the block stands in for the decoder layer: with decoded weights at hand."""

    def __call__(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        """Return the block's output, as the decoder layer would; transformers gives all else by name."""
        present = self.plan.present
        is_plain = all(
            group.layout.is_plain and not (group.dropout and group.dropout_key is not None)
            for group in present
        )
        turned, cache = named.get("position_embeddings"), named.get("past_key_values")
        if not self.is_used or turned is None or cache is not None or not is_plain:
            return type(self.module).forward(self.module, hidden_states, **named)  # pyright: ignore[reportReturnType]
        cos_BTD, sin_BTD = turned
        mask = self.masks.added(named.get("attention_mask"))
        rows, positions = self.plan.num_rows, hidden_states.shape[0] * hidden_states.shape[1]
        width = positions // rows if rows else 0
        given = BlockInput(present, width, cos_BTD, sin_BTD, mask)
        if torch.is_grad_enabled() and (
            hidden_states.requires_grad or self.block.is_adapted(present)
        ):
            return _AsNode.apply(hidden_states, self.plan.anchor, self.block, given)  # pyright: ignore[reportReturnType]
        return _forward(hidden_states, self.block, given)[0]


class _Masks:
    """The masks of the pass in flight as attention adds them; all blocks of a type are given the same one."""

    def __init__(self) -> None:
        self._added: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=_TYPES_OF_LAYER)
        """As given, and as added."""

    def added(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return a boolean mask as numbers: 0 where it is true, minus infinity elsewhere."""
        if mask is None or mask.dtype is not torch.bool:
            return mask
        for given, added in self._added:
            if given is mask:
                return added
        added = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
        self._added.append((mask, added))
        return added


def _forward(
    hidden_BTH: torch.Tensor, block: LlamaBlock, given: BlockInput
) -> tuple[torch.Tensor, SavedTensors]:
    out_NH, kept = block.forward(hidden_BTH.reshape(-1, hidden_BTH.shape[-1]), given)
    return torch.ops.aten._unsafe_view(out_NH, hidden_BTH.shape), kept


class _AsNode(torch.autograd.Function):
    """A block as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, block: LlamaBlock, given: BlockInput
    ) -> torch.Tensor:
        out, kept = _forward(x, block, given)
        tensors, ctx.counts = kept.flattened()
        ctx.block, ctx.given = block, given
        ctx.save_for_backward(x, *tensors)
        return out

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, None]:
        (grad,) = grad_outputs
        x, *tensors = ctx.saved_tensors
        width = x.shape[-1]
        grad_x = ctx.block.backward(
            grad.reshape(-1, width),
            x.reshape(-1, width),
            ctx.given,
            SavedTensors.of(tensors, ctx.counts),
            grad_x_wanted=ctx.needs_input_grad[0],
        )
        return None if grad_x is None else grad_x.view(x.shape), None, None, None
