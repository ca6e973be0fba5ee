"""Exports against those who load them: PEFT, transformers, bitsandbytes, llama.cpp; and what a card says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.cli.main import dispatch
from harness.export.card import read_exports
from harness.export.gguf_file import GgufType, _tokens, check_writable, write_gguf
from harness.records.record import read_record
from harness.records.run_directory import RunDirectory
from tests.commands.left_runs import left_run
from tests.random_models import LLAMA, save_random_model

IDS = torch.arange(3, 35).view(1, -1)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def run(out: Path) -> RunDirectory:
    return left_run(out, "quant=nf4_dq", "lora.rslora=true", "lora.target_modules=[q_proj,mlp]")


def export(run: RunDirectory, capsys: pytest.CaptureFixture[str], *words: str) -> list[Any]:
    capsys.readouterr()
    out = run.path.parents[1]
    code = dispatch(["export", run.path.name, *words, f"paths.out={out}", "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out)


def peft_merge(run: RunDirectory, pretrained: Path) -> dict[str, torch.Tensor]:
    """Return PEFT's own sum of base and adapter, in float32."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(run.adapter)).merge_and_unload().state_dict()


def test_an_exported_adapter_is_pefts_folder_with_a_tokenizer(run, capsys, pretrained):
    (made,) = export(run, capsys, "--to", "adapter", "--license", "apache-2.0")
    folder = Path(made["place"])
    assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]
    assert load_file(folder / "adapter_model.safetensors").keys()
    record = read_record(run.record)
    recorded = record.evals["after"]["eval/loss"]
    assert made["loss"]["value"] == pytest.approx(recorded.value, abs=1e-5)
    assert made["loss"]["n"] == recorded.n
    card = (folder / "README.md").read_text()
    for fact in (
        "license: apache-2.0",
        "base_model: embedded",
        "library_name: peft",
        run.path.name,
    ):
        assert fact in card
    assert f"{recorded.value:.4f}" in card


def test_merged_weights_are_pefts_sum_rounded_once(run, capsys, pretrained):
    (made,) = export(run, capsys, "--to", "merged")
    expected = peft_merge(run, pretrained)
    before: dict[str, Any] = load_file(pretrained / "model.safetensors")
    loaded: Any = AutoModelForCausalLM.from_pretrained(made["place"], dtype="auto")
    changed = 0
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype is torch.bfloat16
        assert torch.equal(tensor, expected[name].bfloat16()), name
        own = before.get(name, tensor)
        changed += not torch.equal(tensor, own.bfloat16())
    assert changed == 4 * 6  # q_proj and three of the MLP, in six blocks


def test_merged_into_the_rounded_base_is_what_was_trained(run, capsys):
    (rounded,) = export(run, capsys, "--to", "merged", "--into", "rounded")
    recorded = read_record(run.record).evals["after"]["eval/loss"].value
    assert rounded["loss"]["value"] == pytest.approx(recorded, abs=0.02)  # bfloat16
    losses = {each.label: each.loss.value for each in read_exports(run.exports)}
    assert abs(losses["merged into the rounded base"] - recorded) < abs(
        losses["merged into the unrounded base"] - recorded
    )


def test_what_is_stored_in_nf4_are_bitsandbytes_codes_of_the_merged_weights(run, capsys):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    merged, stored = export(run, capsys, "--to", "merged_4bit")
    assert merged["form"] == "merged"
    assert not merged["place"]
    (kept,) = export(run, capsys, "--to", "merged")
    dense = load_file(Path(kept["place"]) / "model.safetensors")
    loaded: Any = AutoModelForCausalLM.from_pretrained(stored["place"])
    name = "model.layers.3.mlp.down_proj"
    weight = loaded.get_submodule(name).weight
    expected = dequantize_4bit(
        *quantize_4bit(dense[f"{name}.weight"], quant_type="nf4", compress_statistics=True)
    )
    assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), expected)
    card = (Path(stored["place"]) / "README.md").read_text()
    for each in (merged, stored):
        assert f"{each['loss']['value']:.4f}" in card, "losses side by side"


