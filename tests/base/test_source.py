"""What identifies a model: the contents of its files, hashed again only when they may have changed."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from harness.base import source as source_module
from harness.base.source import find_model, model_fingerprint
from harness.config.schema import ModelConfig
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
