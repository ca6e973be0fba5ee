"""What is known about one run: its record, `run.json`, and the other files of its directory.

Must not import torch, transformers or wandb: every reader of records imports this.

NaN and infinities stand in the files as the strings "NaN", "Infinity" and "-Infinity", because JSON has
no such numbers; wherever a number belongs they are read back as numbers. A missing value is null.
"""

import json
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from harness.parsing import Unreadable, read_json, shaped
from harness.records.metrics import COHORT_SHARES
from harness.records.metrics_log import (
    MetricsHistory,
    MetricsLog,
    check_metric_names,
    plain_number,
    read_metrics,
    spell_not_finite,
)
from harness.records.redact import redact, redact_tree
from harness.records.run_directory import RunDirectory, RunLocked, utc_now, write_text

__all__ = [
    "RESUMED",
    "SCHEMA_VERSION",
    "Estimate",
    "MeasuredIn",
    "MetricsHistory",
    "MetricsLog",
    "Record",
    "RecordError",
    "RunDirectory",
    "RunLocked",
    "RunStatus",
    "check_metric_names",
    "read_metrics",
    "read_record",
    "read_records",
    "record_of_tree",
    "record_tree",
    "utc_now",
    "write_record",
]

SCHEMA_VERSION = 1

RESUMED = "resumed after step"
"""Beginning of the note of a run that went on from a checkpoint: its numbers are none the worse."""


class RunStatus(Enum):
    """How a run stands. Out of memory and divergence are results, not accidents."""

    running = "running"
    completed = "completed"
    pruned = "pruned"
    out_of_memory = "out_of_memory"
    diverged = "diverged"
    failed = "failed"
    interrupted = "interrupted"


class MeasuredIn(Enum):
    """Where the memory and throughput of a record were measured; a cohort shares both."""

    solo = "solo"
    cohort = "cohort"
    probe = "probe"


class RecordError(ValueError):
    """A file of a run that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One evaluation result over `n` samples, in the metric's unit."""

    value: float
    standard_error: float | None
    """Standard error over the samples; None where it is not defined, as for a single one."""
    n: int


@dataclass(kw_only=True, slots=True)
class Record:
    """Everything that is known about one run; `run.json` in memory."""

    run_id: str
    status: RunStatus
    config: dict[str, Any]
    """The composed configuration as a tree of mappings, lists and scalars."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Cost and the last training values by metric name; None: asked for and not measured."""
    predicted: dict[str, float | None] = field(default_factory=dict)
    """Predictions of the planner for a run that measures its own cost, by metric name."""
    evals: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Phase (`before`, `after`) -> metric name -> result."""
    measured_in: MeasuredIn = MeasuredIn.solo
    provenance: dict[str, Any] = field(default_factory=dict)
    started_at: str = field(default_factory=utc_now)
    """ISO 8601, UTC."""
    wall_seconds: float | None = None
    """Seconds of all processes that worked on the run; None until it has ended once."""
    error: str | None = None
    probe: str | None = None
    """The run that measured, alone, what this configuration costs; None where none did."""
    alone: dict[str, float | None] = field(default_factory=dict)
    """What that probe measured of memory, time and throughput, by metric name."""
    notes: list[str] = field(default_factory=list)
    """Facts that a reader of the numbers needs: substitutions, rows cut, a tracker that failed."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_metric_names(self.metrics)
        check_metric_names(self.predicted)
        check_metric_names(self.alone)
        for results in self.evals.values():
            check_metric_names(results)


def write_record(path: Path, record: Record) -> None:
    """Write `run.json` atomically and without secrets in configuration, provenance, error or notes."""
    write_text(path, json.dumps(record_tree(record), indent=2, allow_nan=False) + "\n")


