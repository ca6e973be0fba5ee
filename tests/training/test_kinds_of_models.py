"""Models as people have them, each standing for a kind: right numbers, a stated note or a refusal.

Windows lost to masks: huggingface/transformers#46634, NVIDIA/Megatron-LM#7039. ALiBi:
tenstorrent/tt-metal#31129. Encoders: huggingface/transformers#12704, #7495. Experts left out:
unslothai/unsloth#6936, bitsandbytes-foundation/bitsandbytes#1965, ml-explore/mlx-lm#571. Tokens without an
embedding: huggingface/transformers#12763, huggingface/tokenizers#1609, EuroEval/EuroEval#52.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RequestError
from tests.random_models import save_random_model
from tests.real_cases import SMALL, pairs, trained, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", pairs([30, 4, 29, 12, 3, 25, 18, 9, 7, 22]))


@pytest.fixture
def long_tail(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "tail.jsonl", pairs([1, 6, 1, 7, 37, 6, 1, 1, 1, 1, 30, 2] * 4))


def model(path: Path, kind: str, **fields: Any) -> str:
    return f"model={save_random_model(path / 'm', kind, **fields)}"


SHARED = ("data=pairs", "data.test_rows=0", "data.validation_rows=1", "quant=none")
WINDOWED = {
    "mistral": {**SMALL, "sliding_window": 16},
    "phi3": {**SMALL, "sliding_window": 16},
    "cohere2": {
        **SMALL,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("kind", WINDOWED)
def test_packed_rows_keep_the_models_window(kind: str, rows: Path, tmp_path: Path):
    """Loss 6.46943 came out as 6.47451, without a word, where a mask of ours took the window's place."""
    overrides = (
        model(tmp_path, kind, **WINDOWED[kind]),
        *SHARED,
        f"data.path={rows}",
        "data.train_rows=8",
        "data.max_length=512",
        "optim.steps=1",
    )
    _, padded = trained(tmp_path / "padded", *overrides, "optim.batch_size=8")
    record, packed = trained(
        tmp_path / "packed", *overrides, "optim.batch_size=4", "data.packing=true"
    )
    rows_packed = record.provenance["data"]["splits"]["train"]["rows"]
    assert rows_packed < 8
    _, packed = trained(
        tmp_path / "all", *overrides, f"optim.batch_size={rows_packed}", "data.packing=true"
    )
    assert packed == pytest.approx(padded, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_depends_on_no_dropout_of_a_billionth(seed: int, long_tail: Path, tmp_path: Path):
    """Which layout a run got was learnt from the first batch: seed 0 and 1 differed."""
    overrides = (
        model(tmp_path, "mistral", **WINDOWED["mistral"]),
        "data=pairs",
        f"data.path={long_tail}",
        "data.validation_rows=4",
        "data.test_rows=0",
        "quant=none",
        "optim.steps=4",
        "optim.batch_size=8",
        f"seed={seed}",
    )
    _, padded = trained(tmp_path / "padded", *overrides, "lora.dropout=1e-9")
    _, folded = trained(tmp_path / "folded", *overrides)
    assert folded == pytest.approx(padded, abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "falcon",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        ),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_alibi_trains_with_a_row_for_each_example(
    kind: str, fields: dict[str, Any], rows: Path, tmp_path: Path
):
    overrides = (model(tmp_path, kind, **fields), *SHARED, f"data.path={rows}", "optim.steps=1")
    record, losses = trained(tmp_path / "out", *overrides, "optim.batch_size=8")
    assert record.status.value == "completed"
    assert any(note.startswith("rows hold one example each:") for note in record.notes)
    _, padded = trained(tmp_path / "p", *overrides, "optim.batch_size=8", "lora.dropout=1e-9")
    assert losses == pytest.approx(padded, abs=1e-5)
    with pytest.raises(RequestError, match=r"data\.packing=true .*ALiBi.*data\.packing=false"):
        trained(tmp_path / "q", *overrides, "data.packing=true")


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
ROTATIONS = {
    "longrope": (LONG, {"original_max_position_embeddings": 96, "max_position_embeddings": 512}),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, {"max_position_embeddings": 96}),
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_rotations_that_depend_on_the_longest_row_of_a_batch(
    kind: str, rows: Path, long_tail: Path, tmp_path: Path
):
    """Up to where they begin to, layouts are equal; longer rows are refused, whose company would count.

    huggingface/transformers#25104, QwenLM/Qwen#401.
    """
    rope, lengths = ROTATIONS[kind]
    rope = {"rope_theta": 10000.0, **rope} | {k: v for k, v in lengths.items() if "original" in k}
    fields = {**SMALL, **lengths, "sliding_window": None, "rope_parameters": rope}
    shared = (model(tmp_path, "phi3" if kind == "longrope" else "llama", **fields), *SHARED)
    overrides = (*shared, f"data.path={rows}", "data.train_rows=8", "optim.steps=2")
    words = (*overrides, "optim.batch_size=8", "data.max_length=96")
    _, padded = trained(tmp_path / "padded", *words, "lora.dropout=1e-9")
    _, folded = trained(tmp_path / "folded", *words)
    assert folded == pytest.approx(padded, abs=2e-5)
    with pytest.raises(RequestError, match=r"use at most 96"):
        trained(tmp_path / "long", *overrides, "optim.batch_size=8", "data.max_length=256")


def test_where_there_is_no_sdpa_attention_is_eager_with_a_note(rows: Path, tmp_path: Path):
    fields = {**SMALL, "head_dim": 8, "sliding_window": 16}
    record, _ = trained(
        tmp_path / "out",
        model(tmp_path, "gemma2", **fields),
        *SHARED,
        f"data.path={rows}",
        "optim.steps=1",
    )
    assert record.notes[0] == (
        "attention is eager: transformers has no sdpa for models of type gemma2"
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_are_refused(kind: str, rows: Path, tmp_path: Path):
    fields = {key: value for key, value in SMALL.items() if "key_value" not in key}
    overrides = (model(tmp_path, kind, **fields), *SHARED, f"data.path={rows}")
    with pytest.raises(RequestError, match="is an encoder"):
        trained(tmp_path / "out", *overrides)


def test_a_model_that_says_it_is_causal_and_is_not_is_refused(rows: Path, tmp_path: Path):
    """BertGeneration without is_decoder: no list names it an encoder; its logits do."""
    fields = {key: value for key, value in SMALL.items() if "key_value" not in key}
    overrides = (model(tmp_path, "bert-generation", **fields), *SHARED, f"data.path={rows}")
    with pytest.raises(RequestError, match="is not causal"):
        trained(tmp_path / "out", *overrides)


TWO = {"num_experts_per_tok": 2, "head_dim": 8}
EXPERTS = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mixtral", EXPERTS),
        ("qwen3_moe", {**SMALL, "num_experts": 4, "moe_intermediate_size": 64, **TWO}),
    ],
)
def test_fused_experts_are_stored_and_adapted_as_the_rest(
    kind: str, fields: dict[str, Any], rows: Path, tmp_path: Path
):
    directory = model(tmp_path, kind, **fields)
    overrides = (directory, "data=pairs", f"data.path={rows}", "optim.steps=2", "quant=nf4_dq")
    record, losses = trained(tmp_path / "out", *overrides)
    packed, adapted = (record.metrics[n] for n in ("base/packed_share", "adapter/adapted_share"))
    attention, experts, routers = 2 * (32 * 32 * 2 + 32 * 16 * 2), 2 * 4 * 3 * 32 * 64, 2 * 4 * 32
    assert packed == adapted
    assert packed == pytest.approx((attention + experts) / (attention + experts + routers))
    bits = record.metrics["base/bits_per_param"]
    assert bits is not None
    assert bits < 4.5  # of all of them, the constants' tables of a tiny model included
    assert not any("neither quantized nor adapted" in note for note in record.notes)
    rank = 2
    of_attention = 2 * rank * (2 * (32 + 32) + 2 * (32 + 16))
    of_experts = 2 * 4 * rank * ((32 + 128) + (64 + 32))
    assert record.metrics["adapter/trainable_params"] == of_attention + of_experts
    assert losses[1] != losses[0]


