"""Which layers a target means, what an adapter has of them, and what is refused in words."""

import pytest

from harness.base.targets import (
    AdapterShape,
    LinearSpec,
    adapted_layers,
    adapter_shapes,
    block_name,
    in_block,
    is_attention,
    shortest_names,
)
from harness.config.schema import LoraConfig, LoraInit, LoraMethod
from harness.errors import RequestError

LLAMA = [
    LinearSpec(f"model.layers.{block}.{name}", inputs, outputs)
    for block in range(2)
    for name, inputs, outputs in (
        ("self_attn.q_proj", 8, 8),
        ("self_attn.k_proj", 8, 4),
        ("mlp.up_proj", 8, 20),
        ("mlp.down_proj", 20, 8),
    )
]
EXPERTS = [
    LinearSpec("model.layers.0.self_attn.q_proj", 8, 8),
    LinearSpec("model.layers.0.mlp.experts.gate_up_proj", 8, 3 * 20, experts=3),
    LinearSpec("model.layers.0.mlp.experts.down_proj", 6, 3 * 10, experts=3, transposed=True),
]
FUSED = [LinearSpec("h.0.attn.c_attn", 8, 24), LinearSpec("h.0.mlp.gate_up_proj", 8, 40)]


def lora(**fields: object) -> LoraConfig:
    return LoraConfig(**{"rank": 2, "alpha_over_rank": 2.0, **fields})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "inside", "block", "attends"),
    [
        ("model.layers.3.self_attn.q_proj", True, "model.layers.3", True),
        ("transformer.h.0.mlp.experts.1.w", True, "transformer.h.0", False),
        ("blocks.12.attention_proj", True, "blocks.12", False),  # its own name says nothing
        ("h.0.attention.dense", True, "h.0", True),
        ("lm_head", False, None, False),
        ("model.layer1.proj", False, None, False),
    ],
)
def test_a_name_tells_the_block_and_its_attention(
    name: str, inside: bool, block: str | None, attends: bool
) -> None:
    assert in_block(name) == inside
    assert is_attention(name) == attends
    assert block is None or block_name(name) == block


def test_an_adapter_has_its_rank_for_every_expert_and_groups_of_inputs() -> None:
    """Sizes by hand: r (d_in + d_out) for every matrix (Hu et al. 2021), and a magnitude an output."""
    shapes = list(adapter_shapes(lora(), EXPERTS).values())
    assert shapes == [
        AdapterShape(2, 8, 8),
        AdapterShape(2, 8, 20, experts=3),
        AdapterShape(2, 10, 6, experts=3),  # [inputs, outputs]
    ]
    assert [each.params for each in shapes] == [2 * 16, 3 * 2 * 28, 3 * 2 * 16]
    qalora = adapter_shapes(lora(method=LoraMethod.qalora, qalora_group_size=4), LLAMA)
    assert qalora["model.layers.1.mlp.down_proj"] == AdapterShape(2, 5, 8, pooled=4)
    dora = adapter_shapes(lora(method=LoraMethod.dora, rank_pattern={"up_proj": 3}), LLAMA)
    assert dora["model.layers.0.mlp.up_proj"].params == 3 * 28 + 20
    assert dora["model.layers.0.mlp.down_proj"].params == 2 * 28 + 8


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (lambda name: name.endswith("q_proj"), ["q_proj"]),
        (lambda name: ".0." in name and "q_proj" in name, ["0.self_attn.q_proj"]),
        (lambda name: name.endswith(("q_proj", "up_proj")), ["q_proj", "up_proj"]),
    ],
)
def test_the_shortest_endings_that_mean_exactly_the_chosen_layers(
    chosen: object, expected: list[str]
) -> None:
    adapted = [spec for spec in LLAMA if chosen(spec.name)]  # pyright: ignore[reportCallIssue]
    assert shortest_names(adapted, LLAMA) == expected


def test_where_endings_do_not_tell_layers_apart_their_whole_names_do() -> None:
    linears = [LinearSpec(f"{side}.0.a.b.c", 4, 4) for side in ("left", "right")]
    assert shortest_names(linears[:1], linears) == ["left.0.a.b.c"]
    named_as_a_set = [LinearSpec("h.0.mlp", 4, 4), LinearSpec("h.0.x.mlp.y", 4, 4)]
    assert shortest_names(named_as_a_set[:1], named_as_a_set) == ["0.mlp"]


@pytest.mark.parametrize(
    ("fields", "linears", "told"),
    [
        ({"target_modules": ["q_proj"]}, FUSED, "; c_attn has it, with k_proj and v_proj"),
        ({"target_modules": ["up_proj"]}, FUSED, "; gate_up_proj has it, with gate_proj$"),
        (
            {"target_modules": ["q_prj"]},
            LLAMA,
            "blocks have down_proj, k_proj, q_proj, up_proj; sets",
        ),
        (
            {"rank_pattern": {"v_proj": 1}},
            LLAMA,
            "lora.rank_pattern: 'v_proj' matches the end of no",
        ),
        ({"alpha_pattern": {"o_proj": 1.0}}, LLAMA, "lora.alpha_pattern: 'o_proj' matches"),
        ({"rank_pattern": {"down_proj": 1}}, EXPERTS, "matches fused experts .*down_proj"),
        (
            {"rank": 5},
            LLAMA,
            r"lora.rank=5 is above .* 4 \(model.layers.0.self_attn.k_proj, 8 -> 4\)",
        ),
        ({"rank_pattern": {"q_proj": 9}}, LLAMA, "lora.rank_pattern=9 is above .* 8 "),
        ({"rank": 7}, EXPERTS, r"above .* 6 \(model.layers.0.mlp.experts.down_proj, 10 -> 6\)"),
        (
            {"method": LoraMethod.qalora, "qalora_group_size": 5},
            LLAMA,
            "must divide .*q_proj has 8",
        ),
        ({"dropout": 0.1}, EXPERTS, "lora.dropout=0.1 acts on the inputs .*gate_up_proj"),
        ({"method": LoraMethod.dora}, EXPERTS, "lora.method=dora is for layers"),
        ({"init": LoraInit.pissa}, EXPERTS, "lora.init=pissa is for layers"),
    ],
)
def test_what_cannot_be_adapted_is_refused_with_the_layer(
    fields: dict[str, object], linears: list[LinearSpec], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        adapted_layers(lora(**fields), linears)


def test_what_experts_cannot_have_layers_can() -> None:
    attention = lora(target_modules=["attention"], dropout=0.1, method=LoraMethod.dora)
    assert adapted_layers(attention, EXPERTS) == EXPERTS[:1]
    assert adapted_layers(lora(target_modules=["experts"]), EXPERTS) == EXPERTS[1:]
    assert adapted_layers(lora(rank=6, target_modules=["experts"]), EXPERTS) == EXPERTS[1:]
