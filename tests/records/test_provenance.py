"""Provenance against git and the system's own tools, in checkouts made for the purpose."""

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import pytest

from harness.records import provenance
from harness.records.provenance import code_diff, collect_provenance, git_state

REPOSITORY = Path(__file__).resolve().parents[2]


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("rank = 8\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_checkout(checkout: Path) -> None:
    state = git_state(checkout)
    assert state is not None
    assert state.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert (state.dirty, state.untracked, code_diff(checkout)) == (False, [], "")


def test_a_changed_checkout_keeps_the_diff_without_secrets(checkout: Path) -> None:
    (checkout / "code.py").write_text("rank = 16\napi_key = 'swordfish'\n")
    (checkout / "staged.py").write_text("alpha = 32\n")
    git(checkout, "add", "staged.py")
    (checkout / "notes with a space.txt").write_text("my own words\n")
    state = git_state(checkout)
    assert state is not None
    assert (state.dirty, state.untracked) == (True, ["notes with a space.txt"])
    diff = code_diff(checkout)
    assert "+rank = 16" in diff
    assert "+alpha = 32" in diff
    assert "+api_key = '[redacted]'" in diff
    assert "my own words" not in diff


def test_the_diff_applies_to_the_commit(checkout: Path) -> None:
    (checkout / "code.py").write_text("rank = 16\n")
    (checkout.parent / "code.diff").write_text(code_diff(checkout))
    git(checkout, "checkout", "-q", "--", ".")
    git(checkout, "apply", str(checkout.parent / "code.diff"))
    assert (checkout / "code.py").read_text() == "rank = 16\n"


def test_a_huge_diff_is_cut_at_a_line(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 'hundreds of thousands of lines'\n" * 100_000)
    diff = code_diff(checkout)
    assert 2**20 - 100 < len(diff) < 2**20 + 100
    assert diff.splitlines()[-2:] == [
        "+x = 'hundreds of thousands of lines'",
        "[cut after 1048576 bytes]",
    ]


def test_a_checkout_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("rank = 8\n")
    state = git_state(tmp_path)
    assert state is not None
    assert (state.commit, state.untracked, code_diff(tmp_path)) == (None, ["code.py"], "")


def test_no_git_is_no_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(None) is None
    assert git_state(checkout / "not there") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout) is None


def test_a_package_inside_another_repository_is_not_that_repository(checkout: Path) -> None:
    site = checkout / ".venv" / "site-packages"
    shutil.copytree(REPOSITORY / "harness", site / "harness")
    code = (
        "from harness.records.provenance import collect_provenance; print(collect_provenance().git)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=site, check=True
    )
    assert process.stdout == "None\n"


def test_what_is_recorded() -> None:
    record = collect_provenance(
        model_fingerprint="sha256:12",
        data_fingerprint="sha256:34",
        arguments=["harness", "run", "--token", "abcd1234efgh", "data.path=my rows.jsonl"],
    )
    assert record.packages["torch"] == version("torch")
    assert record.packages["hydra-core"] == version("hydra-core")
    assert record.python == sys.version.split()[0]
    assert record.host == socket.gethostname()
    assert record.ram_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert record.cpu_threads == len(os.sched_getaffinity(0))
    assert record.command == "harness run --token [redacted] 'data.path=my rows.jsonl'"
    assert (record.model_fingerprint, record.data_fingerprint) == ("sha256:12", "sha256:34")
    tree = record.as_tree()
    assert json.loads(json.dumps(tree)) == tree


def test_gpus_are_those_that_nvidia_smi_lists() -> None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    gpus = collect_provenance().gpus
    assert gpus is not None
    assert [f"{gpu.name}, {gpu.driver}" for gpu in gpus] == listed.splitlines()


def test_one_gpu_is_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 16 * 2**30

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: "A GPU",
        "nvmlDeviceGetMemoryInfo": lambda handle: Memory,
        "nvmlSystemGetDriverVersion": lambda: "600.1",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(provenance.pynvml, name, answer)
    assert provenance._gpus.__wrapped__() == [
        provenance.Gpu(name="A GPU", memory_bytes=17179869184, driver="600.1")
    ]


def test_collecting_imports_nothing_heavy_and_asks_git_and_drivers_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = """
        import sys
        from harness.records.provenance import collect_provenance
        collect_provenance()
        print({"torch", "transformers", "wandb"} & set(sys.modules))
    """
    process = subprocess.run(
        [sys.executable, "-c", dedent(code)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert process.stdout == "set()\n"
    first = collect_provenance()
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(provenance.pynvml, "nvmlInit", None)
    assert collect_provenance() == first


def test_a_module_is_named_as_it_was_run(tmp_path):
    (tmp_path / "shown.py").write_text(
        "from harness.records.provenance import collect_provenance\n"
        "print(collect_provenance(model_fingerprint='', data_fingerprint='').command)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "shown", "one", "two words"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "python -m shown one 'two words'"
