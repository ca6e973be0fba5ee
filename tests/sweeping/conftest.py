"""A tiny world to sweep in: a random Llama, a file of sums, and questions about them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.question.load import load_question
from tests.random_models import LLAMA, save_random_model
from tests.sweeping.joined import Member

STEPS = 8


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A directory with a tiny random model and a file of sums."""
    root = tmp_path_factory.mktemp("world")
    save_random_model(root / "tiny", "llama", **LLAMA)
    rows = [
        {"prompt": f"How much are {i} and {j}?", "response": f"{i} and {j} are {i + j}."}
        for i in range(3, 9)
        for j in range(10, 20)
    ]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def ask(world, tmp_path, served_workers) -> Callable[..., Path]:
    """Write a question about the tiny world into a file; every run keeps a checkpoint of each step.

    It has one worker, since pytest's own are the parallelism. Costs are not measured, unless `search.probe`
    asks for it: most tests count runs and steps.
    """

    def write(name: str = "small", *, base: tuple[str, ...] = (), **parts: Any) -> Path:
        parts["search"] = {"probe": False} | parts.get("search", {})
        parts["resources"] = {"devices": "cpu"} | parts.get("resources", {})
        question = {
            "question": "Does it work?",
            "expect": "Yes.",
            "base": [
                f"model={world / 'tiny'}",
                *("data=pairs", f"data.path={world / 'sums.jsonl'}"),
                *("data.validation_rows=8", "data.test_rows=8", "data.max_length=64"),
                *(f"optim.steps={STEPS}", "optim.batch_size=4", "eval=loss", "tracker=none"),
                "checkpoint.every_steps=1",
                f"paths.cache={world / 'cache'}",
                f"paths.out={tmp_path / 'out'}",
                *base,
            ],
            "space": {"lora.rank": "choice(1,2)"},
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(question | parts, sort_keys=False))
        return file

    return write


@pytest.fixture
def members(ask, postgres_database):
    """Make members of one sweep of three cells."""
    made: list[Member] = []

    def make(name: str, **parts) -> Member:
        space = {"lora.rank": "choice(1,2,4)"}
        question = load_question(
            str(ask("shared", **({"space": space} | parts))), [f"study.storage={postgres_database}"]
        )
        made.append(Member(question, name, postgres_database))
        return made[-1]

    yield make
    for each in made:
        each.study.close()
