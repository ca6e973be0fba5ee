"""The weight that a frozen base acts with, against each format written out in numpy's float64.

Nothing here reads the code under test but through a base that was frozen: its layers are applied to the
identity, which gives the decoded weight, and differentiated.
"""

from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import erf

from harness.base.build import freeze
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.config.storage import BLOCKWISE
from tests.random_models import UNEVEN

Matrix = NDArray[np.float64]

# QLoRA (Dettmers et al. 2023), appendix E.
NF4 = np.fromstring(
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
    "-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 "
    "0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 "
    "0.7229568362236023 1.0",
    sep=" ",
)
# bitsandbytes' own: two bits of exponent and one of mantissa, but 0.0625 where a subnormal would be 1.
FP4_POSITIVE = np.array([0.0, 0.0625, 2, 3, 4, 6, 8, 12]) / 12
FP4 = np.unique(np.concatenate([-FP4_POSITIVE, FP4_POSITIVE]))

AFFINE = {QuantFormat.int4_asym: 16, QuantFormat.int3_asym: 8, QuantFormat.int2_asym: 4}
"""Levels between the smallest and the largest weight of a block."""


@lru_cache
def af4(block_size: int) -> tuple[float, ...]:
    """AF4 by the recursion of Yoshida 2023 (arXiv 2306.06965): a cell's edge follows from the one before.

    The value nearest to 0 is sought by bisection, so that the last one is 1.
    """
    m = np.linspace(0, 12, 601)[1:]
    inside = erf(m / np.sqrt(2))
    largest = block_size * inside ** (block_size - 1) * np.exp(-(m**2) / 2)
    y = np.linspace(0, 1, 4097)
    below = erf(np.outer(y, m) / np.sqrt(2)) @ (largest / inside / largest.sum())
    share, place = CubicSpline(y, below), CubicSpline(below, y)

    def half(count: int) -> list[float]:
        low, high, values = 0.0, 1 / count, [0.0]
        for _ in range(60):
            edge, values = 0.0, [(low + high) / 2]
            while len(values) <= count and values[-1] < 1:
                edge = float(place(2 * share(values[-1]) - share(edge)))
                values.append(2 * edge - values[-1])
            too_far = values[-1] > 1 or len(values) <= count
            low, high = (low, values[0]) if too_far else (values[0], high)
        return [*values[:count], 1.0]

    return (*(-value for value in reversed(half(6))), 0.0, *half(7))


FORMATS = [
    QuantConfig(format=quant_format, double_quant=double, block_size=block)
    for quant_format in BLOCKWISE
    for double in (False, True)
    for block in (32, 64, 128, 256, 512, 1024, 2048, 4096)
]
FORMATS += [QuantConfig(format=QuantFormat.int8), QuantConfig(format=QuantFormat.none)]
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")


def name(quant: QuantConfig) -> str:
    return f"{quant.format.value}{'_dq' * quant.double_quant}-{quant.block_size}"


BETWEEN = 1e-6
"""How near to the middle between two levels float32 may take either; the largest level is 1."""


def nearest(values: Matrix, levels: Matrix, lean: int) -> Matrix:
    """Return the level nearest to each value; the lower or the upper one (-1, 1) in the middle of two."""
    order = np.sort(levels)
    return order[np.searchsorted((order[1:] + order[:-1]) / 2, values + lean * BETWEEN)]


def dynamic_map() -> Matrix:
    """The signed dynamic 8-bit type (8-bit optimizers, Dettmers et al. 2022): 7 decades, linear inside."""
    positive = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1)
        positive += list((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6))
    return np.array([*positive, *(-value for value in positive[2:])])


def doubly(constants: Matrix, lean: int) -> Matrix:
    """Return constants as 8 bits in blocks of 256 give them back: their mean is taken off first."""
    mean = constants.mean()
    parts = []
    for start in range(0, len(constants), 256):
        part = constants[start : start + 256] - mean
        largest = np.abs(part).max()
        if largest == 0:  # a single constant is its own mean
            parts.append(part + mean)
            continue
        parts.append(nearest(part / largest, dynamic_map(), lean) * largest + mean)
    return np.concatenate(parts)


