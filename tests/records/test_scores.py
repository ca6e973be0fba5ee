"""scores.jsonl: what a phase leaves is read back, and what is no line of it costs the others nothing."""

import json
from pathlib import Path

from harness.records.scores import (
    RowScores,
    keep_scores,
    read_scores,
    scores_of_tree,
    scores_tree,
)

LOSS = RowScores(rows=(0, 2), sums=(1.5, 0.25), weights=(3, 1))
MATCH = RowScores(rows=(0, 1), sums=(1.0, 0.0), weights=(1, 1))


def test_a_phase_replaces_its_own_scores_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    keep_scores(path, "before", {"eval/loss": MATCH})
    keep_scores(path, "after", {"eval/loss": MATCH, "eval/exact_match": MATCH})
    keep_scores(path, "after", {"eval/loss": LOSS})
    assert read_scores(path, "before") == {"eval/loss": MATCH}
    assert read_scores(path, "after") == {"eval/loss": LOSS}


def test_a_missing_file_and_lines_of_another_shape_have_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    assert read_scores(path, "after") == {}
    good = {"phase": "after", "metric": "eval/loss", "rows": [0], "sums": [1], "weights": [2]}
    others = [
        *("", "[", "[]", "null", "1"),
        *(json.dumps({k: v for k, v in good.items() if k != key}) for key in good),
        *(json.dumps(good | {key: "x"}) for key in ("rows", "sums", "weights")),
        *(json.dumps(good | {key: [1, 2]}) for key in ("rows", "sums", "weights")),
        json.dumps(good | {"rows": [True]}),
        json.dumps(good | {"sums": ["NaN"]}),
        json.dumps(good | {"weights": [-1]}),
        json.dumps(good | {"more": 1}),
    ]
    path.write_text("\n".join([*others, json.dumps(good), "{torn"]))
    found = read_scores(path, "after")
    assert found == {"eval/loss": RowScores(rows=(0,), sums=(1,), weights=(2,))}


def test_a_metric_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    lost = RowScores(rows=(0, 1), sums=(float("nan"), 1.0), weights=(1, 1))
    keep_scores(path, "after", {"eval/loss": lost, "eval/exact_match": MATCH})
    assert read_scores(path, "after") == {"eval/exact_match": MATCH}


def test_scores_are_a_tree_and_back_and_what_has_another_shape_is_left_out() -> None:
    lost = RowScores(rows=(0,), sums=(float("inf"),), weights=(1,))
    tree = scores_tree({"eval/loss": LOSS, "eval/exact_match": MATCH, "eval/lost": lost})
    assert json.loads(json.dumps(tree)) == tree
    assert scores_of_tree(tree) == {"eval/loss": LOSS, "eval/exact_match": MATCH}
    wrong = [{"rows": [0]}, {"rows": [0], "sums": ["x"], "weights": [1]}, [], None]
    assert scores_of_tree(dict(zip("abcd", wrong, strict=True)) | tree) == scores_of_tree(tree)
    assert scores_of_tree([]) == scores_of_tree(None) == {}
