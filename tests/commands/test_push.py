"""`harness push` against a stand-in hub on loopback: what is sent, and what never is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.hub_server import Hub, hub_server

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `harness export` leaves it."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# it\n")
    (folder / "adapter_config.json").write_text('{"r": 8, "pad_token": "<pad>"}')
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {"api_key=sk-": 1}}))
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def push(hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "harness", "push", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **home, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"},
        timeout=120,
    )


def test_a_folder_arrives_whole_in_a_private_repository(folder: Path) -> None:
    with hub_server() as hub:
        done = push(hub, str(folder), "me/it", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["url"] == f"{hub.url}/me/it"
        (created,) = hub.created
        assert created["visibility"] == "private"
        assert hub.tokens == {f"Bearer {TOKEN}", ""} or hub.tokens == {f"Bearer {TOKEN}"}
        sent = {name: content for name, content in hub.files.items() if name != ".gitattributes"}
        assert sent == {file.name: file.read_bytes() for file in folder.iterdir()}
        assert TOKEN not in done.stdout + done.stderr


def test_rows_arrive_as_a_data_set(tmp_path: Path) -> None:
    from harness.cli.main import dispatch

    place = tmp_path / "rows"
    assert dispatch(["data", "data=viewer_comments", "--out", str(place), "--license", "mit"]) == 0
    with hub_server() as hub:
        refused = push(hub, str(place), "me/rows")
        assert refused.returncode == 2
        assert "--data" in refused.stderr
        assert not hub.created
        done = push(hub, str(place), "me/rows", "--data", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["url"] == f"{hub.url}/datasets/me/rows"
        (created,) = hub.created
        assert (created["type"], created["visibility"]) == ("dataset", "private")
        assert {path.partition("/")[2].partition("/")[0] for path in hub.commits} == {"datasets"}
        names = ("README.md", "data/train.jsonl", "data/validation.jsonl")
        assert all(hub.files[name] == (place / name).read_bytes() for name in names)


def test_an_export_is_not_pushed_as_rows(folder: Path) -> None:
    done = push(Hub(url="http://127.0.0.1:9"), str(folder), "me/it", "--data")
    assert done.returncode == 2
    assert "holds no rows" in done.stderr


def test_a_folder_with_something_like_a_key_is_not_sent(folder: Path) -> None:
    (folder / "notes.txt").write_text(f"first line\nexport HF_TOKEN={TOKEN}\n")
    with hub_server() as hub:
        done = push(hub, str(folder), "me/it")
        assert done.returncode == 2
        assert "notes.txt:2" in done.stderr
        assert TOKEN not in done.stderr
        assert not hub.created
        assert not hub.files


def test_a_hub_that_refuses_is_said_in_a_sentence(folder: Path) -> None:
    with hub_server() as hub:
        hub.refuses = 403
        done = push(hub, str(folder), "me/it")
        assert done.returncode == 1
        assert "has not taken" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["me/it"], "OWNER/NAME"),
        (["{folder}", "nonsense"], "OWNER/NAME"),
        (["{folder}/..", "me/it"], "no README.md"),
    ],
)
def test_what_cannot_be_pushed_is_refused(folder: Path, words: list[str], reason: str) -> None:
    done = push(Hub(url="http://127.0.0.1:9"), *(word.format(folder=folder) for word in words))
    assert done.returncode == 2
    assert reason in done.stderr