def decoded(
    weight: Matrix, quant: QuantConfig, lean: int, lean_scale: int, lean_offset: int
) -> Matrix:
    """Round a weight [O, I] to a format and back."""
    if quant.format is QuantFormat.none:
        return weight
    if quant.format is QuantFormat.int8:
        scale = np.abs(weight).max(axis=1, keepdims=True) / 127
        return np.rint(weight / scale + lean * 127 * BETWEEN) * scale
    size = quant.block_size
    flat = weight.reshape(-1)
    blocks = [flat[start : start + size] for start in range(0, len(flat), size)]

    def kept(constants: Matrix, lean: int) -> Matrix:
        return doubly(constants, lean) if quant.double_quant else constants

    if quant.format in AFFINE:
        low = np.array([block.min() for block in blocks])
        span = np.array([block.max() for block in blocks]) - low
        levels = np.arange(AFFINE[quant.format]) / (AFFINE[quant.format] - 1)
        codes = [
            nearest((b - least) / s, levels, lean)
            for b, least, s in zip(blocks, low, span, strict=True)
        ]
        parts = zip(codes, kept(span, lean_scale), kept(low, lean_offset), strict=True)
        return np.concatenate([c * s + least for c, s, least in parts]).reshape(weight.shape)
    match quant.format:
        case QuantFormat.nf4:
            levels = NF4
        case QuantFormat.af4:
            levels = np.array(af4(quant.block_size))
        case QuantFormat.fp4:
            levels = FP4
        case QuantFormat.fp4_e2m1:
            levels = np.unique([s * v for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6) for s in (-1, 1)]) / 6
        case QuantFormat.fp4_e3m0:
            levels = np.unique([s * v for v in (0, *(2.0**-k for k in range(7))) for s in (-1, 1)])
        case _:  # symmetric, 15 levels
            levels = np.arange(-7, 8) / 7
    scale = np.array([np.abs(block).max() for block in blocks])
    codes = [nearest(block / s, levels, lean) for block, s in zip(blocks, scale, strict=True)]
    whole = np.concatenate([c * s for c, s in zip(codes, kept(scale, lean_scale), strict=True)])
    return whole.reshape(weight.shape)


def one_block_model() -> Any:
    """Return a random Llama of one block, in float32; the same one every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {**UNEVEN, "num_hidden_layers": 1, "vocab_size": 300}
    return LlamaForCausalLM(LlamaConfig(**shape))


def nearest_to(possible: list[torch.Tensor], acted: torch.Tensor) -> torch.Tensor:
    """Return of each weight what is nearest to `acted`: they differ where two levels are as near."""
    stacked = torch.stack(possible)
    return stacked.gather(0, (stacked - acted).abs().argmin(dim=0, keepdim=True))[0]


@pytest.fixture(scope="module")
def weights() -> dict[str, Matrix]:
    """The weights before they are frozen, by layer."""
    model = one_block_model()
    return {
        layer: model.get_submodule(f"model.layers.0.{layer}").weight.detach().numpy().astype(float)
        for layer in LAYERS
    }


@pytest.fixture(scope="module", params=FORMATS, ids=name)
def rounded(
    request: pytest.FixtureRequest, weights: dict[str, Matrix]
) -> tuple[QuantConfig, dict[str, list[torch.Tensor]]]:
    """A format, and what it may make of each layer's weight."""
    quant, leans = request.param, list(product((-1, 1), repeat=3))
    possible = {
        layer: [torch.from_numpy(decoded(weight, quant, *lean)) for lean in leans]
        for layer, weight in weights.items()
    }
    return quant, possible


@pytest.mark.parametrize("compute", FloatType)
def test_a_layer_acts_with_the_weight_that_its_format_describes(
    rounded: tuple[QuantConfig, dict[str, list[torch.Tensor]]], compute: FloatType
) -> None:
    """To a few float32 units in the last place of the largest weight; in bfloat16 it is rounded once."""
    quant, possible = rounded
    dtype = getattr(torch, compute.value)
    base = freeze(one_block_model(), replace(quant, compute_dtype=compute), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    unit, last_place = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    # Of 8-bit constants near their mean bitsandbytes sometimes misses the nearest level by one: 2e-5 of
    # the largest, where a level next to the largest is 1e-2 away.
    missed = 2e-5 if quant.double_quant else 0.0
    for layer, weights in possible.items():
        linear = base.model.get_submodule(f"model.layers.0.{layer}")
        outputs, inputs = weights[0].shape
        with torch.no_grad():
            acted = linear(torch.eye(inputs, dtype=dtype)).T.double()
        expected = nearest_to(weights, acted)
        largest = expected.abs().max()
        tolerance = unit / 2 * expected.abs() + (4 * last_place + missed) * largest
        assert ((acted - expected).abs() <= tolerance).all()

        x = torch.randn(3, inputs, generator=generator).to(dtype).requires_grad_()
        of_y = torch.randn(3, outputs, generator=generator).to(dtype)
        (gradient,) = torch.autograd.grad(linear(x), x, of_y)
        by_hand = of_y.double() @ expected
        bound = of_y.double().abs().sum(dim=1, keepdim=True) * largest
        assert (
            (gradient.double() - by_hand).abs() <= (unit + 4 * last_place + missed) * bound
        ).all()
