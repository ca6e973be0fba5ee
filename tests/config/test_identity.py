"""Identity: what can change a result changes the id, and nothing else does."""

import shutil

import pytest

from harness.base.source import find_model, model_fingerprint
from harness.config.compose import compose_run
from harness.config.identity import Identity, identify
from harness.data.check import data_fingerprint
from harness.errors import RequestError


def identity(*overrides: str) -> Identity:
    return identify(compose_run(overrides), model_fingerprint="m", data_fingerprint="d")


BASE = identity()


@pytest.mark.parametrize(
    "override",
    [
        "tracker=none",
        "tracker.tags=[a]",
        "tracker.group=sweep",
        "paths.out=elsewhere",
        "paths.cache=elsewhere",
        "resources.device=cpu",
        "resources.threads=2",
        "checkpoint.every_steps=1",
        "checkpoint.keep=9",
        "lora.alpha=16",  # the default, alpha_over_rank=2 at rank 8, spelt otherwise
        "lora.alpha_over_rank=2.0",
        "optim.micro_batch_size=16",  # the whole batch, as without it
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_id(override):
    assert identity(override) == BASE


@pytest.mark.parametrize(
    "override",
    [
        "lora.rank=4",
        "lora.alpha=15",
        "lora.rslora=true",
        "lora=qv",
        "quant=nf4",
        "quant=int4_dq",
        "quant.block_size=128",
        "quant.compute_dtype=bfloat16",
        "optim.lr=1e-3",
        "optim.steps=151",
        "optim.batch_size=8",
        "optim.micro_batch_size=4",
        "eval=loss",
        "data.max_length=128",
        "data.split_seed=1",
        "model.attention=eager",
    ],
)
def test_what_can_change_a_result_changes_run_and_cell(override):
    assert identity(override).run_id != BASE.run_id
    assert identity(override).cell_id != BASE.cell_id


def test_the_seed_changes_the_run_and_not_the_cell():
    other = identity("seed=1")
    assert other.run_id != BASE.run_id
    assert other.cell_id == BASE.cell_id


def test_the_order_of_targets_does_not_matter():
    assert identity("lora.target_modules=[v_proj,q_proj]") == identity(
        "lora.target_modules=[q_proj,v_proj]"
    )


def test_contents_of_model_and_data_count_through_their_fingerprints():
    config = compose_run([])
    ids = {
        identify(config, model_fingerprint=m, data_fingerprint=d).run_id
        for m in ("m", "other")
        for d in ("d", "other")
    }
    assert len(ids) == 4


@pytest.fixture
def files(tmp_path):
    """A directory with a model's small files and a data file."""
    model = tmp_path / "one" / "llama-1.5B"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).write_text(name)
    (tmp_path / "one" / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 9)
    return tmp_path


def identified(model, data, *overrides, memo) -> Identity:
    config = compose_run([f"model={model}", "data=pairs", f"data.path={data}", *overrides])
    return identify(
        config,
        model_fingerprint=model_fingerprint(find_model(config.model), memo),
        data_fingerprint=data_fingerprint(config.data),
    )


def test_the_same_contents_under_another_path_are_the_same_run(files, monkeypatch):
    memo = files / "memo.json"
    one = files / "one"
    first = identified(one / "llama-1.5B", one / "rows.jsonl", memo=memo)
    assert first.run_id.startswith("llama-1.5B-rows-nf4_dq-all_linear-r8-s0-")

    shutil.copytree(one, files / "two words")
    (files / "link").symlink_to(one / "llama-1.5B")
    monkeypatch.chdir(one / "llama-1.5B")
    for model, data in (
        (files / "two words" / "llama-1.5B", files / "two words" / "rows.jsonl"),
        (f"{one}/../one/llama-1.5B/", "../rows.jsonl"),
        (".", f"{one}/./rows.jsonl"),
        (files / "link", one / "rows.jsonl"),
    ):
        assert identified(model, data, memo=memo) == first


def test_other_contents_under_the_same_path_are_another_run(files):
    memo, one = files / "memo.json", files / "one"
    first = identified(one / "llama-1.5B", one / "rows.jsonl", memo=memo)
    with (one / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "c", "response": "d"}\n')
    second = identified(one / "llama-1.5B", one / "rows.jsonl", memo=memo)
    (one / "llama-1.5B" / "model.safetensors").write_text("other weights")
    third = identified(one / "llama-1.5B", one / "rows.jsonl", memo=memo)
    assert len({first.run_id, second.run_id, third.run_id}) == 3


def test_files_of_questions_count_by_their_contents(tmp_path):
    questions, shots = tmp_path / "questions.jsonl", tmp_path / "shots.jsonl"

    def now(where=tmp_path):
        return identity(
            f"eval.choice_path={where / 'questions.jsonl'}",
            f"eval.choice_shots_path={where / 'shots.jsonl'}",
            "eval.choice_shots=1",
        ).run_id

    questions.write_text("one")
    shots.write_text("two")
    first = now()
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert now(tmp_path / "copy") == first
    shots.write_text("other")
    second = now()
    questions.write_text("other")
    assert len({first, second, now()}) == 3


def test_a_hub_id_counts_by_its_commit_and_offline_the_cache_answers(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    snapshot = tmp_path / "models--org--llama" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--org--llama" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c" * 40)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    source = find_model(compose_run(["model=org/llama"]).model)
    assert source.directory == snapshot
    assert model_fingerprint(source, tmp_path / "memo.json") == f"org/llama@{'c' * 40}"
    with pytest.raises(
        RequestError, match=r"org/other is no directory here.*hub cannot be reached"
    ):
        find_model(compose_run(["model=org/other"]).model)
