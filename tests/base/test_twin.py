"""Which layers a twin keeps of its model: the first of every kind, with all that lists say of them."""

from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

from harness.base.twin import _is_a_numbering, _keep_few_layers, twin_of


def kept(count: int | None, **lists: Any) -> dict[str, Any]:
    config: Any = PretrainedConfig(**lists)
    if count is not None:
        config.num_hidden_layers = count
    _keep_few_layers(config)
    return {
        name: getattr(config, name)
        for name in ("num_hidden_layers", *lists)
        if hasattr(config, name)
    }


def test_layers_that_are_alike_are_two() -> None:
    assert kept(6, kinds=["full"] * 6) == {"num_hidden_layers": 2, "kinds": ["full"] * 2}
    assert kept(1, kinds=["full"]) == {"num_hidden_layers": 1, "kinds": ["full"]}
    assert kept(6)["num_hidden_layers"] == 2


def test_the_first_of_each_kind_is_kept_in_the_order_of_the_model() -> None:
    found = kept(
        6,
        kinds=["slide", "slide", "slide", "full", "slide", "full"],
        widths=(8, 8, 4, 4, 8, 2),
    )
    # By both lists: (slide 8), (slide 4), (full 4), (full 2); and the first two layers.
    assert found == {
        "num_hidden_layers": 5,
        "kinds": ["slide", "slide", "slide", "full", "full"],
        "widths": [8, 8, 4, 4, 2],
    }


def test_lists_of_other_lengths_and_numberings_say_nothing_of_layers() -> None:
    others = {"longer": [5, 6, 7, 8, 9], "shorter": ["a", "b"], "places": [0, 1, 2, 3]}
    found = kept(4, kinds=["a", "a", "a", "b"], **others)
    assert found == {"num_hidden_layers": 3, "kinds": ["a", "a", "b"], **others}


def test_shared_keys_and_values_are_the_models_own_layers() -> None:
    config: Any = PretrainedConfig()
    config.num_kv_shared_layers = 3
    config.num_hidden_layers = 4
    _keep_few_layers(config)
    assert config.num_kv_shared_layers == 0


def test_a_model_that_does_not_count_its_layers_is_left_as_it_is() -> None:
    assert kept(None, kinds=["a", "b"]) == {"kinds": ["a", "b"]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 5], True), ([1, 0], False), ([1, 1], False), (["a", "b"], False), ([0.0, 1.0], False),
     ([True, False], False)],
)  # fmt: skip
def test_a_numbering_rises_and_holds_whole_numbers(values: list[Any], expected: bool) -> None:
    assert _is_a_numbering(values) is expected


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_a_twins_attention_is_scaled_as_its_heads_are_wide(model_type: str) -> None:
    twin = twin_of(AutoConfig.for_model(model_type), "eager")
    attention = twin.model.layers[0].self_attn
    assert attention.scaling == attention.head_dim**-0.5


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe"])
def test_a_twins_router_chooses_among_groups_that_there_are(model_type: str) -> None:
    config = twin_of(AutoConfig.for_model(model_type), "eager").config
    assert 1 <= config.topk_group <= config.n_group
    assert config.n_routed_experts % config.n_group == 0
