"""metrics.jsonl: one JSON object a line, `step` first, that survives kill -9 up to the last line.

Must not import torch, transformers or wandb.
"""

import functools
import json
import math
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.parsing import NOT_FINITE, read_json
from harness.records.metrics import METRICS

_SYNC_SECONDS = 1.0  # at most this much of metrics.jsonl is lost when the machine itself goes down


def check_metric_names(names: Iterable[str]) -> None:
    """Assert that every name stands in the list of metrics: one that does not is a slip of ours."""
    unknown = [name for name in names if name not in METRICS]
    assert not unknown, f"not in harness.records.metrics: {unknown}"


def plain_number(value: Any) -> float | None:
    """Return a plain int or float of anything numeric (a numpy scalar, a tensor of one element)."""
    return value if value is None or type(value) in (int, float) else float(value)


def spell_not_finite(tree: Any) -> Any:
    """Return a JSON tree with NaN and infinities spelt as strings."""
    match tree:
        case float() if not math.isfinite(tree):
            return "NaN" if math.isnan(tree) else "Infinity" if tree > 0 else "-Infinity"
        case Mapping():
            return {key: spell_not_finite(value) for key, value in tree.items()}
        case list() | tuple():
            return [spell_not_finite(value) for value in tree]
        case _:
            return tree


def parsed_number(value: Any) -> float:
    """Return the number that a JSON value stands for; raises KeyError or TypeError for any other."""
    if isinstance(value, str):
        return NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return value


def optional_number(value: Any) -> float | None:
    """Return what `parsed_number` does, and None for null."""
    return None if value is None else parsed_number(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsHistory:
    """The rows of a metrics.jsonl, `step` first in each, and the lines that could not be read."""

    rows: list[dict[str, float | None]]
    num_damaged_lines: int


def read_metrics(path: Path) -> MetricsHistory:
    """Read metrics.jsonl; a torn last line, or any other that is no row, is counted and left out."""
    content = path.read_bytes()
    whole = _sound_rows(content)
    if whole is not None:
        return MetricsHistory(rows=whole, num_damaged_lines=0)
    rows, damaged = [], 0
    for line in content.splitlines(keepends=True):
        row = _parsed_row(line)
        if row is None:
            damaged += 1
        else:
            rows.append(row)
    return MetricsHistory(rows=rows, num_damaged_lines=damaged)


def _sound_rows(content: bytes) -> list[dict[str, float | None]] | None:
    """Return all rows at once, three times as fast as one by one; None where something is to be looked at.

    That is a line that is no JSON, or torn, or no row, or holds what is no number (a NaN, which is spelt).
    """
    if not content.endswith(b"\n") or b'": "' in content:
        return None
    lines = content[:-1].split(b"\n")
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return None
    if len(rows) != len(lines):
        return None
    for row in rows:
        if type(row) is not dict or type(row.get("step")) is not int:
            return None
        if not _NUMBER_TYPES.issuperset(map(type, row.values())):
            return None
    return rows


_NUMBER_TYPES = frozenset((int, float, type(None)))


def _parsed_row(line: bytes) -> dict[str, float | None] | None:
    """Return one row, or None for a line that is torn (even where what is left of it is JSON)."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = read_json(line)
        if type(row["step"]) is not int or not 0 <= row["step"] < 2**63:
            return None
        values = {name: optional_number(value) for name, value in row.items()}
        whole = (value for value in values.values() if isinstance(value, int))
        return values if all(abs(value) < 2**63 for value in whole) else None  # as any run writes
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class MetricsLog:
    """metrics.jsonl, written so that kill -9 loses at most the last line.

    Every row is one write of one line, so a dead process leaves whole lines and at most one torn one.
    A failing machine loses about the last second: the file is synced at most once a second, in a thread
    (0.2 ms on an idle disk, 30 ms and more on a busy or networked one), and at close. The thread is one for
    all files of the process: starting one for each sync would let the step wait until it is scheduled, 5 to
    17 ms on a busy machine. One thread of one process writes a file: hold the run's lock.
    """

    def __init__(self, path: Path) -> None:
        """Open for appending; a torn last line of an earlier process is cut off first."""
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._last_step = -1
        self._synced_at = time.monotonic()
        self._syncing = threading.Lock()
        """Held while the thread uses the descriptor."""
        self._awaits_sync = False
        self._sync_error: OSError | None = None
        self._logs = _logs_to_sync(os.getpid())
        self._cut(keep_to=math.inf)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append one row. Steps never fall; several rows of one step are fine.

        Raises OSError where the row cannot be written whole (a full disk), which then ends the file as
        before, and where an earlier row did not reach the disk.
        """
        if self._sync_error is not None:
            raise self._sync_error
        assert step >= self._last_step, f"step {step} after step {self._last_step}"
        check_metric_names(values)
        row = {"step": step} | {name: plain_number(value) for name, value in values.items()}
        try:
            line = json.dumps(row, allow_nan=False)
        except ValueError:  # NaN or infinite: rare, so not looked for on every step
            line = json.dumps(spell_not_finite(row))
        self._append(line.encode() + b"\n")
        self._last_step = step
        if not self._awaits_sync and time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self._awaits_sync, self._synced_at = True, time.monotonic()
            self._logs.put(self)

    def truncate_after(self, step: int) -> int:
        """Drop the rows after `step`, to go on from its checkpoint; return how many lines went."""
        return self._cut(keep_to=step)

    def sync(self) -> None:
        """Put everything on the disk; call it before a checkpoint that must not be ahead of it."""
        os.fdatasync(self._descriptor)
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and close, once."""
        if self._descriptor < 0:
            return
        with self._syncing:
            descriptor, self._descriptor = self._descriptor, -1
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def sync_behind(self) -> None:
        """Sync in the thread; what it raises is raised by the next `log`."""
        with self._syncing:
            self._awaits_sync = False
            try:
                if self._descriptor >= 0:
                    os.fdatasync(self._descriptor)
            except OSError as error:
                self._sync_error = error

    def _append(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(
                line
            ):  # one write, unless the disk is full or a signal comes between
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise

    def _cut(self, keep_to: float) -> int:
        """Keep the file up to its last whole row of a step up to `keep_to`."""
        lines = self._path.read_bytes().splitlines(keepends=True)
        self._last_step = -1
        kept_bytes = kept_lines = end = 0
        for number, line in enumerate(lines, start=1):
            end += len(line)
            row = _parsed_row(line)
            if row is None:
                continue  # torn: goes with the tail, unless a whole row stands behind it
            step = int(row["step"] or 0)
            if step > keep_to:
                break
            self._last_step, kept_bytes, kept_lines = step, end, number
        os.ftruncate(self._descriptor, kept_bytes)
        self.sync()
        return len(lines) - kept_lines


@functools.cache
def _logs_to_sync(process: int) -> "queue.SimpleQueue[MetricsLog]":
    """Return the queue of the thread that syncs this process's files; a forked process has its own."""
    logs: queue.SimpleQueue[MetricsLog] = queue.SimpleQueue()

    def sync() -> None:
        while True:
            logs.get().sync_behind()

    threading.Thread(target=sync, name=f"sync of {process}", daemon=True).start()
    return logs
