"""A really pretrained tiny model and real questions for the tests of evaluation."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first test imports a library that reads it

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data beside the project ({SHARED.name}/)")
    return SHARED.resolve()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Keep torch on one thread: the matrices are tiny, and tests run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(shared):
    """The tokenizer of stories260K: 512 tokens, BOS 1, EOS 2."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K")


@pytest.fixture(scope="session")
def model(shared):
    """stories260K in float32 and evaluation mode; context 512."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = shared / "models" / "stories260K"
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture
def write_jsonl(tmp_path) -> Callable[..., str]:
    """Return a function that writes rows as a .jsonl file and returns its path."""

    def write(rows: list[object], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
