"""Weights packed as Q4_K, Q5_K and Q6_K: ggml's super-blocks of 256, which the package gguf only reads.

The searches are those of ggml's `quantize_row_q4_K_ref`, `_q5_K_ref` and `_q6_K_ref`, without an importance
matrix, and the layouts its `block_q4_K`, `block_q5_K` and `block_q6_K` (src/ggml-quants.c, ggml-common.h).

Shape suffixes: N super-blocks, G groups of a super-block (8 of 32 or 16 of 16), L weights of a group.
"""

from collections.abc import Callable
from enum import Enum

import numpy as np
import torch

SUPER_BLOCK = 256
_AFFINE_GROUP, _SYMMETRIC_GROUP = 32, 16
_TOP_SCALE = 63
"""Scales and minima of groups are whole numbers of 6 bits."""
_ZERO = 1e-15
"""ggml's GROUP_MAX_EPS: what is smaller everywhere is all zeros."""
_CHUNK = 1 << 14
"""Super-blocks packed at once: 16 MiB of weights."""


class KType(Enum):
    """A type of GGUF's K family that can be written."""

    Q4_K = "Q4_K"
    """4 bits, a scale and a minimum for each 32: 4.5 bits a weight."""
    Q5_K = "Q5_K"
    """5 bits, the same: 5.5 bits a weight."""
    Q6_K = "Q6_K"
    """6 bits, a scale for each 16: 6.5625 bits a weight."""


def packed(weights: torch.Tensor, kind: KType) -> np.ndarray:
    """Return the bytes of a matrix, row by row; its rows are multiples of 256."""
    assert weights.shape[-1] % SUPER_BLOCK == 0, weights.shape
    pack = _PACKS[kind]
    blocks = weights.detach().float().reshape(-1, SUPER_BLOCK)
    parts = [pack(blocks[start : start + _CHUNK]) for start in range(0, len(blocks), _CHUNK)]
    return torch.cat(parts).cpu().numpy().reshape(*weights.shape[:-1], -1)


# Q4_K and Q5_K: q x scale - minimum --------------------------------------------------------------


def _q4_k(weights: torch.Tensor) -> torch.Tensor:
    head, codes = _affine(weights, top=15, first=-1.0, tries=20)
    return torch.cat([head, _low_nibbles(codes)], dim=1)


def _q5_k(weights: torch.Tensor) -> torch.Tensor:
    head, codes = _affine(weights, top=31, first=-0.5, tries=15)
    fifth_NGL = (codes >> 4).view(-1, 8, _AFFINE_GROUP)  # bit g of a byte is group g's
    bits = (fifth_NGL << torch.arange(8, device=codes.device).view(8, 1)).sum(dim=1)
    return torch.cat([head, bits.to(torch.uint8), _low_nibbles(codes & 15)], dim=1)


def _low_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Return 128 bytes of each super-block: of 64 weights in turn, the first 32 low and the others high."""
    halves = codes.view(-1, 4, 2, _AFFINE_GROUP)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1).to(torch.uint8)


def _affine(
    weights: torch.Tensor, *, top: int, first: float, tries: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return d, dmin and the twelve bytes of scales and minima; and the codes [N, 256] up to `top`."""
    x_NGL = weights.view(-1, 8, _AFFINE_GROUP)
    scales_NG, minima_NG = _fitted(x_NGL, top, first, tries)
    d_N1, whole_scales = _whole(scales_NG)
    dmin_N1, whole_minima = _whole(minima_NG)
    step = (d_N1.float() * whole_scales).unsqueeze(2)
    below = (dmin_N1.float() * whole_minima).unsqueeze(2)
    # Where the step is 0 every code means the same, the minimum.
    codes = torch.round((x_NGL + below) / torch.where(step == 0, 1.0, step)).clamp(0, top)
    head = torch.cat([_bytes(d_N1), _bytes(dmin_N1), _six_bits(whole_scales, whole_minima)], dim=1)
    return head, codes.to(torch.int32).view(len(weights), -1)


