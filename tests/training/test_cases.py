"""Inputs that once gave wrong numbers or tracebacks, with their right values; tests/cases has the files.

Each stands for a kind. `test_kinds_of_models.py`, `tests/data/test_kinds_of_rows.py`, `test_readers.py` and
`tests/config/test_compose.py` have others of each, and the public reports behind them. The losses here are
those of the same rows, one a row and padded.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import dispatch
from harness.errors import RequestError
from harness.records.record import Record
from tests.real_cases import trained

CASES = Path(__file__).parents[1] / "cases"
PAIRS = ("data=pairs", f"data.path={CASES / 'pairs.jsonl'}")
SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "max_position_embeddings": 512}
IDS = {"bos_token_id": 1, "eos_token_id": 2}
MISTRAL = {**SIZES, **GROUPED, **IDS, "intermediate_size": 64, "sliding_window": 16}


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    """Return a function that makes the override for a random model with stories260K's tokenizer."""

    def make(kind: str, **fields: Any) -> str:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        made: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields))
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(0, 0.12)
        made.save_pretrained(tmp_path / "m")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(CASES / "tokenizer" / file, tmp_path / "m")
        return f"model={tmp_path / 'm'}"

    return make


@pytest.mark.parametrize("window", [16, None])
def test_packed_rows_of_a_model_with_a_window(
    model: Callable[..., str], tmp_path: Path, window: int | None
):
    """Packed, the first loss was 6.47451; without a window both were right."""
    overrides = (
        model("mistral", **MISTRAL | {"sliding_window": window}, tie_word_embeddings=False),
        *PAIRS,
        *("data.train_rows=8", "data.max_length=512", "quant=none", "optim.steps=1"),
    )
    _, padded = trained(tmp_path / "a", *overrides, "optim.batch_size=8")
    _, packed = trained(tmp_path / "b", *overrides, "optim.batch_size=1", "data.packing=true")
    assert packed == pytest.approx(padded, abs=2e-5)
    if window is not None:
        assert padded == pytest.approx([6.46943], abs=1e-5)


@pytest.mark.parametrize("dropout", ["0", "1e-9"])
def test_rows_side_by_side_in_a_model_with_a_window(
    model: Callable[..., str], tmp_path: Path, dropout: str
):
    """Unpacked, with no dropout, the second loss was 6.21256, and seed 1 was right."""
    _, losses = trained(
        tmp_path / "out",
        model("mistral", **MISTRAL, tie_word_embeddings=False),
        *("data=pairs", f"data.path={CASES / 'longtail.jsonl'}", "data.validation_rows=4"),
        *("data.test_rows=0", "quant=none", f"lora.dropout={dropout}", "optim.steps=4"),
        *("optim.batch_size=8", "seed=0"),
    )
    assert losses == pytest.approx([6.16427, 6.22951, 6.28912, 6.06290], abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "fields", "attention"),
    [("falcon", {**SIZES, "alibi": True}, "sdpa"), ("bloom", {**SIZES}, "eager")],
)
def test_a_model_with_alibi_trains(
    model: Callable[..., str], tmp_path: Path, kind: str, fields: dict[str, Any], attention: str
):
    """It ended in "too many values to unpack" at the first evaluation."""
    record, _ = trained(
        tmp_path / "out",
        model(kind, **fields, **IDS),
        *(*PAIRS, "optim.steps=1", "optim.batch_size=8", f"model.attention={attention}"),
    )
    assert record.status.value == "completed"
    assert any(note.startswith("rows hold one example each") for note in record.notes)


def test_an_encoder_is_refused(model: Callable[..., str], tmp_path: Path, capsys: Any):
    """It completed: its positions see the tokens that they are to predict."""
    words = [model("bert", **SIZES, intermediate_size=64), *PAIRS, f"paths.out={tmp_path / 'out'}"]
    assert dispatch(["run", *words, "tracker=none", "optim.steps=3"]) == 2
    assert "is an encoder" in capsys.readouterr().err


def attempted(out: Path, *overrides: str) -> tuple[Record, list[float]] | str:
    """Return the record and the losses by step, or the words of a refusal."""
    try:
        return trained(out, *overrides)
    except RequestError as refused:
        return str(refused)


