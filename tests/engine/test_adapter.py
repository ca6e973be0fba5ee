"""One adapter as a flat tensor: where each matrix lies in it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.targets import AdapterShape
from harness.engine.adapter import Adapter, ParameterLayout, is_power_of_two

SMALL = st.integers(1, 4)
SHAPES = st.dictionaries(
    st.integers(0, 9),
    st.builds(AdapterShape, SMALL, SMALL, SMALL, SMALL, SMALL, st.booleans()),
    max_size=4,
)
WHOLES = st.dictionaries(
    st.sampled_from(["embed_tokens", "lm_head"]), st.tuples(SMALL, SMALL), max_size=2
)


@settings(max_examples=30)
@given(SHAPES, WHOLES, SMALL)
def test_whole_matrices_every_a_every_b_and_magnitudes_follow_one_another(
    shapes: dict[int, AdapterShape], wholes: dict[str, tuple[int, int]], adapters: int
) -> None:
    layout = ParameterLayout(shapes, wholes)
    flat_KP = torch.arange(adapters * layout.size).view(adapters, -1)
    parts = [layout.whole(flat_KP, name) for name in wholes]
    for name, part in zip(wholes, parts, strict=True):
        assert part.shape == (adapters, *wholes[name])
    for layer, (rank, inputs, _, experts, *_) in shapes.items():
        parts.append(layout.a(flat_KP, layer))
        assert parts[-1].shape == (adapters, experts * rank, inputs)
    assert layout.num_a == sum(part[0].numel() for part in parts)
    for layer, (rank, _, outputs, experts, *_) in shapes.items():
        parts.append(layout.b(flat_KP, layer))
        assert parts[-1].shape == (adapters, outputs, rank * experts)
    for layer, shape in shapes.items():
        if shape.has_magnitudes:
            parts.append(layout.magnitudes(flat_KP, layer))
            assert parts[-1].shape == (adapters, shape.outputs)
    in_turn = [part.reshape(adapters, -1) for part in parts]
    assert torch.equal(torch.cat(in_turn, dim=1) if in_turn else flat_KP, flat_KP)
    assert layout.layers == list(shapes)
    assert layout.rank == max((shape.rank for shape in shapes.values()), default=0)
    plain = [shape.pooled == 1 and not shape.has_magnitudes for shape in shapes.values()]
    assert layout.is_plain == all(plain)


def test_a_matrix_that_is_not_trained_has_no_place() -> None:
    with pytest.raises(KeyError, match="lm_head"):
        ParameterLayout({}, {"embed_tokens": (2, 3)}).whole(torch.zeros(1, 6), "lm_head")


def test_an_adapter_and_its_gradient_have_four_bytes_a_parameter() -> None:
    layout = ParameterLayout({3: AdapterShape(2, 4, 5)}, {"lm_head": (3, 2)})
    adapter = Adapter(
        name="run0",
        layout=layout,
        flat_P=torch.arange(24.0),
        parameters={},
        scalings={3: 1.5},
        dropout=0.0,
    )
    assert adapter.num_parameters == 6 + 2 * (4 + 5)
    assert adapter.num_bytes == adapter.gradient_bytes == 4 * 24
    assert adapter.scaling == 1.5
    assert adapter.exact_layers == frozenset()
    firsts, seconds = adapter.halves(adapter.flat_P)
    assert (firsts.tolist(), seconds.tolist()) == ([*range(14)], [*range(14, 24)])
    views = adapter.of_parameters(adapter.flat_P)
    assert [tuple(view.shape) for view in views] == [(3, 2), (2, 4), (5, 2)]
    assert torch.equal(torch.cat([view.flatten() for view in views]), adapter.flat_P)


@pytest.mark.parametrize("value", [2.0, 1.0, 0.25, 2.0**-20])
def test_powers_of_two_round_no_product(value: float) -> None:
    assert is_power_of_two(value)
    assert not is_power_of_two(1.5 * value)
