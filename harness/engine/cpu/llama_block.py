"""A block of the Llama family with adapters, as one node of autograd: for models so small that it pays.

Left to autograd, a pass of such a model spends more on what stands between the matrix products (norms,
rotations, activations, dozens of tensors kept) than it has to. Here the derivative is written out, and
elementwise parts are recomputed in backward instead of kept. Operations and the order of sums are those of
transformers' block, PEFT's layers and autograd, so that adapters get the same bits (`tests/engine/
test_cpu.py`): the loss of a fast run doubles a rounding error within a few steps.

Shape suffixes: B rows, T positions of a row, N = B·T, H hidden, D head, Q query heads, S key heads,
F feed-forward, R rank, I inputs, O outputs; stacked adapters have one dimension more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

from harness.engine.cpu.matmul import FrozenWeight
from harness.engine.lora_math import OWN, add_gradients, add_update
from harness.engine.rows import AdapterGroup


@dataclass(slots=True)
class BlockInput:
    """What a block sees besides the hidden states."""

    groups: Sequence[AdapterGroup]
    width: int
    """Positions of a row of the batch; 0: all belong to one group."""
    cos_BTD: torch.Tensor
    """[1, T, D] where all rows have the same positions."""
    sin_BTD: torch.Tensor
    mask_B1TT: torch.Tensor | None
    """Added to the scores; None: causal."""


# Linear layers with one input, and the adapters on them --------------------------------------------


class FusedLinears:
    """Layers with the same input."""

    def __init__(self, weights: Sequence[FrozenWeight], layers: Sequence[int]) -> None:
        """`layers`: their indices in the model, ascending."""
        self.layers = tuple(layers)
        self.weights = tuple(weights)

    def forward(
        self, x_NI: torch.Tensor, given: BlockInput
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the output of each layer, and A x of all adapters, for backward."""
        ys_NO, kept = [], []
        for layer, weight in zip(self.layers, self.weights, strict=True):
            y_NO = weight.forward.times(x_NI, weight.bias_O)
            for group in given.groups:
                if layer in group.layout:
                    adapter, scaling = group.weights(layer), group.scaling(layer)
                    kept.append(OWN.product(group.rows(x_NI, given.width), adapter.a))
                    y_rows = group.rows(y_NO, given.width)
                    add_update(OWN, adapter.b, scaling, kept[-1], y_rows)
            ys_NO.append(y_NO)
        return ys_NO, kept

    def backward(
        self,
        grads_NO: Sequence[torch.Tensor],
        x_NI: torch.Tensor,
        given: BlockInput,
        kept: Sequence[torch.Tensor],
        *,
        grad_x_wanted: bool = True,
    ) -> torch.Tensor | None:
        """Add up the gradients of A and B where the groups keep them; return that of x, if it is wanted.

        `grads_NO`: of each layer's output. Terms are added in autograd's order: last layer first, and in
        each the adapters before the base.
        """
        remaining = list(kept)
        grad_x_NI: torch.Tensor | None = None
        for layer, weight, grad_NO in reversed(
            list(zip(self.layers, self.weights, grads_NO, strict=True))
        ):
            adapted = [group for group in given.groups if layer in group.layout]
            if adapted and grad_x_wanted and grad_x_NI is None:
                grad_x_NI = torch.zeros_like(x_NI)
            for group in reversed(adapted):
                x_rows, grad_rows = (group.rows(of, given.width) for of in (x_NI, grad_NO))
                adapter, targets = group.weights(layer), group.targets(layer)
                scaling = group.scaling(layer)
                grad_h = add_gradients(
                    adapter, targets, scaling, grad_rows, x_rows, remaining.pop()
                )
                if grad_x_NI is not None:
                    grad_x_rows = group.rows(grad_x_NI, given.width)
                    OWN.add_product_(grad_x_rows, grad_h, adapter.a.mT)
            if grad_x_wanted:
                grad_x_NI = weight.backward.times(grad_NO, added=grad_x_NI)
        return grad_x_NI


# The block ----------------------------------------------------------------------------------------


