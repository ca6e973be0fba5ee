"""What is refused before a model is loaded, and what the data's fingerprint depends on."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.schema import DataConfig, DataForm, Template
from harness.data.check import check_data, data_fingerprint
from harness.data.sources import read_splits
from harness.errors import DataError

ROWS: list[object] = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)]


@pytest.fixture
def path(write_jsonl) -> str:
    return write_jsonl(ROWS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "exactly one of data.task .* must be given, got none of them"),
        ({"task": "facts", "hub": "a/b"}, "got data.task=facts, data.hub=a/b"),
        ({"task": "fact"}, "data.task=fact is no embedded task; .*near names: facts"),
        ({"task": "facts", "train_rows": 7}, "data.task=facts: train_rows=7 does not fit facts"),
        ({"task": "rule", "max_length": 7}, "data.max_length=7 must be at least 8"),
        ({"task": "rule", "train_rows": 0}, "data.train_rows=0 must be at least 1"),
        ({"task": "rule", "test_rows": -1}, "data.test_rows=-1 must be at least 0"),
        ({"hub": "../data/alpaca"}, "data.hub=../data/alpaca: no such directory"),
        ({"path": "nowhere/x.jsonl"}, "data.path=nowhere/x.jsonl: no such file; nowhere is no dir"),
        ({"hub": "a/b", "test_path": "x.jsonl"}, "data.test_path=x.jsonl: no such file"),
    ],
)
def test_a_wrong_source_or_number_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        check_data(DataConfig(**changes))


def test_the_smallest_numbers_that_may_be_given_are_taken():
    config = DataConfig(task="rule", train_rows=1, validation_rows=0, test_rows=0, max_length=8)
    check_data(config)
    splits = read_splits(config)
    assert (len(splits.train), splits.validation, splits.test) == (1, (), ())
    report = splits.report
    counts = (report.rows_read, report.train_rows, report.validation_rows, report.test_rows)
    assert counts == (1, 1, 0, 0)
    one = read_splits(replace(config, validation_rows=1, test_rows=2))
    assert (len(one.validation), len(one.test), one.report.rows_read) == (1, 2, 4)
    assert (one.report.rows_empty, one.report.rows_shared) == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "facts", "hub_config": "main"},
        {"task": "facts", "hub_split": "test"},
        {"task": "facts", "validation_path": "x.jsonl"},
        {"task": "facts", "prompt_column": "question"},
        {"task": "facts", "form": DataForm.text},
        {"path": "", "revision": "main"},
        {"path": "", "hub_split": "test"},
        {"path": "", "text_column": "body"},
        {"path": "", "messages_column": "turns"},
        {"path": "", "form": DataForm.messages, "prompt_column": "question"},
        {"path": "", "form": DataForm.text, "input_column": "input"},
        {"path": "", "form": DataForm.text, "template": Template.chatml},
        {"path": "", "system": "Be brief."},
        {"path": "", "template": Template.alpaca, "system": "Be brief."},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_key_that_would_be_ignored_is_refused(changes, path):
    """The last key of each case is the one without effect."""
    if "path" in changes:
        changes = {**changes, "path": path}
    with pytest.raises(DataError, match=rf"data\.{list(changes)[-1]}=.* would be ignored"):
        check_data(DataConfig(**changes))


def test_a_text_file_has_no_text_column(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\ntwo\n\nthree")
    config = DataConfig(path=str(tmp_path / "x.txt"), form=DataForm.text)
    check_data(config)
    with pytest.raises(DataError, match="text_column=body would be ignored"):
        check_data(replace(config, text_column="body"))


def test_a_local_directory_has_no_revision(tmp_path):
    with pytest.raises(DataError, match="revision=main would be ignored"):
        check_data(DataConfig(hub=str(tmp_path), revision="main"))


def test_a_data_file_is_no_hub_data_set(path):
    with pytest.raises(DataError, match=r"is a file; give it as data\.path"):
        check_data(DataConfig(hub=path))


def test_alpaca_cannot_render_a_conversation(path):
    config = DataConfig(path=path, form=DataForm.messages, template=Template.alpaca)
    with pytest.raises(DataError, match=r"alpaca .* cannot render data\.form=messages"):
        check_data(config)


def test_one_file_cannot_be_two_splits(path, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(path)
    config = DataConfig(path=path, test_path=str(tmp_path / "link.jsonl"))
    with pytest.raises(DataError, match=r"data\.test_path and data\.path are the same file"):
        check_data(config)


def test_a_malformed_row_of_the_validation_file_is_named(path, write_jsonl):
    validation = write_jsonl([*ROWS[:2], {"prompt": "p"}], "validation.jsonl")
    with pytest.raises(DataError, match=re.escape("validation.jsonl:3: column 'response'")):
        check_data(DataConfig(path=path, validation_path=validation))


def test_checking_and_reading_parse_once(path, monkeypatch):
    calls: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: calls.append(line) or loads(line))
    check_data(DataConfig(path=path))
    read_splits(DataConfig(path=path))
    assert len(calls) == len(ROWS)


def test_checking_imports_nothing_heavy(path):
    code = (
        "import sys\n"
        "from harness.config.schema import DataConfig\n"
        "from harness.data.check import check_data, data_fingerprint\n"
        f"for config in (DataConfig(path={path!r}), DataConfig(task='rule'), DataConfig(hub='a/b')):\n"
        "    check_data(config); data_fingerprint(config)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert run.stdout.strip() == "[]"


def test_the_fingerprint_follows_contents_not_paths(path, tmp_path):
    config = DataConfig(path=path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = shutil.copy(path, elsewhere / "another name.jsonl")
    assert data_fingerprint(DataConfig(path=str(copy))) == data_fingerprint(config)
    before = data_fingerprint(config)
    with Path(path).open("a") as stream:
        stream.write('{"prompt": "new", "response": "row"}\n')
    assert data_fingerprint(config) != before


def test_the_fingerprint_knows_which_file_is_which(path, write_jsonl):
    other = write_jsonl(ROWS[:5], "other.jsonl")
    config = DataConfig(path=path, validation_path=other)
    swapped = DataConfig(path=other, validation_path=path)
    as_test = DataConfig(path=path, test_path=other)
    assert len(set(map(data_fingerprint, (config, swapped, as_test)))) == 3


def test_a_fingerprint_is_a_hash_of_what_determines_the_rows(tmp_path):
    """Those of runs that there are already: a change makes all of them train again."""
    config = DataConfig(hub="a/b", revision="main", template=Template.tokenizer)
    parts = {"hub": "a/b", "hub_part": [None, "train", "main"], "hub_reader": 2}
    told = json.dumps({**parts, "chat_rendering": 2}, sort_keys=True)
    assert data_fingerprint(config) == hashlib.sha256(told.encode()).hexdigest()
    (tmp_path / "sub").mkdir()
    files = {"a.csv": b"x", "sub/b.csv": b"y"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    listed = "".join(f"{n}\0{hashlib.sha256(c).hexdigest()}\n" for n, c in files.items())
    parts = {"hub": hashlib.sha256(listed.encode()).hexdigest(), "hub_part": [None, "train", None]}
    told = json.dumps({**parts, "hub_reader": 2}, sort_keys=True)
    local = data_fingerprint(DataConfig(hub=str(tmp_path)))
    assert local == hashlib.sha256(told.encode()).hexdigest()


@pytest.mark.parametrize(
    ("version", "concerned"),
    [
        ("_CHAT_RENDERING", {"template": Template.tokenizer}),
        ("_HUB_READER", {"hub": "a/b", "task": None}),
    ],
)
def test_what_a_new_reader_changes_has_a_new_fingerprint_and_nothing_else(
    monkeypatch, version, concerned
):
    others = DataConfig(task="rule")
    changed = replace(others, **concerned)
    before = data_fingerprint(changed), data_fingerprint(others)
    monkeypatch.setattr(f"harness.data.check.{version}", 99)
    after = data_fingerprint(changed), data_fingerprint(others)
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize(
    "changes", [{"task": "dialect"}, {"train_rows": 8}, {"test_rows": 8}, {"split_seed": 1}]
)
def test_the_fingerprint_of_a_task_follows_what_makes_its_rows(changes):
    config = DataConfig(task="rule", train_rows=4, validation_rows=4, test_rows=4)
    assert data_fingerprint(replace(config, **changes)) != data_fingerprint(config)
    assert data_fingerprint(replace(config, max_length=64)) == data_fingerprint(config)


@pytest.mark.parametrize(
    "changes", [{"hub": "a/c"}, {"hub_config": "x"}, {"hub_split": "test"}, {"revision": "main"}]
)
def test_the_fingerprint_of_a_hub_data_set_follows_what_names_it(changes):
    config = DataConfig(hub="a/b")
    assert data_fingerprint(replace(config, **changes)) != data_fingerprint(config)


def test_the_fingerprint_of_a_directory_follows_its_files(tmp_path, path):
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        shutil.copy(path, directory / "train.jsonl")
    fingerprints = [data_fingerprint(DataConfig(hub=str(d))) for d in (first, second)]
    assert fingerprints[0] == fingerprints[1]
    (second / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert data_fingerprint(DataConfig(hub=str(second))) != fingerprints[0]
