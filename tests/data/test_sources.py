"""How a source is divided: deterministic, disjoint, at most a quarter held out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.schema import DataConfig, DataForm, Split
from harness.data.check import check_data, data_fingerprint
from harness.data.example import pair
from harness.data.sources import read_splits
from harness.errors import DataError


def _rows(count: int, start: int = 0) -> list[object]:
    return [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(start, start + count)]


def _numbers(examples) -> list[int]:
    return [int(example.response[1:]) for example in examples]


def test_a_split_is_pinned_for_ever(write_jsonl):
    """Held-out rows are those of smallest sha256("split/<seed>/<index>"), by coreutils' sha256sum."""
    config = DataConfig(path=write_jsonl(_rows(8)), validation_rows=2, test_rows=2)
    splits = read_splits(config)
    assert _numbers(splits.test) == [1, 5]
    assert _numbers(splits.validation) == [2, 4]
    assert _numbers(splits.train) == [0, 3, 6, 7]


def test_splits_are_disjoint_and_lose_nothing(write_jsonl):
    splits = read_splits(DataConfig(path=write_jsonl(_rows(1000))))
    parts = [set(_numbers(part)) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [600, 200, 200]
    assert len(set.union(*parts)) == 1000


def test_another_seed_gives_other_rows(write_jsonl):
    config = DataConfig(path=write_jsonl(_rows(1000)))
    others = read_splits(replace(config, split_seed=1))
    shared = set(others.test) & set(read_splits(config).test)
    assert 15 < len(shared) < 70  # 40 are expected of two draws of 200 from 1000


def test_at_most_a_quarter_is_held_out(write_jsonl):
    splits = read_splits(DataConfig(path=write_jsonl(_rows(59))))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (31, 14, 14)


def test_fewer_training_rows_are_a_subset(write_jsonl):
    config = DataConfig(path=write_jsonl(_rows(100)))
    few = set(_numbers(read_splits(replace(config, train_rows=10)).train))
    more = set(_numbers(read_splits(replace(config, train_rows=20)).train))
    assert len(few) == 10
    assert len(more) == 20
    assert few < more


def test_given_files_supply_their_own_splits(write_jsonl):
    config = DataConfig(
        path=write_jsonl(_rows(10)),
        validation_path=write_jsonl(_rows(30, start=100), "validation.jsonl"),
        test_path=write_jsonl(_rows(6, start=200), "test.jsonl"),
        validation_rows=20,
    )
    splits = read_splits(config)
    assert _numbers(splits.train) == list(range(10))
    assert _numbers(splits.test) == list(range(200, 206))
    validation = _numbers(splits.validation)
    assert len(validation) == 20
    assert validation == sorted(validation)
    assert set(validation) <= set(range(100, 130))


def test_a_repeated_row_never_stands_in_two_splits(write_jsonl):
    config = DataConfig(path=write_jsonl(_rows(50) * 4), validation_rows=20, test_rows=20)
    splits = read_splits(config)
    parts = [set(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(splits.test) == len(splits.validation) == 20
    report = splits.report
    used = report.train_rows + report.validation_rows + report.test_rows
    assert report.rows_shared > 0
    assert used + report.rows_shared == report.rows_read == 200


def test_a_training_row_that_a_given_file_repeats_is_left_out(write_jsonl):
    config = DataConfig(
        path=write_jsonl(_rows(40)), test_path=write_jsonl(_rows(5, start=38), "test.jsonl")
    )
    splits = read_splits(config)
    assert _numbers(splits.test) == [38, 39, 40, 41, 42]
    assert not {38, 39} & set(_numbers(splits.train) + _numbers(splits.validation))


def test_an_empty_split_is_refused_where_it_is_needed(write_jsonl):
    splits = read_splits(DataConfig(path=write_jsonl(_rows(3))))
    assert len(splits.of(Split.train)) == 3
    with pytest.raises(DataError, match=r"the validation split of rows\.jsonl is empty"):
        splits.of(Split.validation)


def test_a_source_that_leaves_no_training_row_is_refused(write_jsonl):
    test = write_jsonl(_rows(3), "test.jsonl")
    with pytest.raises(DataError, match=r"the train split .* 3 left out"):
        read_splits(DataConfig(path=write_jsonl(_rows(3)), test_path=test))


def test_real_alpaca_files(shared):
    path = shared / "instruct" / "alpaca_2k_seed0.jsonl"
    config = DataConfig(
        path=str(path),
        validation_path=str(shared / "instruct" / "alpaca_eval500_seed0.jsonl"),
        prompt_column="instruction",
        input_column="input",
        response_column="output",
    )
    splits = read_splits(config)
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    expected = {pair(row["instruction"], row["output"], row["input"]) for row in raw}
    assert set(splits.train) | set(splits.test) == expected
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1800, 200, 200)
    assert not expected & set(splits.validation)


@pytest.mark.parametrize("name", ["facts", "rule", "dialect"])
def test_an_embedded_task_makes_the_rows_asked_for(name):
    config = DataConfig(task=name, train_rows=40, validation_rows=7, test_rows=0)
    splits = read_splits(config)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 7, 0)
    assert not {e.turns[0] for e in splits.train} & {e.turns[0] for e in splits.validation}
    assert read_splits(replace(config, split_seed=1)).train != splits.train


@pytest.fixture
def hub_directory(tmp_path, monkeypatch):
    """A data set directory, and a cache of `datasets` that the test leaves nothing outside of."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "set"
    directory.mkdir()
    rows = [{"messages": [{"role": "user", "content": f"q{i}"},
                          {"role": "assistant", "content": f"r{i}"}]} for i in range(12)]  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(str(directory / "train.parquet"))
    return directory


def test_a_local_hub_directory_is_read_through_datasets(hub_directory):
    splits = read_splits(DataConfig(hub=str(hub_directory), form=DataForm.messages))
    numbers = [_numbers(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in numbers] == [6, 3, 3]
    assert sorted(number for part in numbers for number in part) == list(range(12))


def test_a_hub_row_is_named_by_its_number(hub_directory):
    with pytest.raises(DataError, match=r"\(train\), row 1: column 'prompt' is missing"):
        read_splits(DataConfig(hub=str(hub_directory)))


def test_a_hub_split_that_is_missing_is_refused(hub_directory):
    config = DataConfig(hub=str(hub_directory), hub_split="trian", form=DataForm.messages)
    with pytest.raises(DataError, match=r"could not be loaded .*data.hub_split=trian"):
        read_splits(config)


def test_a_source_is_read_and_divided_once_however_often_it_is_asked_for(write_jsonl, monkeypatch):
    config = DataConfig(path=write_jsonl(_rows(40)), validation_rows=4, test_rows=4)
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])
    check_data(config)
    first = data_fingerprint(config)
    assert read_splits(config) is read_splits(replace(config))
    assert read == [Path(config.path or "").resolve()]

    write_jsonl(_rows(8))  # into the same file
    assert len(read_splits(config).train) == 8 - 2 - 2
    assert data_fingerprint(config) != first
    assert len(read) == 2
