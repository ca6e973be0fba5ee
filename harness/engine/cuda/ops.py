"""The pieces of a captured pass: each by a kernel on a GPU, and by plain torch elsewhere, with the same
meaning.

Where torch computes them (on a CPU) they are what the kernels are compared with. Whatever is returned is
allocated here; names that end in _ write into what they are given.

Shape suffixes: N positions of the pass, H width of the residual stream, G heads, D head, F feed-forward,
V vocabulary, S seats, R rank (of all layers of a group), I inputs, O outputs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

import torch
import torch.nn.functional as F

from harness.base.code_books import table
from harness.base.layers import FrozenLinear, dense_weight
from harness.base.storage import DOUBLE_QUANT_BLOCK, Blockwise, dynamic_table
from harness.engine.dropout import keep_mask_of_words, layer_salt
from harness.engine.lora_math import Products

TILE = 64
"""Rows that belong to one seat without exception: segments of seats begin at multiples of it."""


class _OnMeta:
    """Every kernel where there is nothing to compute: a planned pass allocates what a real one does."""

    def __getattr__(self, name: str) -> "_OnMeta":
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: None


_ON_META = _OnMeta()


def _kernels(tensor: torch.Tensor) -> Any:
    """Return the kernels that compute on `tensor`."""
    if tensor.is_meta:
        return _ON_META
    from harness.engine.cuda import kernels

    return kernels


def by_kernel(tensor: torch.Tensor) -> bool:
    """Say whether kernels compute on `tensor`: on a GPU, where a GPU is planned for, and where Triton's
    interpreter is asked for."""
    return tensor.is_cuda or tensor.is_meta or os.environ.get("TRITON_INTERPRET") == "1"


def _power_of_two(value: int, least: int = 1, most: int = 1 << 30) -> int:
    return min(most, max(least, 1 << (value - 1).bit_length()))


def _blocks(total: int, size: int) -> int:
    return -(-total // size)


# Norms -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """What an RMS norm multiplies by, and how it rounds."""

    weight_H: torch.Tensor
    epsilon: float
    rounds: bool = True
    """To the stream's type before the weight as well as after it, as in Llama; Gemma's round once."""

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """Return that of a module of transformers; Gemma's keep their weight less one."""
        weight_H = module.weight.detach()
        if "Gemma" in type(module).__name__:
            return cls(1.0 + weight_H.float(), module.eps, rounds=False)
        return cls(weight_H, module.variance_epsilon)