def test_experts_that_nothing_reaches_are_refused_by_name(rows: Path, tmp_path: Path):
    """Llama 4 computes its experts in code of its own."""
    fields = {**SMALL, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 64}
    directory = model(tmp_path, "llama4_text", **fields)
    overrides = (directory, "data=pairs", f"data.path={rows}", "optim.steps=1", "quant=nf4")
    with pytest.raises(RequestError, match=r"experts.*quant\.skip_experts=true"):
        trained(tmp_path / "refused", *overrides)
    record, _ = trained(tmp_path / "out", *overrides, "quant.skip_experts=true")
    packed, adapted = (record.metrics[n] for n in ("base/packed_share", "adapter/adapted_share"))
    assert packed == adapted
    assert packed is not None
    assert packed < 0.9
    assert any("neither quantized nor adapted" in note for note in record.notes)
    attention = (*overrides[:-1], "quant=none", "lora=attention")
    record, _ = trained(tmp_path / "attention", *attention)
    packed, adapted = (record.metrics[n] for n in ("base/packed_share", "adapter/adapted_share"))
    assert packed is not None
    assert adapted is not None
    assert adapted < packed


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "version": "gemm"},
    ],
)
def test_weights_that_are_codes_of_another_quantizer_are_refused(
    quantization: dict[str, Any], rows: Path, tmp_path: Path
):
    directory = save_random_model(tmp_path / "m", "llama", **SMALL)
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(fields | {"quantization_config": quantization})
    )
    with pytest.raises(RequestError, match=r"already quantized .*quantization_config"):
        trained(tmp_path / "out", f"model={directory}", *SHARED, f"data.path={rows}")


def test_a_token_without_an_embedding_is_refused_before_weights_are_read(
    rows: Path, tmp_path: Path
):
    directory = save_random_model(tmp_path / "m", "llama", vocabulary=260, **SMALL)
    (directory / "model.safetensors").write_bytes(b"never read")
    end = tmp_path / "end"
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))
    tokenizer.add_tokens([" dog", " cat"])
    tokenizer.save_pretrained(str(directory))
    with pytest.raises(RequestError, match=r"embeddings for 260 tokens.*' cat', number 260"):
        trained(end, f"model={directory}", *SHARED, f"data.path={rows}")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(str(directory))
    with pytest.raises(RequestError, match=r"eos token '<end>' is number 261"):
        trained(end, f"model={directory}", *SHARED, f"data.path={rows}")
