"""The histories of runs, `metrics.jsonl`, parsed once: a packed copy is read as long as it is fresh.

A packed copy is derived and may be deleted at any time; one that cannot be read is made again.
"""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.records.record import read_metrics

CACHE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One run's curves: metric -> (steps, values), a point for each row that has the metric."""

    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    num_damaged_lines: int


def read_histories(
    out: Path, run_ids: Iterable[str], metrics: Iterable[str], cache: Path | None = None
) -> dict[str, History]:
    """Return the histories of the runs that have one; a run without `metrics.jsonl` is left out.

    Args:
        out: what holds `runs/`.
        metrics: the names to keep; a curve without a point is left out.
        cache: a directory for parsed copies; None parses every time.
    """
    wanted = tuple(sorted(set(metrics)))
    found: dict[str, History] = {}
    stored = _Cache(cache, wanted) if cache is not None else None
    for run_id in dict.fromkeys(run_ids):
        path = out / "runs" / run_id / "metrics.jsonl"
        try:
            status = path.stat()
        except OSError:
            continue
        stamp = (status.st_mtime_ns, status.st_size)
        history = stored.get(run_id, stamp) if stored is not None else None
        if history is None:
            history = parse_history(path, wanted)
            if stored is not None:
                stored.put(run_id, stamp, history)
        found[run_id] = history
    if stored is not None:
        stored.write()
    return found


def parse_history(path: Path, metrics: Iterable[str]) -> History:
    """Parse one `metrics.jsonl`; missing values are left out, torn lines counted."""
    parsed = read_metrics(path)
    return History(
        curves=curves_of(parsed.rows, metrics), num_damaged_lines=parsed.num_damaged_lines
    )


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


class _Cache:
    """Parsed histories of many runs in one `.npz`: arrays laid end to end, and where each begins."""

    def __init__(self, directory: Path, metrics: tuple[str, ...]) -> None:
        self._metrics = metrics
        asked = hashlib.sha256(repr((CACHE_VERSION, metrics)).encode()).hexdigest()[:12]
        self._path = directory / f"histories-{asked}.npz"
        self._entries: dict[str, tuple[tuple[int, int], History]] = {}
        self._is_changed = False
        self._read()

    def get(self, run_id: str, stamp: tuple[int, int]) -> History | None:
        """Return a history that was parsed from the file as it is now."""
        entry = self._entries.get(run_id)
        return entry[1] if entry is not None and entry[0] == stamp else None

    def put(self, run_id: str, stamp: tuple[int, int], history: History) -> None:
        """Keep a freshly parsed history."""
        self._entries[run_id] = (stamp, history)
        self._is_changed = True

    def write(self) -> None:
        """Replace the file atomically if anything is new; a directory that cannot be written is no error."""
        if not self._is_changed:
            return
        rows, counts, arrays = [], [], []
        for stamp, history in self._entries.values():
            rows.append((*stamp, history.num_damaged_lines))
            lengths = []
            for metric in self._metrics:
                pair = history.curves.get(metric)
                lengths.append(0 if pair is None else len(pair[0]))
                if pair is not None:
                    arrays.append(np.stack(pair))
            counts.append(lengths)
        points = np.concatenate(arrays, axis=1) if arrays else np.zeros((2, 0))
        temporary = self._path.with_suffix(f".{os.getpid()}.npz")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        try:
            np.savez(
                temporary,
                run_ids=np.array(list(self._entries), dtype=np.str_),
                stamps=np.array(rows, dtype=np.int64).reshape(-1, 3),
                counts=np.array(counts, dtype=np.int64).reshape(-1, len(self._metrics)),
                points=points,
            )
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            with np.load(self._path, allow_pickle=False) as stored:
                run_ids, stamps = stored["run_ids"], stored["stamps"]
                counts, points = stored["counts"], stored["points"]
        # A zip file whose bytes were changed makes its readers raise whatever comes of them.
        except (OSError, ValueError, LookupError, EOFError, TypeError, AttributeError):
            return
        except (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, MemoryError):
            return
        if points.shape != (2, int(counts.sum())) or not len(run_ids) == len(stamps) == len(counts):
            return
        at = 0
        for run_id, (modified_at, size, damaged), lengths in zip(
            run_ids.tolist(), stamps.tolist(), counts.tolist(), strict=True
        ):
            curves = {}
            for metric, length in zip(self._metrics, lengths, strict=True):
                if length:
                    curves[metric] = (points[0, at : at + length], points[1, at : at + length])
                at += length
            history = History(curves=curves, num_damaged_lines=damaged)
            self._entries[run_id] = ((modified_at, size), history)
