"""Which kernel of attention is planned for: what torch itself chooses, and its published order on CUDA."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from harness.plan.attention import (
    Kernel,
    _additive,
    _backward_work,
    _on_cpu,
    _on_cuda,
    planned_attention,
)

HALF = (torch.bfloat16, torch.float16)


def saved_shapes(attend: Callable[[], torch.Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes that autograd keeps of a call, sorted."""
    shapes: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend()
    return sorted(shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
@pytest.mark.parametrize("grouped", [False, True], ids=["own keys", "grouped keys"])
def test_on_a_cpu_what_is_kept_is_what_the_real_call_keeps(
    dtype: torch.dtype, masked: bool, grouped: bool
) -> None:
    def attend(device: str) -> torch.Tensor:
        query = torch.zeros(2, 4, 24, 16, dtype=dtype, device=device, requires_grad=True)
        heads = 2 if grouped else 4
        key, value = (
            torch.zeros(2, heads, 24, 16, dtype=dtype, device=device, requires_grad=True)
            for _ in range(2)
        )
        mask = torch.zeros(2, 1, 24, 24, dtype=dtype, device=device) if masked else None
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=not masked, enable_gqa=grouped
        )

    real = saved_shapes(lambda: attend("cpu"))
    with planned_attention("cpu"):
        planned = saved_shapes(lambda: attend("meta"))
    scores = [shape for shape in real if shape[-2:] == (24, 24) and shape[1] == 4]
    assert bool(scores) is (_on_cpu(dtype, 16, masked, grouped) is Kernel.plain)
    size = lambda shapes: sum(torch.Size(shape).numel() for shape in shapes)  # noqa: E731
    assert size(planned) == size(real)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", HALF)
def test_on_cuda_half_precision_without_a_mask_flashes_up_to_heads_of_256(
    dtype: torch.dtype, grouped: bool
) -> None:
    for head in (8, 64, 256):
        assert _on_cuda(dtype, head, False, grouped) is Kernel.cuda_flash
    wide = Kernel.plain if grouped else Kernel.cuda_efficient
    assert _on_cuda(dtype, 264, False, grouped) is wide


def test_on_cuda_a_mask_or_float32_takes_the_efficient_kernel_where_rows_are_16_bytes() -> None:
    for dtype in HALF:
        assert _on_cuda(dtype, 64, True, False) is Kernel.cuda_efficient
        assert _on_cuda(dtype, 8, True, False) is Kernel.cuda_efficient  # 16 bytes
        assert _on_cuda(dtype, 4, True, False) is Kernel.plain  # 8 bytes
        assert _on_cuda(dtype, 12, True, False) is Kernel.plain  # 24 bytes
    for has_mask in (False, True):
        assert _on_cuda(torch.float32, 4, has_mask, False) is Kernel.cuda_efficient
        assert _on_cuda(torch.float32, 6, has_mask, False) is Kernel.plain


def test_on_cuda_grouped_keys_keep_the_scores_unless_they_flash() -> None:
    assert _on_cuda(torch.float32, 64, False, True) is Kernel.plain
    for dtype in HALF:
        assert _on_cuda(dtype, 64, True, True) is Kernel.plain


@pytest.mark.parametrize(
    ("dtype", "has_mask", "grouped", "sums"),
    [
        (torch.bfloat16, False, False, 40),  # flash: a logarithm a position
        (torch.bfloat16, False, True, 40),
        (torch.bfloat16, True, False, 64),  # efficient: in whole blocks of 32
        (torch.float32, False, False, 64),
        (torch.float32, True, False, 64),
        (torch.bfloat16, True, True, None),  # plain: the scores, and no logarithms
        (torch.float32, False, True, None),
    ],
)
def test_a_call_on_cuda_keeps_what_its_kernel_keeps(
    dtype: torch.dtype, has_mask: bool, grouped: bool, sums: int | None
) -> None:
    def attend() -> torch.Tensor:
        query = torch.zeros(1, 4, 40, 16, dtype=dtype, device="meta", requires_grad=True)
        key, value = (
            torch.zeros(
                1, 2 if grouped else 4, 40, 16, dtype=dtype, device="meta", requires_grad=True
            )
            for _ in range(2)
        )
        mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool, device="meta") if has_mask else None
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=not has_mask, enable_gqa=grouped
        )

    with planned_attention("cuda"):
        shapes = saved_shapes(attend)
    scores = [shape for shape in shapes if shape == (1, 4, 40, 40)]
    if sums is None:
        assert scores
        assert not any(len(shape) == 3 for shape in shapes if shape[:2] == (1, 4))
    else:
        assert not scores
        assert [shape for shape in shapes if len(shape) == 3] == [(1, 4, sums)]
        assert ((1, 1, 40, 40) in shapes) is has_mask


@pytest.mark.parametrize(("length", "row"), [(1, 16), (15, 16), (16, 16), (17, 32), (40, 48)])
@pytest.mark.parametrize("kind", [torch.bool, torch.bfloat16])
def test_the_efficient_kernel_takes_masks_in_rows_of_16_of_the_querys_type(
    length: int, row: int, kind: torch.dtype
) -> None:
    query = torch.empty(2, 4, length, 8, dtype=torch.bfloat16, device="meta")
    mask = torch.ones(2, 1, length, length, dtype=kind, device="meta")
    efficient = _additive(mask, query, Kernel.cuda_efficient)
    assert (efficient.shape, efficient.dtype) == (mask.shape, torch.bfloat16)
    assert efficient.untyped_storage().nbytes() == 2 * length * row * 2
    on_cpu = _additive(mask, query, Kernel.cpu_flash)
    assert on_cpu.untyped_storage().nbytes() == 2 * length * length * 2


def test_what_kernels_return_has_the_memory_order_that_they_write() -> None:
    """The efficient kernel rows of all heads, forward and backward; flash that of its query."""
    for kernel, order in (("efficient", (0, 2, 1, 3)), ("flash", (0, 1, 2, 3))):
        dtype = torch.float32 if kernel == "efficient" else torch.bfloat16
        query, key, value = (
            torch.empty(2, 3, 5, 8, dtype=dtype, device="meta", requires_grad=True)
            for _ in range(3)
        )
        with planned_attention("cuda"):
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        (gradient,) = torch.autograd.grad(out.sum(), query)
        for tensor in (out, gradient):
            assert tensor.shape == (2, 3, 5, 8)
            assert tensor.permute(order).is_contiguous(), kernel


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 128), (127, 128), (128, 128), (129, 256), (1000, 1024)]
)
@pytest.mark.parametrize("heads_of_keys", [4, 2])
def test_flash_attention_sums_over_rows_of_whole_tiles_in_backward(
    length: int, padded: int, heads_of_keys: int
) -> None:
    """mha_bwd: 128 rows a tile, heads of whole 32s in float32, and grouped keys once for every head."""
    query = torch.empty(3, 4, length, 40, dtype=torch.bfloat16, device="meta")
    key = torch.empty(3, heads_of_keys, length, 40, dtype=torch.bfloat16, device="meta")
    found = [(t.dtype, tuple(t.shape)) for t in _backward_work(query, key, Kernel.cuda_flash)]
    expected = [(torch.float32, (3, 4, padded)), (torch.float32, (3, padded, 4, 64))]
    if heads_of_keys == 2:
        expected += [(torch.bfloat16, (3, length, 4, 40))] * 2
    assert found == expected
    others = [kernel for kernel in Kernel if kernel is not Kernel.cuda_flash]
    assert [_backward_work(query, key, kernel) for kernel in others] == [[]] * len(others)
