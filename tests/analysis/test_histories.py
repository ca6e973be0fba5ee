"""Histories: from metrics.jsonl as it stands, or from its columns for as long as they fit it."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.histories import History, read_histories
from harness.records.columns import columns_path, make_columns

METRICS = ("train/loss", "eval/loss")


def write(out: Path, run_id: str, lines: list[str]) -> Path:
    path = out / "runs" / run_id / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "a",
        [
            '{"step": 1, "train/loss": 3.0}\n',
            '{"step": 2, "train/loss": "NaN", "eval/loss": 2.5}\n',
            '{"step": 3, "train/loss": null}\n',
            '{"step": 4, "tr',
        ],
    )
    write(tmp_path, "b", ['{"step": 7, "eval/loss": 1.0}\n'])
    return tmp_path


def plain(found: dict[str, History]) -> dict[str, dict[str, list[list[float]]]]:
    return {
        run_id: {m: [part.tolist() for part in curve] for m, curve in history.curves.items()}
        for run_id, history in found.items()
    }


EXPECTED = {
    "a": {"train/loss": [[1.0, 2.0], [3.0, float("nan")]], "eval/loss": [[2.0], [2.5]]},
    "b": {"eval/loss": [[7.0], [1.0]]},
}


def test_points_are_read_torn_lines_counted_and_missing_runs_left_out(out: Path) -> None:
    found = read_histories(out, ["a", "b", "never-run"], METRICS)
    np.testing.assert_equal(plain(found), EXPECTED)
    assert found["a"].num_damaged_lines == 1


def test_columns_are_read_instead_of_the_rows_and_say_the_same(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id in ("a", "b"):
        make_columns(out / "runs" / run_id / "metrics.jsonl", keep=True)
    monkeypatch.setattr(json, "loads", only_about_columns)
    found = read_histories(out, ["a", "b"], METRICS)
    np.testing.assert_equal(plain(found), EXPECTED)
    assert found["a"].num_damaged_lines == 1


def only_about_columns(text: bytes) -> object:
    assert b'"byteorder"' in text, f"a row was parsed: {text!r}"
    return json.JSONDecoder().decode(text.decode())


def test_columns_are_kept_of_files_that_grow_no_more(out: Path) -> None:
    growing, still = (out / "runs" / run_id / "metrics.jsonl" for run_id in ("a", "b"))
    os.utime(still, ns=(1, 1))
    read_histories(out, ["a", "b"], METRICS)
    assert columns_path(still).exists()
    assert not columns_path(growing).exists()


def test_a_file_that_changed_is_parsed_again(out: Path) -> None:
    path = out / "runs" / "b" / "metrics.jsonl"
    make_columns(path, keep=True)
    kept = path.stat().st_mtime_ns
    write(out, "b", ['{"step": 7, "eval/loss": 1.0}\n', '{"step": 8, "eval/loss": 0.5}\n'])
    os.utime(path, ns=(kept, kept))  # longer
    assert plain(read_histories(out, ["b"], METRICS))["b"]["eval/loss"] == [[7.0, 8.0], [1.0, 0.5]]
    make_columns(path, keep=True)
    path.write_text(path.read_text().replace("0.5", "0.6"))
    os.utime(path, ns=(1, 1))  # of the same length
    assert plain(read_histories(out, ["b"], METRICS))["b"]["eval/loss"][1] == [1.0, 0.6]


@pytest.mark.parametrize("at", [0, 1, 20, -1, -8, -60])
def test_columns_with_a_changed_byte_are_not_believed(out: Path, at: int) -> None:
    path = out / "runs" / "a" / "metrics.jsonl"
    make_columns(path, keep=True)
    content = bytearray(columns_path(path).read_bytes())
    content[at] ^= 0x41
    columns_path(path).write_bytes(content)
    np.testing.assert_equal(plain(read_histories(out, ["a"], METRICS))["a"], EXPECTED["a"])


@pytest.mark.parametrize("size", [0, 1, 40, -1, -9])
def test_columns_that_are_cut_are_not_believed(out: Path, size: int) -> None:
    path = out / "runs" / "a" / "metrics.jsonl"
    make_columns(path, keep=True)
    columns_path(path).write_bytes(columns_path(path).read_bytes()[:size])
    np.testing.assert_equal(plain(read_histories(out, ["a"], METRICS))["a"], EXPECTED["a"])


def test_columns_that_cannot_be_kept_cost_nothing(out: Path) -> None:
    path = out / "runs" / "b" / "metrics.jsonl"
    columns_path(path).mkdir()
    make_columns(path, keep=True)
    assert plain(read_histories(out, ["b"], METRICS))["b"] == EXPECTED["b"]
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []


def test_a_run_without_a_file_does_not_hide_the_next(out: Path) -> None:
    assert list(read_histories(out, ["missing", "b", "a", "b"], METRICS)) == ["b", "a"]


@pytest.mark.parametrize(("seconds", "kept"), [(3600, True), (90, True), (10, False), (0, False)])
def test_a_file_grows_no_more_when_it_has_been_still_for_a_minute(
    out: Path, seconds: int, kept: bool
) -> None:
    path = out / "runs" / "b" / "metrics.jsonl"
    before = time.time() - seconds
    os.utime(path, (before, before))
    read_histories(out, ["b"], METRICS)
    assert columns_path(path).exists() is kept