def _fitted(
    x_NGL: torch.Tensor, top: int, first: float, tries: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and minimum (to subtract, not below 0) of each group: ggml's make_qkx2_quants.

    Tries divisions of the range, from the best minimum so far, into about `top` steps; for the codes of each,
    scale and minimum are those of the least squares, in which a weight counts by its size.
    """
    x = x_NGL
    importance = x.square().mean(dim=2, keepdim=True).sqrt() + x.abs()
    low, high = x.amin(dim=2, keepdim=True).clamp(max=0), x.amax(dim=2, keepdim=True)
    flat = high == low
    sum_w, sum_x = importance.sum(2, keepdim=True), (importance * x).sum(2, keepdim=True)

    def error(codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
        return (importance * (scale * codes + minimum - x).square()).sum(2, keepdim=True)

    def codes_of(steps: float, minimum: torch.Tensor) -> torch.Tensor:
        return torch.round(steps / torch.where(flat, 1.0, high - minimum) * (x - minimum)).clamp_(
            0, top
        )

    best_scale, best_minimum = (high - low) / top, low
    best = error(codes_of(top, low), best_scale, low)
    for number in range(tries + 1):
        codes = codes_of(top + first + 0.1 * number, best_minimum)
        weighted = importance * codes
        sum_q, sum_qq = weighted.sum(2, keepdim=True), (weighted * codes).sum(2, keepdim=True)
        sum_xq = (weighted * x).sum(2, keepdim=True)
        determinant = sum_w * sum_qq - sum_q.square()
        solvable = determinant > 0
        divisor = torch.where(solvable, determinant, 1.0)
        scale = (sum_w * sum_xq - sum_x * sum_q) / divisor
        minimum = (sum_qq * sum_x - sum_q * sum_xq) / divisor
        above = minimum > 0
        scale = torch.where(above, sum_xq / torch.where(sum_qq == 0, 1.0, sum_qq), scale)
        minimum = minimum.clamp(max=0)
        own = error(codes, scale, minimum)
        better = solvable & (own < best)
        best = torch.where(better, own, best)
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, minimum, best_minimum)
    scale = torch.where(flat, 0.0, best_scale)
    return scale.squeeze(2), -best_minimum.squeeze(2)


def _whole(values_NG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a unit in float16 [N, 1], and the values as whole numbers of it from 0 to 63."""
    largest = values_NG.amax(dim=1, keepdim=True).clamp(min=0).abs()  # of -0.0, too
    inverse = torch.where(largest > 0, _TOP_SCALE / largest, 0.0)
    whole = torch.round(inverse * values_NG).clamp(max=_TOP_SCALE).to(torch.int32)
    return (largest / _TOP_SCALE).half(), whole


def _six_bits(scales_NG: torch.Tensor, minima_NG: torch.Tensor) -> torch.Tensor:
    """Return twelve bytes: four of each with their own six bits, then the low fours of the other four; the
    high twos of these lie above the first ones' six (`get_scale_min_k4`)."""
    s, m = scales_NG, minima_NG
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = m[:, :4] | m[:, 4:] >> 4 << 6
    third = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return torch.cat([first, second, third], dim=1).to(torch.uint8)


# Q6_K: q x scale ---------------------------------------------------------------------------------


def _q6_k(weights: torch.Tensor) -> torch.Tensor:
    x_NGL = weights.view(-1, 16, _SYMMETRIC_GROUP)
    scales_NG = _symmetric(x_NGL)
    largest = scales_NG.gather(1, scales_NG.abs().argmax(dim=1, keepdim=True))
    empty = largest.abs() < _ZERO
    inverse = torch.where(empty, 0.0, -128 / torch.where(empty, 1.0, largest))
    d_N1 = torch.where(empty, 0.0, 1 / torch.where(empty, 1.0, inverse)).half()
    whole = torch.round(inverse * scales_NG).clamp(max=127)
    step = (d_N1.float() * whole).unsqueeze(2)
    codes = torch.round(x_NGL / torch.where(step == 0, 1.0, step)).clamp(-32, 31) + 32
    codes = torch.where(empty.unsqueeze(2), 0.0, codes)
    quarters = codes.to(torch.int32).view(-1, 2, 4, 32)  # of each half
    low, high = quarters & 15, quarters >> 4
    pairs = low[:, :, :2] | low[:, :, 2:] << 4
    shifts = torch.tensor([0, 2, 4, 6], device=codes.device).view(4, 1)
    twos = (high << shifts).sum(dim=2)
    parts = (pairs.reshape(len(weights), -1), twos.reshape(len(weights), -1))
    return torch.cat(
        [*(part.to(torch.uint8) for part in parts), _bytes(whole.to(torch.int8)), _bytes(d_N1)],
        dim=1,
    )


def _symmetric(x_NGL: torch.Tensor) -> torch.Tensor:
    """Return the scale of each group: ggml's make_qx_quants with the squares as importances."""
    x, importance = x_NGL, x_NGL.square()
    largest = x.gather(2, x.abs().argmax(dim=2, keepdim=True))
    empty = largest.abs() < _ZERO
    largest = torch.where(empty, 1.0, largest)
    best_scale = best = torch.zeros_like(largest)
    for number in (0, *range(-9, 0), *range(1, 10)):
        codes = torch.round(-(32 + 0.1 * number) / largest * x).clamp_(-32, 31)
        weighted = importance * codes
        sum_xq = (weighted * x).sum(2, keepdim=True)
        sum_qq = (weighted * codes).sum(2, keepdim=True)
        own = torch.where(sum_qq > 0, sum_xq / torch.where(sum_qq > 0, sum_qq, 1.0), 0.0)
        better = (sum_qq > 0) & (sum_xq.square() > best * sum_qq)
        if number == 0:
            better = torch.ones_like(better)
        best_scale = torch.where(better, own, best_scale)
        best = torch.where(better, own * sum_xq, best)
    return torch.where(empty, 0.0, best_scale).squeeze(2)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)


_PACKS: dict[KType, Callable[[torch.Tensor], torch.Tensor]] = {
    KType.Q4_K: _q4_k,
    KType.Q5_K: _q5_k,
    KType.Q6_K: _q6_k,
}
