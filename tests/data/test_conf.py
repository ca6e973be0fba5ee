"""Every option of the `data` group: its keys exist, its values differ from the defaults, it works."""

from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness.config.schema import DataConfig
from harness.data.check import check_data
from harness.data.example import Example, pair
from harness.data.sources import read_splits

OPTIONS = sorted((Path(__file__).resolve().parents[2] / "conf" / "data").glob("*.yaml"))
FIELDS = {field.name: field for field in fields(DataConfig)}


def _composed(file: Path, **given: Any) -> DataConfig:
    """Merge one option as Hydra does, with what a user adds."""
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.load(file), given)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, DataConfig)
    return config


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _option(name: str) -> Path:
    return next(file for file in OPTIONS if file.stem == name)


def test_the_options_are_there():
    names = "alpaca alpaca_cleaned chat comments dialect facts hub instructions pairs qa quotes rule shawgpt"
    assert [file.stem for file in OPTIONS] == [*names.split(), "skills", "text", "viewer_comments"]


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_an_option_holds_only_fields_and_only_what_differs(file):
    option = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(option, dict)
    config = _composed(file)
    for key, value in option.items():
        assert key in FIELDS
        default = FIELDS[key].default
        assert default is not MISSING
        assert getattr(config, key) != default
        if isinstance(default, Enum):
            assert value in type(default).__members__


@pytest.mark.parametrize("name", ["facts", "rule", "dialect", "hub", "viewer_comments"])
def test_an_option_with_a_source_needs_nothing_else(name):
    check_data(_composed(_option(name)))


@pytest.mark.parametrize(
    ("name", "row", "example"),
    [
        ("pairs", {"prompt": "u", "response": "a"}, pair("u", "a")),
        ("chat", {"messages": [_turn("user", "u"), _turn("assistant", "a")]}, pair("u", "a")),
        ("alpaca", {"instruction": "u", "input": "i", "output": "a"}, pair("u", "a", "i")),
        ("qa", {"id": 7, "question": "u", "answer": "a"}, pair("u", "a")),
        ("comments", {"id": "yt-0", "comment": "u", "response": "a"}, pair("u", "a")),
        ("text", {"text": "Once."}, Example(text="Once.")),
    ],
)
def test_an_option_reads_rows_of_its_kind(write_jsonl, name, row, example):
    config = _composed(_option(name), path=write_jsonl([row] * 3))
    check_data(config)
    splits = read_splits(config)
    assert splits.report.rows_read == 3
    assert set(splits.train) == {example}