def record_tree(record: Record) -> dict[str, Any]:
    """Return a record as JSON has it, without secrets in configuration, provenance, error or notes."""
    check_metric_names(record.metrics)
    tree = {
        "schema_version": record.schema_version,
        "run_id": record.run_id,
        "status": record.status.value,
        "config": redact_tree(record.config),
        "metrics": {name: plain_number(value) for name, value in record.metrics.items()},
        "predicted": {name: plain_number(value) for name, value in record.predicted.items()},
        "evals": {
            phase: {name: _estimate_tree(result) for name, result in results.items()}
            for phase, results in record.evals.items()
        },
        "measured_in": record.measured_in.value,
        "provenance": redact_tree(record.provenance),
        "started_at": record.started_at,
        "wall_seconds": plain_number(record.wall_seconds),
        "error": None if record.error is None else redact(record.error),
        "probe": record.probe,
        "alone": {name: plain_number(value) for name, value in record.alone.items()},
        "notes": [redact(note) for note in record.notes],
    }
    return spell_not_finite(tree)


def read_record(path: Path) -> Record:
    """Read `run.json`; raises RecordError for one that is missing, torn, or of another schema."""
    try:
        tree = read_json(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    except Unreadable as error:
        raise RecordError(f"{path} is torn or no JSON: {error}") from error
    return record_of_tree(tree, str(path))


def record_of_tree(tree: Any, path: str) -> Record:
    """Return the record that `record_tree` made into a tree; `path` says in a RecordError where it was."""
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {version}; this harness reads {SCHEMA_VERSION}"
        )
    tree = {"predicted": {}, "probe": None, "alone": {}} | tree  # keys that records had not always
    known = {entry.name for entry in fields(Record)}
    if known != set(tree):
        missing, unknown = sorted(known - set(tree)), sorted(set(tree) - known)
        raise RecordError(f"{path} lacks the keys {missing} and has the unknown keys {unknown}")
    try:
        return _record(tree)
    except (AssertionError, ValueError) as error:
        raise RecordError(f"{path} holds a value that no run writes: {error}") from error


def read_records(out: Path) -> tuple[list[Record], list[str]]:
    """Return the records under `<out>/runs`, by run id, and a message for each that cannot be read."""
    records, problems = [], []
    for directory in sorted((out / "runs").glob("*/")):
        try:
            records.append(read_record(RunDirectory(directory).record))
        except RecordError as error:
            problems.append(str(error))
    return records, problems


def _record(tree: dict[str, Any]) -> Record:
    record: Record = shaped(Record, tree)
    if datetime.fromisoformat(record.started_at).tzinfo is None:
        raise Unreadable(f"started_at must have a time zone, got {record.started_at}")
    for results in record.evals.values():
        for name, result in results.items():
            if result.n < 0:
                raise Unreadable(f"{name} must have a count n of at least 0, got {result.n}")
    return record


def _estimate_tree(result: Estimate) -> dict[str, float | None]:
    error = result.standard_error
    return {
        "value": plain_number(result.value),
        "standard_error": plain_number(error),
        "n": int(result.n),
    }


# What a configuration costs alone: from its probe's record into those of the runs that have it -----


def costs_of(probe: RunDirectory) -> dict[str, float | None] | None:
    """Return what a probe measured; None where it has not ended, and nothing where it had no memory."""
    try:
        record = read_record(probe.record)
    except RecordError:
        return None
    if record.measured_in is not MeasuredIn.probe:
        return None
    match record.status:
        case RunStatus.completed:
            return {n: value for n, value in record.metrics.items() if n in COHORT_SHARES}
        case RunStatus.out_of_memory:
            return {}
        case _:
            return None


def take_costs(record: Record, probe: RunDirectory) -> bool:
    """Put a probe's costs into a record; False where there are none, or it has them."""
    costs = costs_of(probe)
    if costs is None or (record.probe == probe.path.name and record.alone == costs):
        return False
    record.probe, record.alone = probe.path.name, costs
    return True


def rewrite_with_costs(directory: RunDirectory, probe: RunDirectory) -> None:
    """Put a probe's costs into the record of a run that has ended, if it lacks them."""
    try:
        record = read_record(directory.record)
    except RecordError:
        return
    if record.status not in (RunStatus.running, RunStatus.interrupted) and take_costs(
        record, probe
    ):
        write_record(directory.record, record)
