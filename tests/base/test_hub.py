"""What the hub is asked, and what is made of its answers, which are ours here."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness.base.hub import HubModel, fetched_bytes, resolve_hub_model
from harness.errors import RequestError

Answer = Callable[..., Any]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[dict[str, Any]]]:
    """Return a function that lets the hub answer so; it returns the questions as they will come."""

    def answering(answer: Answer) -> list[dict[str, Any]]:
        questions: list[dict[str, Any]] = []

        def ask(_: Any, name: str, **asked: Any) -> Any:
            questions.append({"name": name, **asked})
            return answer()

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", ask)
        return questions

    return answering


def raising(error: Exception) -> Answer:
    def answer() -> Any:
        raise error

    return answer


def no_such(kind: Any) -> Exception:
    return kind("no such", response=SimpleNamespace(headers={}, request=None))


def holding(**sizes: int | None) -> Answer:
    """Answer with files by name, in which __ stands for a dot."""
    files = [SimpleNamespace(rfilename=n.replace("__", "."), size=s) for n, s in sizes.items()]
    return lambda: SimpleNamespace(siblings=files)


def test_a_revision_becomes_the_commit_that_the_hub_names(hub: Any) -> None:
    questions = hub(lambda: SimpleNamespace(sha="0123abc"))
    assert resolve_hub_model("org/name", "v2") == HubModel(commit="0123abc", snapshot=None)
    assert [(q["name"], q["revision"]) for q in questions] == [("org/name", "v2")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (HFValidationError("bad id\nmore"), "model=org/name is no Hugging Face id: bad id$"),
        (no_such(RepositoryNotFoundError), "model=org/name is neither a directory nor a model"),
        (
            no_such(RevisionNotFoundError),
            "model=org/name, model.revision=v2: the hub has the model",
        ),
        (ConnectionError("\n\nno route\nhost"), r"the hub cannot be reached \(no route\)"),
        (ConnectionError(), r"the hub cannot be reached \(ConnectionError\)"),
    ],
)
def test_what_the_hub_cannot_answer_is_refused_in_words(
    hub: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    hub(raising(error))
    with pytest.raises(RequestError, match=told):
        resolve_hub_model("org/name", "v2")


def test_where_there_is_no_network_the_cache_says_which_commit(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = str(tmp_path / "fedcba" / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: kept)
    hub(raising(ConnectionError("no route")))
    found = resolve_hub_model("org/name", None)
    assert found == HubModel(commit="fedcba", snapshot=tmp_path / "fedcba")


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        # transformers loads one kind of weights, safetensors before pickles, and the small files
        ("model", {"a__safetensors": 100, "a__bin": 90, "a__gguf": 80, "config__json": 3}, 103),
        ("model", {"a__bin": 90, "a__gguf": 80, "a__h5": 70, "config__json": 3}, 93),
        ("model", {"a__onnx": 90, "a__gguf": 80, "config__json": 3}, 173),
        ("model", {"a__pt": 90, "a__gguf": 80, "config__json": 3}, 173),
        ("space", {"a__bin": 90, "a__safetensors": 100, "a__json": 3}, 193),
        ("dataset", {"a__bin": 90, "a__safetensors": 100, "a__json": 3}, 193),
        ("model", {"a__safetensors": None, "config__json": 3}, 3),
    ],
)
def test_what_is_fetched_is_one_kind_of_weights_and_all_of_a_data_set(
    hub: Any, kind: str, files: dict[str, int | None], expected: int
) -> None:
    (question,) = [hub(holding(**files))]
    assert fetched_bytes("org/name", "main", kind) == expected
    assert question[0]["repo_type"] == kind
    assert question[0]["files_metadata"] is True


def test_what_nobody_tells_is_not_known(hub: Any) -> None:
    hub(raising(ConnectionError("no route")))
    assert fetched_bytes("org/name", None, "model") is None
    hub(lambda: SimpleNamespace())
    assert fetched_bytes("org/name", None, "model") == 0
