"""The histories of runs: their columns (`harness.records.columns`), or metrics.jsonl where there are none."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.records.columns import make_columns, read_columns

_STILL_SECONDS = 60.0
"""A file that was written to since is taken to grow, and its columns are not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One run's curves: metric -> (steps, values), a point for each row that has the metric."""

    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    num_damaged_lines: int


def read_histories(out: Path, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, History]:
    """Return the histories of the runs that have one; a run without `metrics.jsonl` is left out.

    Args:
        out: what holds `runs/`.
        metrics: the names to keep; a curve without a point is left out.
    """
    wanted = tuple(dict.fromkeys(metrics))
    found: dict[str, History] = {}
    for run_id in dict.fromkeys(run_ids):
        path = out / "runs" / run_id / "metrics.jsonl"
        columns = read_columns(path)
        try:
            if columns is None:
                keep = time.time() - path.stat().st_mtime > _STILL_SECONDS
                columns = make_columns(path, keep=keep)
        except OSError:
            continue
        curves = {
            name: (np.asarray(pair[0]), np.asarray(pair[1]))
            for name in wanted
            if (pair := columns.curves.get(name)) is not None
        }
        found[run_id] = History(curves=curves, num_damaged_lines=columns.num_damaged_lines)
    return found


def curves_of(
    rows: Sequence[Mapping[str, Any]], metrics: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the (steps, values) of each metric that some row has; NaN may be spelt as a word."""
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for metric in metrics:
        points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            curves[metric] = (steps, values)
    return curves
