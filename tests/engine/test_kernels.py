"""Triton kernels against torch in float64, run by Triton's interpreter; and compiled for a GPU that is
not here.

Inputs are drawn anew, outputs begin as NaN: what a kernel does not write shows.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from harness.base.storage import storage_of
from harness.config.schema import QuantConfig, QuantFormat
from harness.engine.cuda import ops
from harness.engine.cuda.ops import TILE, Activation, Dropout, Norm, Rows
from harness.engine.dropout import dropout_key, keep_mask, key_words, threshold

pytestmark = pytest.mark.triton


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton==3.9.0")
    assert os.environ.get("TRITON_INTERPRET") == "1", "run by `make test-triton`"


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double().requires_grad_()


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("rounds", [True, False])
@pytest.mark.parametrize("width", [64, 96])
def test_norms(width: int, rounds: bool) -> None:
    x, residual, weight, grad = drawn(5, width), drawn(5, width), drawn(width), drawn(5, width)
    norm = Norm(weight, 1e-5, rounds)
    summed, out, scale = ops.rms_norm(x, residual, norm)
    wide = leaf(x + residual)
    expected = normed(wide, weight.double())
    assert_close(out.double(), expected)
    torch.testing.assert_close(summed, x + residual)
    (grad_x,) = torch.autograd.grad(expected, wide, grad.double())
    found = ops.rms_norm_backward(grad, summed, norm, scale, residual)
    assert_close(found.double(), grad_x + residual.double())
    torch.testing.assert_close(ops.rms_norm_again(summed, scale, norm), out)


def test_norms_of_heads() -> None:
    x, weight, grad = drawn(3, 7 * 8), drawn(8), drawn(3, 7 * 8)
    wide = leaf(x)
    heads = wide[:, 16:40].unflatten(1, (3, 8))
    expected = normed(heads, weight.double()).flatten(1)
    mine = x.clone()
    before, scale = ops.head_norm_(mine, 16, 3, Norm(weight, 1e-5))
    assert_close(mine[:, 16:40].double(), expected)
    assert torch.equal(mine[:, :16], x[:, :16])
    assert torch.equal(mine[:, 40:], x[:, 40:])
    (expected_grad,) = torch.autograd.grad(expected, wide, grad[:, 16:40].double())
    own = grad.clone()
    ops.head_norm_backward_(own, 16, 3, before, Norm(weight, 1e-5), scale)
    assert_close(own[:, 16:40].double(), expected_grad[:, 16:40])
    assert torch.equal(own[:, 40:], grad[:, 40:])


def test_rotations_and_back() -> None:
    x, angle = drawn(4, 5 * 16), drawn(4, 8)
    cos, sin = (torch.cat([f(angle)] * 2, dim=1) for f in (torch.cos, torch.sin))
    heads = x[:, :48].double().unflatten(1, (3, 16))
    low, high = heads.chunk(2, dim=-1)
    turned = heads * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]
    mine = x.clone()
    ops.rotate_(mine, 3, cos, sin)
    assert_close(mine[:, :48].double(), turned.flatten(1))
    assert torch.equal(mine[:, 48:], x[:, 48:])
    ops.rotate_(mine, 3, cos, sin, back=True)
    assert_close(mine, x)


@pytest.mark.parametrize("activation", Activation)
def test_gated_feed_forwards(activation: Activation) -> None:
    gate_up, grad = drawn(3, 2 * 100), drawn(3, 100)
    wide = leaf(gate_up)
    functions = {Activation.silu: F.silu, Activation.gelu_tanh: partial(F.gelu, approximate="tanh")}
    expected = functions[activation](wide[:, :100]) * wide[:, 100:]
    assert_close(ops.gated(gate_up, activation).double(), expected)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    ops.gated_backward_(gate_up, grad, activation)
    assert_close(gate_up.double(), expected_grad)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize(
    "quant_format", [QuantFormat.nf4, QuantFormat.fp4, QuantFormat.fp4_e3m0, QuantFormat.int4_asym]
)
@pytest.mark.parametrize("shape", [(32, 64), (33, 65)])
def test_decoding(shape: tuple[int, int], quant_format: QuantFormat, double_quant: bool) -> None:
    quant = QuantConfig(format=quant_format, double_quant=double_quant)
    layer = storage_of(quant).quantize(drawn(*shape) / 20, None, torch.device("cpu"))
    found = torch.full(shape, float("nan"))
    ops.decode_into(layer, found)
    expected = storage_of(quant).decode(storage_of(quant).tensors(layer), shape, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def seats(count: int) -> Rows:
    """Rows of three seats: two tiles, none, one."""
    owner = torch.tensor([0, 0, 2], dtype=torch.int32)
    first, end = torch.tensor([0, 0, 2]), torch.tensor([2, 0, 3])
    return Rows(count, owner, first.int(), end.int())


@pytest.mark.parametrize("adds", [False, True])
def test_grouped_products(adds: bool) -> None:
    rows, x, w = seats(3), drawn(3 * TILE, 40), drawn(3, 24, 40)
    whole = drawn(3 * TILE, 30)
    before, out = whole.clone(), whole[:, 3:27]
    if not adds:
        out.fill_(float("nan"))
    ops.add_grouped_(out, x, w, rows, adds=adds)
    own = w.double()[rows.of_positions()]
    expected = torch.einsum("ni,noi->no", x.double(), own)
    expected = expected + before[:, 3:27].double() if adds else expected
    assert_close(out.double(), expected)
    assert torch.equal(whole[:, 27:], before[:, 27:])


def test_grouped_outer_products() -> None:
    rows, left, right = seats(3), drawn(3 * TILE, 20), drawn(3 * TILE, 36)
    out = drawn(3, 20, 36)
    expected = out.double()
    for seat, (start, stop) in enumerate(((0, 2), (0, 0), (2, 3))):
        part = slice(start * TILE, stop * TILE)
        expected[seat] += left[part].double().mT @ right[part].double()
    ops.SeatProducts(rows).add_outer_(out, left, right)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_the_functions() -> None:
    rows, x = seats(3), drawn(3 * TILE, 50)
    keys, rates = [dropout_key(seed, 7) for seed in range(3)], [0.2, 0.0, 0.6]
    places = torch.randperm(3 * TILE).int()
    low, high = torch.tensor([key_words(key) for key in keys], dtype=torch.int32).unbind(1)
    limits = torch.tensor([threshold(rate) for rate in rates], dtype=torch.int32)
    found = ops.dropped(x, 11, Dropout(places, low.contiguous(), high.contiguous(), limits), rows)
    for seat, part in ((0, slice(0, 2 * TILE)), (2, slice(2 * TILE, None))):
        kept = keep_mask(keys[seat], 11, places[part], 50, rates[seat])
        assert torch.equal(found[part], x[part] * kept)


@pytest.mark.parametrize("width", [50, 5000])
def test_token_losses(width: int) -> None:
    logits, targets, weight = 3 * drawn(4, width), torch.randint(0, width, (4,)), torch.rand(4)
    wide = leaf(logits)
    expected = F.cross_entropy(wide, targets, reduction="none")
    (grad,) = torch.autograd.grad(expected, wide, weight.double())
    loss = ops.token_loss_(logits, targets.int(), weight)
    assert_close(loss.double(), expected.detach())
    assert_close(logits.double(), grad)


def test_adamw_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seats: one moves, one is not finite, one has not come to its step."""
    size, num_a = 300, 120
    parameters, gradients = drawn(3, size), drawn(3, size)
    means, squares = drawn(3, size), drawn(3, size).abs()
    settings = torch.rand(3, ops.SETTINGS)
    moves = torch.tensor([1.0, 0.0, -1.0])
    both = []
    for interpreted in (True, False):
        monkeypatch.setattr(ops, "by_kernel", lambda _, wanted=interpreted: wanted)
        state = [t.clone() for t in (parameters, gradients, means, squares, drawn(3, size))]
        state[4].zero_()
        one, two, three, four, five = state
        ops.adamw_(one, two, three, four, five, settings, moves, num_a)
        both.append(state)
    for ours, torchs in zip(*both, strict=True):
        assert_close(ours, torchs)
    assert not both[0][1][:2].any()
    assert torch.equal(both[0][1][2], gradients[2])
    assert torch.equal(both[0][0][1:], parameters[1:])


def test_every_kernel_compiles_for_a_gpu_of_today() -> None:
    """For compute capability 9.0, with double quantization and without; no GPU is needed for it."""
    script = Path(__file__).with_name("compiled_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == sorted(set(done.stdout.split()))
    assert len(done.stdout.split()) == 11
