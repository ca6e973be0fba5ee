"""Scaled dot-product attention on the meta device, with the tensors that the kernel of the device keeps.

Left to itself, torch takes its plain path on meta, which keeps the matrix of scores; on a CPU and on a GPU
a fused kernel runs wherever it can. Shape suffixes: B rows, H heads, T positions, D head dimension.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache, partial
from typing import Any, assert_never

import torch
import torch.nn.functional as F


class Kernel(Enum):
    """Who computes the attention."""

    cpu_flash = "cpu_flash"
    cuda_flash = "cuda_flash"
    cuda_efficient = "cuda_efficient"
    plain = "plain"
    """Products and a softmax, each an operation of its own: the scores are kept."""


@contextmanager
def planned_attention(device: str) -> Iterator[None]:
    """Within this context scaled_dot_product_attention keeps what it keeps on `device`, "cpu" or "cuda".

    The function is replaced by name: a TorchFunctionMode is off while blocks are recomputed in backward.
    """
    real = F.scaled_dot_product_attention
    setattr(F, real.__name__, partial(_attend, real, _on_cpu if device == "cpu" else _on_cuda))
    try:
        yield
    finally:
        setattr(F, real.__name__, real)


def _attend(
    real: Callable[..., torch.Tensor],
    kernel_for: Callable[[torch.dtype, int, bool, bool], Kernel],
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    head = query_BHTD.shape[-1]
    kernel = kernel_for(query_BHTD.dtype, head, attn_mask is not None, enable_gqa)
    if kernel is Kernel.plain:
        return real(
            query_BHTD,
            key_BHTD,
            value_BHTD,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    mask = None if attn_mask is None else _additive(attn_mask, query_BHTD, kernel)
    return _Fused.apply(query_BHTD, key_BHTD, value_BHTD, mask, kernel)  # pyright: ignore[reportReturnType]


@lru_cache
def _on_cpu(dtype: torch.dtype, head: int, has_mask: bool, grouped: bool) -> Kernel:
    """Ask torch itself, with two positions."""
    heads = 2 if grouped else 1
    query = torch.zeros(1, heads, 2, head, dtype=dtype)
    key = torch.zeros(1, 1, 2, head, dtype=dtype)
    mask = torch.zeros(1, 1, 2, 2, dtype=dtype) if has_mask else None
    choice = torch._fused_sdp_choice(
        query, key, key, mask, 0.0, not has_mask, scale=None, enable_gqa=grouped
    )
    fused = choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value
    return Kernel.cpu_flash if fused else Kernel.plain


@lru_cache
def _on_cuda(dtype: torch.dtype, head: int, has_mask: bool, grouped: bool) -> Kernel:
    """Return what torch's own order of preference comes to (aten/native/transformers/cuda/sdp_utils.cpp).

    Flash takes 16-bit types without a mask and heads up to 256; the memory-efficient kernel takes masks and
    float32, but no grouped heads, and wants rows of 16 bytes. cuDNN's kernel, which torch prefers on some
    GPUs, keeps what flash does.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if half and not has_mask and head <= 256:
        return Kernel.cuda_flash
    if not grouped and head * dtype.itemsize % 16 == 0:
        return Kernel.cuda_efficient
    return Kernel.plain


def _additive(mask: torch.Tensor, query_BHTD: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """Return the mask as the kernels take it: of the query's type, for the efficient one in rows of 16."""
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query_BHTD.dtype).masked_fill_(mask.logical_not(), 0)
    length = mask.shape[-1]
    if kernel is Kernel.cuda_efficient and length % 16:
        mask = F.pad(mask, (0, 16 - length % 16))[..., :length]
    return mask


def _rows_first(like_BHTD: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor of the same shape whose memory is in the order B, T, H, D."""
    rows, heads, length, head = like_BHTD.shape
    return like_BHTD.new_empty(rows, length, heads, head).transpose(1, 2)


class _Fused(torch.autograd.Function):
    """A fused kernel: keeps query, key, value, mask, its output and the logarithms of the sums."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTD: torch.Tensor,
        key_BHTD: torch.Tensor,
        value_BHTD: torch.Tensor,
        mask: torch.Tensor | None,
        kernel: Kernel,
    ) -> torch.Tensor:
        efficient = kernel is Kernel.cuda_efficient
        out_BHTD = _rows_first(query_BHTD) if efficient else torch.empty_like(query_BHTD)
        sums = _logarithms(query_BHTD, kernel)
        ctx.kernel = kernel
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD, mask, out_BHTD, *sums)
        return out_BHTD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_BHTD, key_BHTD, value_BHTD, *_ = ctx.saved_tensors
        work = _backward_work(query_BHTD, key_BHTD, ctx.kernel)
        empty = torch.empty_like if ctx.kernel is Kernel.cuda_flash else _rows_first
        grads = [empty(tensor) for tensor in (query_BHTD, key_BHTD, value_BHTD)]
        del work
        return *grads, None, None


def _logarithms(query_BHTD: torch.Tensor, kernel: Kernel) -> list[torch.Tensor]:
    """Return the logarithms of the softmax's sums in float32, on a GPU with the random state."""
    rows, heads, length, _ = query_BHTD.shape
    match kernel:
        case Kernel.cpu_flash | Kernel.cuda_flash:
            padded = length
        case Kernel.cuda_efficient:
            padded = -(-length // 32) * 32
        case Kernel.plain:
            raise AssertionError(kernel)
        case _ as unreachable:
            assert_never(unreachable)
    sums = [query_BHTD.new_empty(rows, heads, padded, dtype=torch.float32)]
    if kernel is not Kernel.cpu_flash:
        sums += [
            query_BHTD.new_empty(2, dtype=torch.int64),
            query_BHTD.new_empty((), dtype=torch.int64),
        ]
    return sums


def _backward_work(
    query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, kernel: Kernel
) -> list[torch.Tensor]:
    """Return what flash attention's backward allocates besides the gradients.

    FlashAttention-2 (mha_bwd in flash_api.cpp) sums the query's gradient in float32 over padded rows, and
    those of grouped keys and values for every head.
    """
    if kernel is not Kernel.cuda_flash:
        return []
    rows, heads, length, head = query_BHTD.shape
    padded = -(-length // 128) * 128
    work = [
        query_BHTD.new_empty(rows, heads, padded, dtype=torch.float32),
        query_BHTD.new_empty(rows, padded, heads, -(-head // 32) * 32, dtype=torch.float32),
    ]
    if key_BHTD.shape[1] != heads:
        work += [key_BHTD.new_empty(rows, length, heads, head) for _ in range(2)]
    return work
