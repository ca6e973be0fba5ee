"""Prepared data: one row length, a report of everything left out, and a cache that can be trusted."""

import logging
import os
from dataclasses import replace

import pytest
import torch

from harness.config.schema import DataConfig, LossOn, Split, Template
from harness.data import prepare
from harness.data.check import data_fingerprint
from harness.data.prepare import PreparedData, prepare_data
from harness.data.rows import NO_LOSS
from harness.data.sources import read_splits
from harness.data.tokenize import encode
from harness.errors import DataError

ROWS: list[object] = [
    {"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n)))} for n in range(1, 41)
]


@pytest.fixture
def config(write_jsonl) -> DataConfig:
    return DataConfig(path=write_jsonl(ROWS), validation_rows=8, test_rows=6)


def _tensors(prepared: PreparedData) -> list[torch.Tensor | None]:
    return [getattr(prepared.rows(split), name) for split in Split for name in prepare._TENSORS]


def _assert_same(first: PreparedData, second: PreparedData) -> None:
    for a, b in zip(_tensors(first), _tensors(second), strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and a.equal(b))
    assert first.report == second.report
    assert first.splits == second.splits


def test_rows_are_those_of_each_split_at_one_length(config, byte_tokenizer, tmp_path):
    prepared = prepare_data(config, byte_tokenizer, "t", tmp_path)
    splits = read_splits(config)
    encoded = {split: encode(splits.of(split), config, byte_tokenizer).rows for split in Split}
    longest = max(len(row) for rows in encoded.values() for row in rows)
    for split, expected in encoded.items():
        rows = prepared.rows(split)
        assert rows.row_length == (longest + 7) // 8 * 8
        for index, row in enumerate(expected):
            assert rows.input_ids_NT[index, : len(row)].tolist() == row.ids
    assert prepared.fingerprint == data_fingerprint(config)


def test_the_report_adds_up(write_jsonl, byte_tokenizer, tmp_path):
    rows = [*ROWS, {"prompt": "p" * 300, "response": "a"}, {"prompt": "p", "response": ""}]
    config = DataConfig(path=write_jsonl(rows), validation_rows=0, test_rows=0, max_length=64)
    report = prepare_data(config, byte_tokenizer, "t", tmp_path).report.as_dict()
    assert report["rows_read"] == report["train_rows"] == 41
    assert report["rows_empty"] == 1
    train = report["splits"]["train"]
    whole = encode(read_splits(config).train, replace(config, max_length=4096), byte_tokenizer).rows
    assert train["cut"] == sum(len(row) > 64 for row in whole) > 1
    assert train["dropped"] == 1
    assert (train["examples"], train["rows"], train["row_length"]) == (41, 40, 64)
    kept = [row for row in whole if len(row) < 300]
    assert train["tokens"] == sum(min(len(row), 64) for row in kept)
    learned = sum(t != NO_LOSS for row in kept for t in row.targets[:63])
    assert train["loss_tokens"] == learned
    assert train["padding_share"] == pytest.approx(1 - train["tokens"] / (40 * 64))
    assert report["splits"]["validation"]["padding_share"] is None


def test_training_rows_are_packed_and_held_out_rows_padded(config, byte_tokenizer, tmp_path):
    packed = prepare_data(
        replace(config, packing=True, max_length=160), byte_tokenizer, "t", tmp_path
    )
    assert packed.train.segments_NT is not None
    assert packed.train.row_length == 160
    assert len(packed.train) < packed.report.source.train_rows == 26
    assert packed.validation.segments_NT is None
    assert (len(packed.validation), len(packed.test)) == (8, 6)
    assert packed.validation.row_length == packed.test.row_length < 160


@pytest.mark.parametrize("packing", [False, True])
def test_a_second_time_nothing_is_tokenized(config, byte_tokenizer, tmp_path, monkeypatch, packing):
    config = replace(config, packing=packing)
    first = prepare_data(config, byte_tokenizer, "t", tmp_path)
    monkeypatch.setattr(prepare, "encode", lambda *_: pytest.fail("tokenized again"))
    _assert_same(prepare_data(config, byte_tokenizer, "t", tmp_path), first)


@pytest.mark.parametrize(
    "changes",
    [
        {"template": Template.chatml},
        {"template": Template.chatml, "system": "Be brief."},
        {"loss_on": LossOn.all},
        {"max_length": 40},
        {"packing": True},
        {"split_seed": 1},
        {"train_rows": 5},
        {"validation_rows": 7},
        {"response_column": "prompt"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_whatever_changes_the_rows_is_tokenized_anew(config, byte_tokenizer, tmp_path, changes):
    changed = replace(config, **changes)
    prepare_data(config, byte_tokenizer, "t", tmp_path / "used")
    prepare_data(replace(config, template=Template.chatml), byte_tokenizer, "t", tmp_path / "used")
    fresh = prepare_data(changed, byte_tokenizer, "t", tmp_path / "fresh")
    _assert_same(prepare_data(changed, byte_tokenizer, "t", tmp_path / "used"), fresh)


def test_another_tokenizer_is_another_form(config, byte_tokenizer, tmp_path):
    for fingerprint in ("one", "two"):
        prepare_data(config, byte_tokenizer, fingerprint, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_cache_is_made_again(config, byte_tokenizer, tmp_path, damage, caplog):
    cache = tmp_path / "cache"
    first = prepare_data(config, byte_tokenizer, "t", cache)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    broken = {
        "truncated": content[:-8],
        "flipped": content[:-4] + bytes([content[-4] ^ 1]) + content[-3:],
        "empty": b"",
        "other": b"not safetensors at all",
    }[damage]
    file.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        _assert_same(prepare_data(config, byte_tokenizer, "t", cache), first)
    assert "is damaged" in caplog.text
    caplog.clear()
    _assert_same(prepare_data(config, byte_tokenizer, "t", cache), first)
    assert not caplog.text


def test_a_write_that_fails_is_named_leaves_nothing_and_loses_no_row(
    config, byte_tokenizer, tmp_path, monkeypatch, caplog
):
    kept = prepare_data(config, byte_tokenizer, "t", tmp_path / "other")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with caplog.at_level(logging.WARNING):
        _assert_same(prepare_data(config, byte_tokenizer, "t", tmp_path / "cache"), kept)
    assert list((tmp_path / "cache").iterdir()) == []
    assert "cannot be kept" in caplog.text
    assert "disk full" in caplog.text


def test_prompts_that_leave_no_room_are_refused(write_jsonl, byte_tokenizer, tmp_path):
    rows: list[object] = [{"prompt": "p" * 100, "response": f"{n}"} for n in range(5)]
    config = DataConfig(path=write_jsonl(rows), max_length=32)
    with pytest.raises(DataError, match=r"fills data\.max_length=32 by itself"):
        prepare_data(config, byte_tokenizer, "t", tmp_path)


def test_an_empty_split_is_refused_where_it_is_asked_for(config, byte_tokenizer, tmp_path):
    prepared = prepare_data(replace(config, test_rows=0), byte_tokenizer, "t", tmp_path)
    with pytest.raises(DataError, match=r"the test split of rows.jsonl is empty.*data\.test_rows"):
        prepared.rows(Split.test)