def test_experts_are_packed_and_adapted_or_refused(model: Callable[..., str], tmp_path: Path):
    """It completed with 56 % of the weights in float32 and without adapter, and nothing said so."""
    mixtral = MISTRAL | {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2}
    words = (model("mixtral", **mixtral), *PAIRS, "optim.steps=1", "optim.batch_size=4")
    ended = attempted(tmp_path / "out", *words)
    if isinstance(ended, str):
        assert "experts" in ended
    else:
        for name in ("base/packed_share", "adapter/adapted_share"):
            assert ended[0].metrics[name] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_that_is_quantized_already_is_read_as_such_or_refused(
    model: Callable[..., str], tmp_path: Path, bits: int, capsys: Any
):
    """Its codes were taken for weights: a loss of 9.95 instead of 6.5, or a traceback."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = model("llama", **SIZES, **GROUPED, **IDS, intermediate_size=64)
    words = (*PAIRS, "optim.steps=1", "optim.batch_size=4")
    _, right = trained(tmp_path / "dense", dense, *words, "quant=none")
    asked = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantization_config=asked)
    made.save_pretrained(tmp_path / "packed")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CASES / "tokenizer" / file, tmp_path / "packed")
    ended = attempted(tmp_path / "out", f"model={tmp_path / 'packed'}", *words)
    if isinstance(ended, str):
        assert "already quantized" in ended
    else:
        assert ended[1] == pytest.approx(right, abs=0.2)


def shown(capsys: Any, *overrides: str) -> list[dict[str, Any]]:
    """Return the training rows that `harness data` shows, which trains nothing."""
    held_out = ("data.validation_rows=1", "data.test_rows=0")
    assert dispatch(["data", *held_out, *overrides, "--rows", "50", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["shown"]["rows"]


def with_loss(row: dict[str, Any]) -> str:
    return "".join(each["text"] for each in row["stretches"] if each["carries_loss"])


@pytest.mark.parametrize("name", ["a,b.jsonl", "100%${v}.jsonl", "[x] {y} (1).jsonl"])
def test_a_path_is_taken_as_it_is(name: str, tmp_path: Path, capsys: Any):
    shutil.copy(CASES / "quoting.jsonl", tmp_path / name)
    rows = shown(capsys, "data=pairs", f"data.path={tmp_path / name}")
    assert len(rows) == 11
    assert all(with_loss(row) for row in rows)


def test_columns_and_texts_are_taken_as_they_are(capsys: Any):
    rows = shown(
        capsys,
        *("data=pairs", f"data.path={CASES / 'cols.jsonl'}", "data.template=chatml"),
        *("data.prompt_column=question: text", "data.response_column=answer (gold)"),
        *("data.input_column=a,b", "data.system=You are kind, and brief."),
    )
    for row in rows:
        text = "".join(each["text"] for each in row["stretches"])
        assert "You are kind, and brief." in text
        assert "\nx<|im_end|>" in text


def test_half_a_character_is_named_by_its_line(tmp_path: Path, capsys: Any):
    """It ended in a traceback of the tokenizer."""
    words = ("data=pairs", f"data.path={CASES / 'surrogate.jsonl'}", f"paths.out={tmp_path}")
    assert dispatch(["run", *words, "optim.steps=1", "tracker=none"]) == 2
    assert "surrogate.jsonl:6: \\ud83d" in capsys.readouterr().err


CHAT = ("data=chat", "data.max_length=256")


def test_a_message_of_weight_zero_is_not_learned(capsys: Any):
    rows = shown(capsys, *CHAT, f"data.path={CASES / 'weight.jsonl'}")
    assert len(rows) > 5
    for row in rows:
        assert "WRONG" in "".join(each["text"] for each in row["stretches"])
        assert "WRONG" not in with_loss(row)
        assert with_loss(row)


@pytest.mark.parametrize("name", ["midempty.jsonl", "toolempty.jsonl"])
def test_an_answer_that_calls_a_tool_is_refused_where_the_template_has_no_words_for_it(
    name: str, capsys: Any
):
    """They were trained as empty answers, or left out as empty rows."""
    assert dispatch(["data", *CHAT, f"data.path={CASES / name}"]) == 2
    assert "cannot render tool_calls" in capsys.readouterr().err
