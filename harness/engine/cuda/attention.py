"""Attention over sequences that lie end to end: torch's flash kernel, or sequence by sequence elsewhere.

Queries, keys and values are views of one buffer, [N, (Q + 2 S) D]. Each position sees those before it
in its own sequence, at most `window` of them. Shape suffixes: N positions, Q query heads, S key heads,
D head, C sequences.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Where the sequences of a pass begin and end."""

    starts_C: torch.Tensor
    """int32 [C + 1]: the first position of each, and the end; empty ones follow the last."""
    longest: int
    """At least the length of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How attention is divided."""

    query: int
    key: int
    size: int
    scale: float
    window: int | None
    """Positions that each one sees, itself included; None: all before it."""

    @property
    def width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return (self.query + 2 * self.key) * self.size

    def split(self, qkv_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries [N, Q, D], keys and values [N, S, D], as views."""
        heads = qkv_NW.unflatten(1, (-1, self.size))
        return tuple(heads.split((self.query, self.key, self.key), dim=1))  # pyright: ignore[reportReturnType]


@dataclass(slots=True, eq=False)
class Attended:
    """What a backward pass needs of attention."""

    out_NQD: torch.Tensor
    kept: tuple[Any, ...]


def attend(qkv_NW: torch.Tensor, heads: Heads, sequences: Sequences) -> Attended:
    """Return the attention's output."""
    q, k, v = heads.split(qkv_NW)
    if not qkv_NW.is_cpu:
        out, logarithms, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            sequences.starts_C,
            sequences.starts_C,
            sequences.longest,
            sequences.longest,
            0.0,
            True,
            False,
            scale=heads.scale,
            **_window(heads),
        )
        return Attended(out, (logarithms, state, unused))
    out = torch.cat(
        [_attend_one(each[0], each[1], each[2], heads) for each in _each(sequences, q, k, v)]
        or [q.new_empty(0, *q.shape[1:])]
    )
    return Attended(out, ())


def attend_backward(
    grad_NQD: torch.Tensor,
    qkv_NW: torch.Tensor,
    heads: Heads,
    sequences: Sequences,
    attended: Attended,
) -> torch.Tensor:
    """Return the gradient of queries, keys and values side by side."""
    q, k, v = heads.split(qkv_NW)
    if not qkv_NW.is_cpu:
        work = _planned_work(q, heads, sequences) if qkv_NW.is_meta else []
        logarithms, state, unused = attended.kept
        grads = torch.ops.aten._flash_attention_backward(
            grad_NQD,
            q,
            k,
            v,
            attended.out_NQD,
            logarithms,
            sequences.starts_C,
            sequences.starts_C,
            sequences.longest,
            sequences.longest,
            0.0,
            True,
            state,
            unused,
            scale=heads.scale,
            **_window(heads),
        )
        del work
        return torch.cat([grad.flatten(1) for grad in grads], dim=1)
    parts = []
    with torch.enable_grad():
        for q1, k1, v1, grad in _each(sequences, q, k, v, grad_NQD):
            leaves = [x.detach().requires_grad_() for x in (q1, k1, v1)]
            out = _attend_one(leaves[0], leaves[1], leaves[2], heads)
            grads = torch.autograd.grad(out, leaves, grad)
            parts.append(torch.cat([each.flatten(1) for each in grads], dim=1))
    return torch.cat(parts)


def _planned_work(q_NQD: torch.Tensor, heads: Heads, sequences: Sequences) -> list[torch.Tensor]:
    """Return what flash attention's backward allocates besides the gradients, which only a GPU shows.

    FlashAttention-2 (mha_varlen_bwd in flash_api.cpp) sums the query's gradient in float32 over rows padded
    by 128 for each sequence, and those of grouped keys and values for every head.
    """
    padded = len(q_NQD) + 128 * (len(sequences.starts_C) - 1)
    size = -(-heads.size // 32) * 32
    work = [
        q_NQD.new_empty(heads.query, padded, dtype=torch.float32),
        q_NQD.new_empty(padded, heads.query, size, dtype=torch.float32),
    ]
    if heads.key != heads.query:
        work += [q_NQD.new_empty(q_NQD.shape) for _ in range(2)]
    return work


def _window(heads: Heads) -> dict[str, int]:
    return (
        {}
        if heads.window is None
        else {"window_size_left": heads.window - 1, "window_size_right": 0}
    )


def _each(sequences: Sequences, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Return the sequences' parts of some tensors, empty ones left out."""
    edges = sequences.starts_C.tolist()
    pairs = itertools.pairwise(edges)
    return [tuple(t[start:stop] for t in tensors) for start, stop in pairs if stop > start]


def _attend_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Return one sequence's output [T, Q, D]."""
    length = len(q)
    mask_TT = None
    if heads.window is not None and length > heads.window:
        mask_TT = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        mask_TT &= mask_TT.new_ones(length, length).triu(1 - heads.window)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        attn_mask=mask_TT,
        is_causal=mask_TT is None,
        scale=heads.scale,
        enable_gqa=heads.query != heads.key,
    )
    return out.squeeze(0).transpose(0, 1)