class LlamaBlock:
    """The frozen weights of one block, and its forward and backward."""

    def __init__(
        self, module: Any, weights: Mapping[str, FrozenWeight], layers: Mapping[str, int]
    ) -> None:
        """`weights` and `layers`: weight and index in the model of each linear layer, by its own name."""

        def joint(*names: str) -> FusedLinears:
            return FusedLinears([weights[name] for name in names], [layers[name] for name in names])

        attention = module.self_attn
        self.qkv = joint("q_proj", "k_proj", "v_proj")
        self.o = joint("o_proj")
        self.gate_up = joint("gate_proj", "up_proj")
        self.down = joint("down_proj")
        self.norm = Norm(module.input_layernorm)
        self.second_norm = Norm(module.post_attention_layernorm)
        self.head_size: int = attention.head_dim
        self.key_heads = module.self_attn.config.num_key_value_heads
        self.groups: int = attention.num_key_value_groups
        self.scale: float = attention.scaling

    def is_adapted(self, groups: Sequence[AdapterGroup]) -> bool:
        """Say whether any of `groups` adapts any layer of this block."""
        joints = (self.qkv, self.o, self.gate_up, self.down)
        layers = [layer for joint in joints for layer in joint.layers]
        return any(layer in group.layout for group in groups for layer in layers)

    # Forward ---------------------------------------------------------------------------------------

    def forward(self, x_NH: torch.Tensor, given: BlockInput) -> tuple[torch.Tensor, "SavedTensors"]:
        """Return the block's output and what backward needs."""
        kept = SavedTensors()
        n_NH, kept.scale = self.norm.forward(x_NH)
        qkv, kept.of_qkv = self.qkv.forward(n_NH, given)
        kept.attended = self._attend(qkv, given, kept)
        (y_NH,), kept.of_o = self.o.forward(kept.attended, given)
        kept.middle = y_NH.add_(x_NH)
        n_NH, kept.second_scale = self.second_norm.forward(y_NH)
        (kept.gate, kept.up), kept.of_gate_up = self.gate_up.forward(n_NH, given)
        (out_NH,), kept.of_down = self.down.forward(F.silu(kept.gate).mul_(kept.up), given)
        return out_NH.add_(y_NH), kept

    def _attend(
        self, qkv: Sequence[torch.Tensor], given: BlockInput, kept: "SavedTensors"
    ) -> torch.Tensor:
        """Return the attention's output before o_proj, [N, Q·D]."""
        length, size = given.cos_BTD.shape[1], self.head_size
        q, k, v = (each.view(-1, length, each.shape[1] // size, size) for each in qkv)
        kept.q = _rotated(q, given).transpose(1, 2)
        kept.k, kept.v = _rotated(k, given).transpose(1, 2), v.transpose(1, 2)
        if (
            given.mask_B1TT is not None
        ):  # as transformers does; without a mask torch's kernel repeats
            kept.k, kept.v = self._for_each_query(kept.k), self._for_each_query(kept.v)
        kept.attention, kept.logarithms = _flash(
            kept.q,
            kept.k,
            kept.v,
            0.0,
            given.mask_B1TT is None,
            attn_mask=given.mask_B1TT,
            scale=self.scale,
        )
        return kept.attention.transpose(1, 2).reshape(len(qkv[0]), -1)

    def _for_each_query(self, x_BSTD: torch.Tensor) -> torch.Tensor:
        """Return [B, Q, T, D]: every key head once for each of its query heads."""
        rows, heads, length, size = x_BSTD.shape
        wide = x_BSTD[:, :, None].expand(rows, heads, self.groups, length, size)
        return wide.reshape(rows, heads * self.groups, length, size)

    # Backward --------------------------------------------------------------------------------------

    def backward(
        self,
        grad_NH: torch.Tensor,
        x_NH: torch.Tensor,
        given: BlockInput,
        kept: "SavedTensors",
        *,
        grad_x_wanted: bool,
    ) -> torch.Tensor | None:
        """Write the adapters' gradients; return that of x, if it is wanted."""
        grad_NH = self._feed_forward_backward(grad_NH, given, kept)
        grad_o = self.o.backward([grad_NH], kept.attended, given, kept.of_o)
        assert grad_o is not None
        grads_qkv = self._attend_backward(grad_o, given, kept)
        n_NH = self.norm.again(x_NH, kept.scale)
        grad_n = self.qkv.backward(grads_qkv, n_NH, given, kept.of_qkv, grad_x_wanted=grad_x_wanted)
        if grad_n is None:
            return None
        return self.norm.backward(grad_n, x_NH, kept.scale, added_NH=grad_NH)

    def _feed_forward_backward(
        self, grad_NH: torch.Tensor, given: BlockInput, kept: "SavedTensors"
    ) -> torch.Tensor:
        """Return the gradient of the sum between attention and feed-forward."""
        active_NF = F.silu(kept.gate)
        grad_a_NF = self.down.backward([grad_NH], active_NF * kept.up, given, kept.of_down)
        assert grad_a_NF is not None
        grad_up_NF = active_NF.mul_(grad_a_NF)
        grad_gate_NF = torch.ops.aten.silu_backward(grad_a_NF.mul_(kept.up), kept.gate)
        n_NH = self.second_norm.again(kept.middle, kept.second_scale)
        grad_n = self.gate_up.backward([grad_gate_NF, grad_up_NF], n_NH, given, kept.of_gate_up)
        assert grad_n is not None
        return self.second_norm.backward(grad_n, kept.middle, kept.second_scale, added_NH=grad_NH)

    def _attend_backward(
        self, grad_o: torch.Tensor, given: BlockInput, kept: "SavedTensors"
    ) -> list[torch.Tensor]:
        """Return the gradients of queries, keys and values [N, …], from that before o_proj."""
        rows, heads, length, size = kept.q.shape
        grad_out = grad_o.view(rows, length, heads, size).transpose(1, 2)
        grad_q, grad_k, grad_v = _flash_backward(
            grad_out,
            kept.q,
            kept.k,
            kept.v,
            kept.attention,
            kept.logarithms,
            0.0,
            given.mask_B1TT is None,
            attn_mask=given.mask_B1TT,
            scale=self.scale,
        )
        grad_q = _rotated_back(grad_q.transpose(1, 2), given)
        grad_k = _rotated_back(self._summed(grad_k).transpose(1, 2), given)
        grad_v = self._summed(grad_v).transpose(1, 2)
        return [grad.reshape(len(grad_o), -1) for grad in (grad_q, grad_k, grad_v)]

    def _summed(self, grad_BQTD: torch.Tensor) -> torch.Tensor:
        """Return the gradient of key heads from those of their copies."""
        if grad_BQTD.shape[1] == self.key_heads:
            return grad_BQTD
        return grad_BQTD.unflatten(1, (-1, self.groups)).sum(2)


_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Norm:
    """A root mean square norm with a frozen weight."""

    def __init__(self, module: Any) -> None:
        self.weight_H: torch.Tensor = module.weight.detach()
        self.epsilon: float = module.variance_epsilon

    def forward(self, x_NH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normed rows and what each was multiplied by, [N, 1]."""
        scale_N1 = x_NH.pow(2).mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()
        return self.again(x_NH, scale_N1), scale_N1

    def again(self, x_NH: torch.Tensor, scale_N1: torch.Tensor) -> torch.Tensor:
        """Return the normed rows."""
        return (x_NH * scale_N1).mul_(self.weight_H)

    def backward(
        self,
        grad_NH: torch.Tensor,
        x_NH: torch.Tensor,
        scale_N1: torch.Tensor,
        *,
        added_NH: torch.Tensor,
    ) -> torch.Tensor:
        """Return the gradient of x + `added_NH`, in the memory of `grad_NH`."""
        grad_NH.mul_(self.weight_H)
        along_N1 = (grad_NH * x_NH).sum(-1, keepdim=True).mul_(scale_N1.pow(3)).div_(x_NH.shape[1])
        return grad_NH.mul_(scale_N1).add_(added_NH).sub_(x_NH * along_N1)


@dataclass(slots=True, init=False)
class SavedTensors:
    """What a block keeps from forward to backward."""

    scale: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    attention: torch.Tensor
    logarithms: torch.Tensor
    """Logarithms of the softmax's sums."""
    attended: torch.Tensor
    middle: torch.Tensor
    second_scale: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    of_qkv: list[torch.Tensor]
    of_o: list[torch.Tensor]
    of_gate_up: list[torch.Tensor]
    of_down: list[torch.Tensor]

    def flattened(self) -> tuple[list[torch.Tensor], list[int]]:
        """Return all tensors, and how many of them each list has."""
        lists = [getattr(self, name) for name in _LISTS]
        tensors = [getattr(self, name) for name in _TENSORS] + [t for part in lists for t in part]
        return tensors, [len(part) for part in lists]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], counts: Sequence[int]) -> "SavedTensors":
        """Return what `flattened` has taken apart."""
        kept, remaining = cls(), iter(tensors)
        for name in _TENSORS:
            setattr(kept, name, next(remaining))
        for name, count in zip(_LISTS, counts, strict=True):
            setattr(kept, name, [next(remaining) for _ in range(count)])
        return kept


_LISTS = tuple(f.name for f in fields(SavedTensors) if f.name.startswith("of_"))
_TENSORS = tuple(f.name for f in fields(SavedTensors) if not f.name.startswith("of_"))


def _rotated(x_BTSD: torch.Tensor, given: BlockInput) -> torch.Tensor:
    """Return heads turned by their positions (RoFormer, Su et al. 2021)."""
    cos, sin = given.cos_BTD.unsqueeze(2), given.sin_BTD.unsqueeze(2)
    half = x_BTSD.shape[-1] // 2
    out = x_BTSD * cos
    # No addcmul_, which leaves out a rounding.
    out[..., :half].sub_(x_BTSD[..., half:] * sin[..., :half])
    out[..., half:].add_(x_BTSD[..., :half] * sin[..., half:])
    return out


def _rotated_back(grad_BTSD: torch.Tensor, given: BlockInput) -> torch.Tensor:
    """Return the gradient of what was turned, contiguous."""
    cos, sin = given.cos_BTD.unsqueeze(2), given.sin_BTD.unsqueeze(2)
    half = grad_BTSD.shape[-1] // 2
    out = torch.mul(grad_BTSD, cos, out=grad_BTSD.new_empty(grad_BTSD.shape))
    out[..., :half].add_(grad_BTSD[..., half:] * sin[..., half:])
    out[..., half:].sub_(grad_BTSD[..., :half] * sin[..., :half])
    return out
