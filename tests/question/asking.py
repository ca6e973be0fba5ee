"""Questions written into files for a test."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import RequestError
from harness.question.load import load_question
from harness.question.points import Space
from harness.question.question import Question

QUICK = ["data=rule", "optim.steps=40", "tracker=none"]


def write_question(file: Path, **parts: Any) -> Path:
    """Write a question with these parts into `file`; the others are the least that works."""
    least = {"question": "Does it work?", "base": QUICK, "space": {"lora.rank": "choice(2, 8)"}}
    file.write_text(yaml.safe_dump(least | parts, sort_keys=False), encoding="utf-8")
    return file


def ask(directory: Path, *overrides: str, **parts: Any) -> Question:
    """Return the question with these parts as the overrides change it."""
    return load_question(str(write_question(directory / "asked.yaml", **parts)), overrides)


def refusal(directory: Path, *overrides: str, **parts: Any) -> str:
    """Return the words in which such a question is refused."""
    with pytest.raises(RequestError) as refused:
        ask(directory, *overrides, **parts)
    return str(refused.value)


def space_of(directory: Path, **entries: Any) -> Space:
    """Return the space with these entries; `__` in a key stands for a dot."""
    axes = {key.replace("__", "."): entry for key, entry in entries.items()}
    return ask(directory, space=axes, search={"method": "random", "trials": 1}).space
