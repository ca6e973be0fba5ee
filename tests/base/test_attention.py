"""The description of a model's attention, against what transformers' models compute.

Masks of one's own lose a model's windows, and masks that a model does not expect lose the borders between
examples, without a word: huggingface/transformers#46634 and #35290, NVIDIA/Megatron-LM#7039,
tenstorrent/tt-metal#31129 (ALiBi). Encoders loaded as causal models: huggingface/transformers#12704, #7495.
"""

from dataclasses import replace
from typing import Any

import pytest

from harness.base import packed_rows
from harness.base.attention import (
    AttentionKind,
    LayerAttention,
    UnknownAttention,
    attends_both_ways,
    attention_of,
)
from harness.base.packed_rows import attends_as_described, why_apart

ALL = LayerAttention()


def config_of(model_type: str, implementation: str = "eager", **fields: Any) -> Any:
    """Return the configuration that transformers has for a type, in its published size."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **fields)
    config._attn_implementation = implementation
    return config


def windows(model_type: str, **fields: Any) -> list[int | None]:
    kind = attention_of(config_of(model_type, **fields))
    assert isinstance(kind, AttentionKind)
    return [layer.window for layer in kind.layers]


def test_windows_and_chunks_stand_in_the_description_layer_by_layer():
    assert windows("mistral") == [4096] * 32
    assert windows("mistral", sliding_window=None) == [None] * 32
    assert windows("gemma2") == [4096, None] * 13
    assert windows("gemma3_text") == ([4096] * 5 + [None]) * 4 + [4096] * 2
    assert windows("phi3", sliding_window=2047) == [2047] * 32
    assert windows("qwen2", num_hidden_layers=4, use_sliding_window=True, max_window_layers=2) == (
        [None] * 2 + [4096] * 2
    )
    kind = attention_of(config_of("llama4_text"))
    assert isinstance(kind, AttentionKind)
    assert kind.layers[:4] == (LayerAttention(chunk=8192),) * 3 + (ALL,)


def test_caps_and_sinks_stand_in_the_description():
    gemma, oss, gpt2 = (attention_of(config_of(t)) for t in ("gemma2", "gpt_oss", "gpt2"))
    assert isinstance(gemma, AttentionKind)
    assert isinstance(oss, AttentionKind)
    assert isinstance(gpt2, AttentionKind)
    assert (gemma.soft_cap, oss.soft_cap) == (50.0, None)
    assert (gemma.sinks, oss.sinks) == (False, True)
    assert all(kind.causal for kind in (gemma, oss, gpt2))


PLAIN = ("llama", "qwen2", "qwen3", "gpt2", "opt", "gpt_neox", "olmo2", "granite", "smollm3")
WINDOWED = (
    "mistral",
    "gemma3_text",
    "gemma3n_text",
    "cohere2",
    "olmo3",
    "llama4_text",
    "ministral",
)
WITH_EYES = ("gemma3",)
"""Models of images, too, of which the text model is trained."""
WITH_FIELDS = {
    "phi3": {"sliding_window": 2047},
    "mixtral": {"sliding_window": 4096},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 4096},
    "starcoder2": {"sliding_window": 4096},
}
WITHOUT_SDPA = ("gemma2", "gpt_oss")


@pytest.mark.parametrize("model_type", [*PLAIN, *WINDOWED, *WITH_FIELDS, *WITH_EYES])
def test_transformers_attends_as_described_and_keeps_examples_apart(model_type: str):
    config = config_of(model_type, "sdpa", **WITH_FIELDS.get(model_type, {}))
    assert why_apart(config) is None
    assert attends_as_described(config) == attention_of(config)


@pytest.mark.parametrize("model_type", [*WITHOUT_SDPA, "llama", "mistral", "cohere2"])
def test_with_eager_attention_too(model_type: str):
    config = config_of(model_type)
    assert why_apart(config) is None
    assert attends_as_described(config) == attention_of(config)


@pytest.mark.parametrize(
    ("model_type", "wrong"),
    [
        ("mistral", lambda kind: replace(kind, layers=(ALL,) * len(kind.layers))),
        ("gemma3_text", lambda kind: replace(kind, layers=kind.layers[::-1])),
        (
            "mistral",
            lambda kind: replace(
                kind,
                layers=tuple(LayerAttention(window=1 + (e.window or 0)) for e in kind.layers),
            ),
        ),
        ("llama4_text", lambda kind: replace(kind, layers=(ALL,) * len(kind.layers))),
        ("gemma2", lambda kind: replace(kind, soft_cap=None)),
        ("gpt_oss", lambda kind: replace(kind, sinks=False)),
        ("llama", lambda kind: replace(kind, causal=False)),
    ],
)
def test_a_wrong_description_is_found_out(
    model_type: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
):
    right = attention_of

    def described(config: Any) -> AttentionKind | UnknownAttention:
        kind = right(config)
        assert isinstance(kind, AttentionKind)
        return wrong(kind)

    monkeypatch.setattr(packed_rows, "attention_of", described)
    packed_rows._tried.cache_clear()
    try:
        assert isinstance(attends_as_described(config_of(model_type)), UnknownAttention)
    finally:
        packed_rows._tried.cache_clear()


@pytest.mark.parametrize(
    ("model_type", "fields", "word"),
    [
        ("bloom", {}, "ALiBi"),
        ("mpt", {}, "ALiBi"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("mamba", {}, "linear_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("deepseek_v32", {}, "indexed_attention"),
        ("rwkv", {}, "see each other"),
    ],
)
def test_rows_of_architectures_that_cannot_be_told_hold_one_example(
    model_type: str, fields: dict[str, Any], word: str
):
    config = config_of(model_type, **fields)
    assert word in (why_apart(config) or "")
    assert isinstance(attention_of(config), UnknownAttention)


def test_masks_of_a_layer_type_are_left_to_models_that_compute_them_themselves():
    assert why_apart(config_of("falcon")) is None
    assert isinstance(attention_of(config_of("falcon")), UnknownAttention)


def test_what_an_architecture_does_depends_on_no_width_and_no_window():
    kinds = {
        why_apart(config_of("mistral", "sdpa", hidden_size=width, sliding_window=window))
        for width in (64, 4096)
        for window in (7, 4096)
    }
    assert kinds == {None}


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "camembert"])
def test_an_encoder_sees_what_it_is_to_predict(model_type: str):
    assert attends_both_ways(config_of(model_type))
    assert not attends_both_ways(config_of(model_type, is_decoder=True))
    assert not attends_both_ways(config_of("gpt_neox"))
    assert not attends_both_ways(config_of("bart"))
