"""How much of the blocks is packed and adapted, by hand, and who has to ask for the rest to be left out."""

import pytest

from harness.base.coverage import check_coverage, coverage, coverage_notes
from harness.base.targets import LinearSpec
from harness.config.compose import compose_run
from harness.errors import RequestError

LINEARS = [
    LinearSpec(name="model.layers.0.self_attn.q_proj", in_features=10, out_features=20),
    LinearSpec(name="model.layers.0.mlp.up_proj", in_features=10, out_features=70),
]
"""900 weights in layers: 200 of attention, 700 of the MLP."""
LEFT_OUT = "of the blocks' weights lie in no linear layer and are neither quantized nor adapted"
ALL, ATTENTION = "lora.target_modules=[all_linear]", "lora.target_modules=[q_proj]"


def notes(uncovered: dict[str, int], *overrides: str) -> list[str]:
    return coverage_notes(compose_run(list(overrides)), LINEARS, uncovered)


def test_shares_are_of_all_matrices_of_the_blocks() -> None:
    found = coverage(compose_run(["quant=nf4", ATTENTION]), LINEARS, {"experts": 100})
    assert (found.packed, found.adapted) == (0.9, 0.2)
    found = coverage(compose_run(["quant=nf4", ALL]), LINEARS, {})
    assert (found.packed, found.adapted) == (1.0, 1.0)
    found = coverage(compose_run(["quant=none", "lora=none"]), LINEARS, {"experts": 100})
    assert (found.packed, found.adapted) == (0.9, 1.0)  # full fine-tuning changes them, too


@pytest.mark.parametrize(
    ("overrides", "is_told"),
    [
        (["quant=nf4", ALL], True),
        (["quant=nf4", ATTENTION], True),  # the storage is to reach all
        (["quant=none", ALL], True),  # the adapter is
        (["quant=none", "lora.target_modules=[mlp]"], True),
        (["quant=none", ATTENTION], False),  # nobody said all
        (["quant=none", "lora.target_modules=[attention]"], False),
        (["quant=none", "lora.target_modules=[up_proj]"], False),
    ],
)
def test_what_is_left_out_is_told_where_all_was_asked_for(overrides, is_told) -> None:
    assert bool(notes({"experts": 100}, *overrides)) is is_told


@pytest.mark.parametrize(
    ("uncovered", "said"),
    [
        ({}, []),
        ({"a": 9}, []),  # less than a hundredth of 909
        ({"a": 100}, [f"10% {LEFT_OUT}: a (100)"]),
        ({"a": 1000, "b": 3000, "c": 100}, [f"82% {LEFT_OUT}: b (3,000), a (1,000) and 1 more"]),
    ],
)
def test_the_largest_are_named(uncovered, said) -> None:
    assert notes(uncovered, "quant=nf4") == said


@pytest.mark.parametrize(("size", "refused"), [(99, False), (100, False), (101, True)])
def test_more_than_a_tenth_has_to_be_asked_for(size: int, refused: bool) -> None:
    asked = ["quant=nf4", ALL]
    if refused:
        with pytest.raises(RequestError, match=r"experts \(101\); with quant\.skip_experts=true"):
            check_coverage(compose_run(asked), LINEARS, {"experts": size})
    else:
        check_coverage(compose_run(asked), LINEARS, {"experts": size})
    check_coverage(compose_run([*asked, "quant.skip_experts=true"]), LINEARS, {"experts": size})
    check_coverage(compose_run(["quant=none", ATTENTION]), LINEARS, {"experts": size})
