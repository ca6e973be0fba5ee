"""scores.jsonl: the scores of every row that a run was evaluated on, a JSON object a metric of a phase.

Keys: `phase` (before, after), `metric`, `rows` (of the split or the file of questions), `sums`, `weights`.
The metric is sum(sums) / sum(weights); a weight is a row's tokens where the metric counts tokens, else 1.
Must not import torch, transformers or wandb.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.parsing import Unreadable, read_json
from harness.records.run_directory import write_text

_MOST = 2.0**63
"""Beyond what any number in a file of ours may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """One metric, row by row: runs on the same rows can be compared row by row."""

    rows: tuple[int, ...]
    sums: tuple[float, ...]
    weights: tuple[int, ...]


def scores_tree(scores: Mapping[str, RowScores]) -> dict[str, Any]:
    """Return the scores of one phase as a tree, by metric."""
    return {
        metric: {"rows": list(of.rows), "sums": list(of.sums), "weights": list(of.weights)}
        for metric, of in scores.items()
        if all(map(math.isfinite, of.sums))
    }


def scores_of_tree(tree: Any) -> dict[str, RowScores]:
    """Return the scores of one phase by metric; what has another shape is left out."""
    found = {}
    for metric, lists in tree.items() if isinstance(tree, dict) else ():
        line = {"phase": "", "metric": metric} | (lists if isinstance(lists, dict) else {})
        if _is_line(line):
            found[metric] = _scores_of(line)
    return found


def keep_scores(path: Path, phase: str, scores: Mapping[str, RowScores]) -> None:
    """Write the scores of one phase in place of any that the phase has left before.

    A metric with a row that is no finite number is left out: its mean in the record says so.
    """
    kept = {key: of for key, of in _read(path).items() if key[0] != phase}
    kept |= {(phase, metric): of for metric, of in scores.items()}
    lines = [
        json.dumps(
            {"phase": key[0], "metric": key[1], "rows": of.rows, "sums": of.sums}
            | {"weights": of.weights}
        )
        for key, of in kept.items()
        if all(map(math.isfinite, of.sums))
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_scores(path: Path, phase: str) -> dict[str, RowScores]:
    """Return the scores of one phase by metric; none of a missing file or of a line of another shape."""
    return {metric: of for (of_phase, metric), of in _read(path).items() if of_phase == phase}


def _read(path: Path) -> dict[tuple[str, str], RowScores]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found = {}
    for text in texts:
        try:
            tree = read_json(text)
        except Unreadable:
            continue
        if _is_line(tree):
            found[tree["phase"], tree["metric"]] = _scores_of(tree)
    return found


def _scores_of(line: Mapping[str, Any]) -> RowScores:
    return RowScores(**{name: tuple(line[name]) for name in ("rows", "sums", "weights")})


def _is_line(tree: Any) -> bool:
    """Whether a JSON value is a line of ours; every row of long ones is looked at, so without `shaped`."""
    if not isinstance(tree, dict) or tree.keys() != {"phase", "metric", "rows", "sums", "weights"}:
        return False
    lists = [tree["rows"], tree["sums"], tree["weights"]]
    return (
        all(isinstance(tree[name], str) for name in ("phase", "metric"))
        and all(isinstance(each, list) for each in lists)
        and len({len(each) for each in lists}) == 1
        and {type(value) for value in (*tree["rows"], *tree["weights"])} <= {int}
        and {type(value) for value in tree["sums"]} <= {int, float}
        and all(0 <= weight < _MOST for weight in tree["weights"])
        and all(
            abs(value) < _MOST for value in (*tree["rows"], *tree["sums"])
        )  # nor infinite, nor NaN
    )
