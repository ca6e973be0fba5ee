"""Runs on tiny random models and files of words, from the command's overrides to the record."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.commands.run import run
from harness.config.compose import compose_run
from harness.records.record import Record

WORDS = [
    "a",
    "the",
    "big",
    "red",
    "dog",
    "cat",
    "park",
    "happy",
    "saw",
    "day",
    "sad",
    "boy",
    "girl",
    "one",
    "mom",
    "house",
    "tree",
    "little",
    "play",
    "went",
]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def words(count: int, seed: int) -> str:
    """Return so many random words."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))


def pairs(counts: Iterable[int]) -> list[dict[str, Any]]:
    """Return pairs whose responses have so many words."""
    return [
        {"prompt": words(2, 1000 + index), "response": words(count, index)}
        for index, count in enumerate(counts)
    ]


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(out: Path, *overrides: str) -> tuple[Record, list[float]]:
    """Run what the overrides say without evaluation before; return the record and the losses by step."""
    record, directory = run(
        compose_run(
            [
                "lora.rank=2",
                "eval=loss",
                "eval.before=false",
                "tracker=none",
                f"paths.out={out}",
                *overrides,
            ]
        )
    )
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    return record, [line["train/loss"] for line in lines if "train/loss" in line]
