"""metrics.columns: what metrics.jsonl says, column by column, so that thousands of runs are read in seconds.

Written when a run ends, and by a reader that finds none. Derived: one that does not fit its metrics.jsonl
any more, or is damaged, is not read, and it may be deleted at any time. A line of JSON says what is in it;
then come doubles: for each column the steps of the rows that have it, and their values; a column that every
row has shares the first one's steps. Must not import torch, transformers or wandb.
"""

import contextlib
import json
import os
import sys
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.metrics_log import read_metrics
from harness.records.run_directory import staged

VERSION = 2
_SUFFIX = ".columns"

Doubles = memoryview | array


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The points of one run's series."""

    curves: dict[str, tuple[Doubles, Doubles]]
    """Metric -> steps and values, a point for each row that has the metric."""
    num_damaged_lines: int


def columns_path(metrics: Path) -> Path:
    """Return where the columns of a metrics.jsonl lie."""
    return metrics.with_suffix(_SUFFIX)


def read_columns(metrics: Path) -> Columns | None:
    """Return the columns of a metrics.jsonl; None where there are none that fit it."""
    try:
        with columns_path(metrics).open("rb") as file:
            about, content = json.loads(file.readline()), memoryview(file.read())
        if about["of"] != _stamp(metrics) or about.pop("crc32") != _checksum(about, content):
            return None
        if (about["version"], about["byteorder"]) != (VERSION, sys.byteorder):
            return None
        points, at = content.cast("d"), about["rows"]
        shared, curves = points[:at], {}
        for name, count in about["columns"]:
            steps = shared
            if count != len(shared):
                steps, at = points[at : at + count], at + count
            curves[name] = (steps, points[at : at + count])
            at += count
        return Columns(curves=curves, num_damaged_lines=about["damaged"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def make_columns(metrics: Path, *, keep: bool) -> Columns:
    """Parse a metrics.jsonl; `keep` its columns beside it, where its directory can be written.

    Raises OSError where there is no metrics.jsonl.
    """
    stamp = _stamp(metrics)  # before: a row that is added meanwhile makes the columns stale
    parsed = read_metrics(metrics)
    names = dict.fromkeys(name for row in parsed.rows for name in row if name != "step")
    curves: dict[str, tuple[Doubles, Doubles]] = {}
    for name in names:
        points = [(row["step"], row[name]) for row in parsed.rows if row.get(name) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            curves[name] = array("d", steps), array("d", values)
    columns = Columns(curves=curves, num_damaged_lines=parsed.num_damaged_lines)
    if keep:
        shared = array("d", [row["step"] or 0 for row in parsed.rows])
        with contextlib.suppress(OSError):
            _write(columns_path(metrics), stamp, shared, columns)
    return columns


def _stamp(metrics: Path) -> list[int]:
    status = metrics.stat()
    return [status.st_size, status.st_mtime_ns]


def _checksum(about: dict[str, Any], content: bytes | memoryview) -> int:
    """Return what tells a change of the doubles, or of what the first line says of them."""
    return zlib.crc32(content, zlib.crc32(json.dumps(about, sort_keys=True).encode()))


def _write(path: Path, stamp: list[int], shared: "array[float]", columns: Columns) -> None:
    parts: list[Doubles] = [shared]
    for steps, values in columns.curves.values():
        parts += [values] if len(steps) == len(shared) else [steps, values]
    content = b"".join(parts)
    about: dict[str, Any] = {
        "version": VERSION,
        "of": stamp,
        "byteorder": sys.byteorder,
        "damaged": columns.num_damaged_lines,
        "rows": len(shared),
        "columns": [[name, len(steps)] for name, (steps, _) in columns.curves.items()],
    }
    about["crc32"] = _checksum(about, content)
    temporary = staged(path)
    try:
        temporary.write_bytes(json.dumps(about).encode() + b"\n" + content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
