"""Histories: parsed as they stand, kept in a packed copy for as long as that is fresh."""

import os
from pathlib import Path

import numpy as np
import pytest

from analysis import histories
from analysis.histories import History, read_histories

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


def test_a_fresh_copy_is_read_instead_of_the_file(out: Path, monkeypatch) -> None:
    cache = out / "cache"
    read_histories(out, ["a"], METRICS, cache)
    read_histories(out, ["b"], METRICS, cache)  # adds to what is kept
    monkeypatch.setattr(histories, "read_metrics", lambda path: pytest.fail(f"parsed {path}"))
    found = read_histories(out, ["a", "b"], METRICS, cache)
    np.testing.assert_equal(plain(found), EXPECTED)
    assert found["a"].num_damaged_lines == 1


def test_a_file_that_grew_is_parsed_again(out: Path) -> None:
    read_histories(out, ["b"], METRICS, out / "cache")
    path = write(out, "b", ['{"step": 7, "eval/loss": 1.0}\n', '{"step": 8, "eval/loss": 0.5}\n'])
    os.utime(path, ns=(1, 1))
    found = read_histories(out, ["b"], METRICS, out / "cache")
    assert plain(found)["b"]["eval/loss"] == [[7.0, 8.0], [1.0, 0.5]]


def test_a_damaged_copy_is_made_again_and_an_impossible_one_is_no_error(out: Path) -> None:
    cache = out / "cache"
    read_histories(out, ["b"], METRICS, cache)
    (copy,) = cache.iterdir()
    copy.write_bytes(copy.read_bytes()[:100])
    assert plain(read_histories(out, ["b"], METRICS, cache))["b"] == EXPECTED["b"]
    assert plain(read_histories(out, ["b"], METRICS, out / "runs" / "a" / "metrics.jsonl"))["b"]