def test_gguf_files_answer_as_what_they_were_made_from(run, capsys):
    made = export(run, capsys, "--to", "gguf")
    assert [each["storage"] for each in made] == ["f16", "q8_0", "q4_0", "q4_k_m"]
    (dense,) = export(run, capsys, "--to", "merged")
    assert made[0]["loss"]["value"] == pytest.approx(dense["loss"]["value"], abs=2e-3)
    assert made[0]["size_bytes"] > made[1]["size_bytes"] > made[2]["size_bytes"]
    cards = (Path(made[0]["place"]).parent / "README.md").read_text()
    assert all(f"{each['loss']['value']:.4f}" in cards for each in made)


@pytest.mark.data
def test_llama_cpp_reads_a_gguf_file_as_transformers_reads_what_it_was_made_from(run, capsys):
    reason = "llama.cpp is not installed: pip install llama-cpp-python"
    llama_cpp = pytest.importorskip("llama_cpp", reason=reason)
    made = export(run, capsys, "--to", "gguf")
    (dense,) = export(run, capsys, "--to", "merged")
    loaded: Any = AutoModelForCausalLM.from_pretrained(dense["place"], dtype=torch.float32)
    ours = loaded(IDS).logits[0].detach()
    llama = llama_cpp.Llama(made[0]["place"], n_ctx=64, logits_all=True, verbose=False)
    llama.eval(IDS[0].tolist())
    theirs = torch.tensor(llama.scores[: IDS.shape[1]])
    llama.close()
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_other_models_keep_their_logits_in_gguf(tmp_path, kind, tied):
    settings: dict[str, Any] = LLAMA | {"tie_word_embeddings": tied}
    if kind == "mistral":
        settings |= {"sliding_window": None, "head_dim": 32}
    save_random_model(tmp_path / "dense", kind, **settings)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "dense")
    check_writable(model.config, tokenizer)
    file = tmp_path / "model.gguf"
    write_gguf(model.half().float(), tokenizer, file, GgufType.f16, name="it")
    read: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    assert torch.allclose(read(IDS).logits, model(IDS).logits, atol=1e-4)


def test_a_sentencepiece_vocabulary_keeps_bytes_and_the_order_of_its_merges():
    tree = {
        "model": {
            "vocab": {"<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "▁a": 4},
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
        "added_tokens": [{"id": 5, "content": "<s>", "special": True}],
    }
    tokens, types = _tokens(tree, 7)
    assert tokens == ["<unk>", "<0x41>", "▁", "a", "▁a", "<s>", "[PAD6]"]
    assert [int(each) for each in types] == [2, 6, 1, 1, 1, 3, 5]


def test_an_adapter_that_took_a_part_of_its_base_gives_it_back(out, capsys, pretrained):
    """PiSSA begins as a part of the weights: untrained and merged, these are what they were."""
    untrained = left_run(out, "lora.init=pissa", "optim.steps=0", "quant=nf4", "eval.before=false")
    (made,) = export(untrained, capsys, "--to", "merged")
    before = load_file(pretrained / "model.safetensors")
    after = load_file(Path(made["place"]) / "model.safetensors")
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        ([], ["--to takes one of", "gguf"]),
        (["--to", "ggfu"], ["'ggfu'", "gguf"]),
        (["--to", "adapter", "--into", "rounded"], ["would be ignored"]),
        (["--to", "merged", "--types", "f16"], ["--types f16 would be ignored"]),
        (["--to", "gguf", "--types", "q5_k"], ["q5_k", "q4_0"]),
    ],
)
def test_what_cannot_be_exported_is_refused(run, words, reasons, capsys):
    out = run.path.parents[1]
    assert dispatch(["export", run.path.name, *words, f"paths.out={out}"]) == 2
    shown = capsys.readouterr().err
    assert all(reason in shown for reason in reasons), shown


def test_a_folder_with_something_else_in_it_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    words = ["--to", "adapter", "--out", str(tmp_path), f"paths.out={run.path.parents[1]}"]
    assert dispatch(["export", run.path.name, *words]) == 2
    assert "no export has made" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_data_that_have_changed_since_are_refused(tmp_path, write_jsonl, capsys):
    rows: list[object] = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(40)]
    file = write_jsonl(rows)
    out = tmp_path / "out"
    run = left_run(out, "data=pairs", f"data.path={file}", "data.train_rows=null", "optim.steps=1")
    write_jsonl([*rows, {"prompt": "new", "response": "new"}])
    assert dispatch(["export", run.path.name, "--to", "merged", f"paths.out={out}"]) == 2
    assert "not what they were" in capsys.readouterr().err