def rms_norm(
    x_NH: torch.Tensor, residual_NH: torch.Tensor | None, norm: Norm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x + residual (or x), its norm times the weight, and what each row was multiplied by
    (float32)."""
    if by_kernel(x_NH):
        rows, width = x_NH.shape
        summed = x_NH if residual_NH is None else torch.empty_like(x_NH)
        out = torch.empty_like(x_NH)
        scale_N = torch.empty(rows, dtype=torch.float32, device=x_NH.device)
        _kernels(x_NH).rms_norm_kernel[(rows,)](
            x_NH,
            residual_NH if residual_NH is not None else x_NH,
            norm.weight_H,
            summed,
            out,
            scale_N,
            1,
            x_NH.stride(0),
            width,
            width,
            norm.epsilon,
            HAS_RESIDUAL=residual_NH is not None,
            ROUNDS=norm.rounds,
            BLOCK=_power_of_two(width),
            num_warps=8,
        )
        return summed, out, scale_N
    summed = x_NH if residual_NH is None else x_NH + residual_NH
    scale_N = _rms_scale(summed, norm)
    return summed, _normed(summed, scale_N, norm), scale_N


def _rms_scale(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return torch.rsqrt(x.float().pow(2).mean(-1) + norm.epsilon)


def _normed(x: torch.Tensor, scale: torch.Tensor, norm: Norm) -> torch.Tensor:
    normed = x.float() * scale.unsqueeze(-1)
    return ((normed.to(x.dtype) if norm.rounds else normed) * norm.weight_H).to(x.dtype)


def rms_norm_again(x_NH: torch.Tensor, scale_N: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return the normed rows once more, for a backward pass that has not kept them."""
    if by_kernel(x_NH):
        return rms_norm(x_NH, None, norm)[1]
    return _normed(x_NH, scale_N, norm)


def rms_norm_backward(
    grad_NH: torch.Tensor,
    x_NH: torch.Tensor,
    norm: Norm,
    scale_N: torch.Tensor,
    added_NH: torch.Tensor | None,
) -> torch.Tensor:
    """Return the gradient of x, plus `added_NH`."""
    if by_kernel(x_NH):
        rows, width = x_NH.shape
        out = torch.empty_like(x_NH)
        _kernels(grad_NH).rms_norm_backward_kernel[(rows,)](
            grad_NH,
            x_NH,
            norm.weight_H,
            scale_N,
            added_NH if added_NH is not None else grad_NH,
            out,
            1,
            width,
            x_NH.stride(0),
            width,
            width,
            HAS_ADDED=added_NH is not None,
            BLOCK=_power_of_two(width),
            num_warps=8,
        )
        return out
    out = _rms_backward(grad_NH, x_NH, norm, scale_N)
    return out.to(x_NH.dtype) if added_NH is None else (out + added_NH.float()).to(x_NH.dtype)


def _rms_backward(
    grad: torch.Tensor, x: torch.Tensor, norm: Norm, scale: torch.Tensor
) -> torch.Tensor:
    through = grad.float() * norm.weight_H.float()
    normed = x.float() * scale.unsqueeze(-1)
    return scale.unsqueeze(-1) * (through - normed * (through * normed).mean(-1, keepdim=True))


def head_norm_(
    x_NW: torch.Tensor, first: int, heads: int, norm: Norm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm `heads` heads of each row from column `first` on, in place (Qwen 3, Gemma 3).

    Returns what they were, [N, G·D], and the scales [N·G].
    """
    size = norm.weight_H.numel()
    part = x_NW[:, first : first + heads * size]
    before = part.clone()
    if by_kernel(x_NW):
        rows = len(x_NW)
        scale = torch.empty(rows * heads, dtype=torch.float32, device=x_NW.device)
        _kernels(before).rms_norm_kernel[(rows * heads,)](
            before,
            before,
            norm.weight_H,
            before,
            part,
            scale,
            heads,
            heads * size,
            x_NW.stride(0),
            size,
            norm.epsilon,
            HAS_RESIDUAL=False,
            ROUNDS=norm.rounds,
            BLOCK=_power_of_two(size),
            num_warps=1,
        )
        return before, scale
    by_head = before.view(len(before), heads, size)
    scale = _rms_scale(by_head, norm)
    part.copy_(_normed(by_head, scale, norm).view_as(part))
    return before, scale.reshape(-1)


def head_norm_backward_(
    grad_NW: torch.Tensor,
    first: int,
    heads: int,
    before_NX: torch.Tensor,
    norm: Norm,
    scale: torch.Tensor,
) -> None:
    """Put the gradient of the heads before `head_norm_` where that of the normed ones is."""
    size = norm.weight_H.numel()
    part = grad_NW[:, first : first + heads * size]
    if by_kernel(grad_NW):
        rows = len(grad_NW)
        _kernels(part).rms_norm_backward_kernel[(rows * heads,)](
            part,
            before_NX,
            norm.weight_H,
            scale,
            part,
            part,
            heads,
            grad_NW.stride(0),
            heads * size,
            grad_NW.stride(0),
            size,
            HAS_ADDED=False,
            BLOCK=_power_of_two(size),
            num_warps=1,
        )
        return
    shape = (len(before_NX), heads, size)
    grad = part.reshape(shape)
    found = _rms_backward(grad, before_NX.view(shape), norm, scale.view(shape[:2]))
    part.copy_(found.reshape(part.shape).to(part.dtype))


# Elementwise parts -------------------------------------------------------------------------------


def rotate_(
    x_NW: torch.Tensor,
    heads: int,
    cos_ND: torch.Tensor,
    sin_ND: torch.Tensor,
    *,
    back: bool = False,
) -> None:
    """Rotate the first `heads` heads of each position in place (RoPE), by the negative angle if `back`."""
    rows, size = cos_ND.shape
    if by_kernel(x_NW):
        half = _power_of_two(size // 2)
        at_once = _power_of_two(max(1, 1024 // half), most=_power_of_two(heads))
        _kernels(x_NW).rotate_kernel[(rows, _blocks(heads, at_once))](
            x_NW,
            cos_ND,
            sin_ND,
            heads,
            x_NW.stride(0),
            SIZE=size,
            HALF=half,
            HEADS=at_once,
            BACK=back,
            num_warps=4,
        )
        return
    part = x_NW[:, : heads * size].unflatten(1, (heads, size))
    low, high = part.float().chunk(2, dim=-1)
    cos_low, cos_high = cos_ND.float().unsqueeze(1).chunk(2, dim=-1)
    sin_low, sin_high = sin_ND.float().unsqueeze(1).chunk(2, dim=-1)
    if back:
        new = (low * cos_low + high * sin_high, high * cos_high - low * sin_low)
    else:
        new = (low * cos_low - high * sin_low, high * cos_high + low * sin_high)
    part.copy_(torch.cat(new, dim=-1).to(x_NW.dtype))


class Activation(Enum):
    """What a gate goes through: its own product with the sigmoid of something."""

    silu = "silu"
    gelu_tanh = "gelu_tanh"

    @classmethod
    def named(cls, name: str) -> "Activation | None":
        """Return that of a model's configuration, by transformers' names; None for one that is not here."""
        return {"silu": cls.silu, "swish": cls.silu, "gelu_pytorch_tanh": cls.gelu_tanh}.get(name)


def gated(gate_up_NF: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return activation(gate) * up of rows that hold gate and up side by side."""
    rows, width = len(gate_up_NF), gate_up_NF.shape[1] // 2
    if by_kernel(gate_up_NF):
        out = gate_up_NF.new_empty(rows, width)
        block = _power_of_two(width, most=1024)
        _kernels(gate_up_NF).gated_kernel[(rows, _blocks(width, block))](
            gate_up_NF, out, width, GELU=activation is Activation.gelu_tanh, BLOCK=block
        )
        return out
    gate, up = gate_up_NF.chunk(2, dim=1)
    return _activated(gate, activation) * up


def _activated(gate: torch.Tensor, activation: Activation) -> torch.Tensor:
    match activation:
        case Activation.silu:
            return F.silu(gate)
        case Activation.gelu_tanh:
            return F.gelu(gate, approximate="tanh")
        case _ as unreachable:
            assert_never(unreachable)


def gated_backward_(
    gate_up_NF: torch.Tensor, grad_NF: torch.Tensor, activation: Activation
) -> None:
    """Put the gradients of gate and up where they are."""
    rows, width = grad_NF.shape
    if by_kernel(gate_up_NF):
        block = _power_of_two(width, most=1024)
        _kernels(gate_up_NF).gated_backward_kernel[(rows, _blocks(width, block))](
            gate_up_NF, grad_NF, width, GELU=activation is Activation.gelu_tanh, BLOCK=block
        )
        return
    gate, up = gate_up_NF.float().chunk(2, dim=1)
    with torch.enable_grad():
        leaf = gate.detach().requires_grad_()
        active = _activated(leaf, activation)
    grad = grad_NF.float()
    (grad_gate,) = torch.autograd.grad(active, leaf, grad * up)
    grad_up = grad * active.detach()
    gate_up_NF.copy_(torch.cat([grad_gate, grad_up], dim=1).to(gate_up_NF.dtype))


# Frozen weights ----------------------------------------------------------------------------------


def decode_into(layer: Any, out_OI: torch.Tensor) -> None:
    """Write the weight that a frozen layer stores into contiguous `out_OI`."""
    storage = layer.storage if isinstance(layer, FrozenLinear) else None
    if not (isinstance(storage, Blockwise) and storage.bits == 4 and by_kernel(out_OI)):
        out_OI.copy_(dense_weight(layer, out_OI.dtype))
        return
    packed, quant = layer.weight, storage.quant
    half, block = packed.numel(), 1024
    has_offset = storage.constants_per_block == 2
    _kernels(packed).decode_kernel[(_blocks(half, block),)](
        packed, table(storage.book, packed.device), *_stored(layer, "scale"),
        dynamic_table(packed.device), *_stored(layer, "offset" if has_offset else "scale"), out_OI,
        out_OI.numel(), half, quant.block_size, DOUBLE_QUANT_BLOCK,
        NESTED=quant.double_quant, HAS_OFFSET=has_offset, BLOCK=block,
    )  # fmt: skip


def _stored(layer: FrozenLinear, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what a kernel reads of a layer's constants: what is stored, nested scale, nested mean."""
    kept = layer.tensors
    if name in kept:
        return kept[name], kept[name], kept[name]
    return kept[f"{name}_codes"], kept[f"{name}_absmax"], kept[f"{name}_mean"]


# Adapters ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Whose the rows of a pass are: the seat of each tile, and the tiles of each seat."""

    count: int
    """Seats that there are; where it is one, all rows are its own."""
    seat_of_tile: torch.Tensor
    first_tile_S: torch.Tensor
    end_tile_S: torch.Tensor

    def of_positions(self) -> torch.Tensor:
        """Return the seat of each position, int64 [N]."""
        return self.seat_of_tile.long().repeat_interleave(TILE)


@dataclass(frozen=True, slots=True, eq=False)
class SeatProducts(Products):
    """Products of the rows of all seats, each with its own seat's weight."""

    rows: Rows

    def product(
        self, x_NI: torch.Tensor, w_SOI: torch.Tensor, out_NO: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        if out_NO is None:
            out_NO = x_NI.new_empty(len(x_NI), w_SOI.shape[1])
        add_grouped_(out_NO, x_NI, w_SOI, self.rows, adds=False)
        return out_NO

    def add_product_(self, y_NO: torch.Tensor, x_NI: torch.Tensor, w_SOI: torch.Tensor, /) -> None:
        add_grouped_(y_NO, x_NI, w_SOI, self.rows)

    def add_outer_(
        self, target_SLM: torch.Tensor, left_NL: torch.Tensor, right_NM: torch.Tensor, /
    ) -> None:
        """Add left^T right over each seat's positions to its target, in float32."""
        if by_kernel(left_NL):
            if self.rows.count == 1 and left_NL.is_cuda:
                target_SLM[0].add_(torch.mm(left_NL.mT, right_NM, out_dtype=torch.float32))
                return
            if self.rows.count == 1 and left_NL.is_meta:  # whose `mm` knows no `out_dtype`
                target_SLM[0].add_(torch.empty_like(target_SLM[0]))
                return
            lefts, rights = left_NL.shape[1], right_NM.shape[1]
            left_block = _power_of_two(lefts, least=16, most=64 if rights > lefts else 128)
            right_block = _power_of_two(rights, least=16, most=128 if rights > lefts else 64)
            grid = (_blocks(lefts, left_block) * _blocks(rights, right_block), self.rows.count)
            _kernels(left_NL).grouped_outer_kernel[grid](
                left_NL,
                right_NM,
                target_SLM,
                self.rows.first_tile_S,
                self.rows.end_tile_S,
                lefts,
                rights,
                left_NL.stride(0),
                right_NM.stride(0),
                target_SLM.stride(0),
                target_SLM.stride(1),
                TILE=TILE,
                ROWS=64,
                LEFT=left_block,
                RIGHT=right_block,
                num_warps=4,
                num_stages=3,
            )
            return
        if self.rows.count == 1:
            target_SLM[0].add_(left_NL.float().mT @ right_NM.float())
            return
        seat_N = self.rows.of_positions()
        for seat in range(self.rows.count):
            own = seat_N == seat
            target_SLM[seat].add_(left_NL[own].float().mT @ right_NM[own].float())


def add_grouped_(
    out_NO: torch.Tensor, x_NI: torch.Tensor, w_SOI: torch.Tensor, rows: Rows, *, adds: bool = True
) -> None:
    """Set `out_NO` to x W^T with the weight of each position's seat, or add it."""
    if rows.count == 1:
        if adds:
            out_NO.addmm_(x_NI, w_SOI[0].mT)
        else:
            out_NO.copy_(x_NI @ w_SOI[0].mT)
        return
    outputs, inputs = w_SOI.shape[1:]
    if by_kernel(x_NI):
        out_block = _power_of_two(outputs, least=16, most=128)
        in_block = _power_of_two(inputs, least=16, most=64)
        grid = (len(rows.seat_of_tile), _blocks(outputs, out_block))
        _kernels(x_NI).grouped_product_kernel[grid](
            x_NI,
            w_SOI,
            out_NO,
            rows.seat_of_tile,
            outputs,
            inputs,
            x_NI.stride(0),
            out_NO.stride(0),
            *w_SOI.stride(),
            ADDS=adds,
            ROWS=TILE,
            OUT=out_block,
            IN=in_block,
            num_warps=4,
            num_stages=3,
        )
        return
    tiles = x_NI.unflatten(0, (-1, TILE))
    found = torch.bmm(tiles, w_SOI[rows.seat_of_tile.long()].mT).flatten(0, 1)
    out_NO.add_(found) if adds else out_NO.copy_(found)


@dataclass(frozen=True, slots=True, eq=False)
class Dropout:
    """What the masks of a pass go by: each seat's key and rate, each position's place."""

    places_N: torch.Tensor
    low_S: torch.Tensor
    high_S: torch.Tensor
    threshold_S: torch.Tensor


def dropped(
    x_NI: torch.Tensor,
    layer: int,
    dropout: Dropout,
    rows: Rows,
    out_NI: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return x where each seat's mask of a layer keeps it; added to `out_NI`, if it is given."""
    salt_S = layer_salt(dropout.low_S, layer)
    if by_kernel(x_NI):
        out = torch.empty_like(x_NI) if out_NI is None else out_NI
        width = x_NI.shape[1]
        block = _power_of_two(width, most=1024)
        _kernels(x_NI).dropout_kernel[(len(x_NI), _blocks(width, block))](
            x_NI,
            out,
            dropout.places_N,
            rows.seat_of_tile,
            salt_S,
            dropout.high_S,
            dropout.threshold_S,
            width,
            ADDS=out_NI is not None,
            TILE=TILE,
            BLOCK=block,
        )
        return out
    seat_N = rows.of_positions()
    kept = x_NI * keep_mask_of_words(
        salt_S[seat_N],
        dropout.high_S[seat_N],
        dropout.places_N,
        x_NI.shape[1],
        dropout.threshold_S[seat_N],
    )
    return kept if out_NI is None else out_NI.add_(kept)


# Head --------------------------------------------------------------------------------------------


def token_loss_(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, weight_N: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of each row in float32; its gradient times the weight takes the logits'
    place."""
    if by_kernel(logits_NV):
        rows, width = logits_NV.shape
        loss_N = torch.empty(rows, dtype=torch.float32, device=logits_NV.device)
        _kernels(logits_NV).token_loss_kernel[(rows,)](
            logits_NV,
            targets_N,
            weight_N,
            loss_N,
            width,
            logits_NV.stride(0),
            BLOCK=_power_of_two(width, most=4096),
            num_warps=8,
        )
        return loss_N
    wide = logits_NV.float()
    targets_N = targets_N.long()
    loss_N = F.cross_entropy(wide, targets_N, reduction="none")
    grad = torch.softmax(wide, dim=1)
    grad[torch.arange(len(grad)), targets_N] -= 1
    logits_NV.copy_((grad * weight_N.unsqueeze(1)).to(logits_NV.dtype))
    return loss_N


# Optimizer ---------------------------------------------------------------------------------------

SETTINGS = 12
"""Columns of what AdamW is told of a seat: rates of A and B, both betas, one less each,
epsilon, decay, both bias corrections, scaling, clipping factor."""


def adamw_(
    parameters_SP: torch.Tensor,
    gradients_SP: torch.Tensor,
    means_SP: torch.Tensor,
    squares_SP: torch.Tensor,
    computed_SP: torch.Tensor,
    settings_SX: torch.Tensor,
    moves_S: torch.Tensor,
    num_a: int,
) -> None:
    """Move every seat whose `moves_S` is above 0, and clear the gradients of those where it is not below.

    Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as torch's AdamW computes it.
    """
    seats, size = parameters_SP.shape
    if by_kernel(parameters_SP):
        block = 1024
        _kernels(parameters_SP).adamw_kernel[(_blocks(size, block), seats)](
            parameters_SP, gradients_SP, means_SP, squares_SP, computed_SP, settings_SX, moves_S,
            size, num_a, SETTINGS=SETTINGS, BLOCK=block,
        )  # fmt: skip
        return
    columns = settings_SX.unsqueeze(2).unbind(1)
    rate_a, rate_b, beta1, beta2, new1, new2, epsilon, decay = columns[:8]
    correction1, correction2, scale, factor = columns[8:]
    is_b = torch.arange(size, device=parameters_SP.device) >= num_a
    moves = (moves_S > 0).unsqueeze(1)
    one = torch.ones_like(scale)
    gradient = gradients_SP * torch.where(is_b, scale, one) * factor
    mean = beta1 * means_SP + new1 * gradient
    square = beta2 * squares_SP + new2 * gradient * gradient
    rate = torch.where(is_b, rate_b, rate_a)
    denominator = square.sqrt() / correction2.sqrt() + epsilon
    moved = parameters_SP * (1 - rate * decay) - rate / correction1 * mean / denominator
    for old, new in ((means_SP, mean), (squares_SP, square), (parameters_SP, moved)):
        old.copy_(torch.where(moves, new, old))
    computed = (parameters_SP * torch.where(is_b, scale, one)).to(computed_SP.dtype)
    computed_SP.copy_(torch.where(moves, computed, computed_SP))
    gradients_SP.masked_fill_((moves_S >= 0).unsqueeze(1), 0.0)
