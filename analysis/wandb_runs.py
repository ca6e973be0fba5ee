"""Rows from what W&B holds: offline `.wandb` files, or a project online by the public API.

W&B holds what was logged: configuration, metrics, and the evaluation after training without its standard
error; no notes and no provenance. wandb is imported only by the functions that read what it wrote.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.frame import PREDICTED, Role, Row, flat_row
from analysis.sources import unique_rows
from harness.errors import RequestError
from harness.records.metrics import METRICS
from harness.records.record import MeasuredIn, Record, RunStatus
from harness.tracking.wandb_file import read_wandb_run


def load_wandb_files(directory: Path) -> tuple[list[Row], list[str]]:
    """Return a row for each run that has offline `.wandb` files below `directory`, and what went wrong.

    Raises RequestError where there is no such file.
    """
    homes: dict[Path, None] = {}
    for file in sorted(directory.rglob("*.wandb")):
        homes[_wandb_home(file)] = None
    if not homes:
        raise RequestError(f"no .wandb file under {directory.absolute()}")
    rows, problems = [], []
    for home in homes:
        history = read_wandb_run(home)
        problems += history.problems
        if history.run_id is not None:
            rows.append(_row_of_wandb(history.run_id, history.config, history.summary))
    rows, unlike = unique_rows(rows)
    return rows, problems + unlike


def load_wandb_project(path: str) -> tuple[list[Row], list[str]]:
    """Return a row for each run of a W&B project (`entity/project`) by the public API.

    Raises RequestError where wandb is not installed or the project cannot be read.
    """
    try:
        import wandb
    except ImportError:
        raise RequestError("reading a W&B project needs the package wandb") from None
    try:
        runs = list(wandb.Api().runs(path))
    except Exception as error:  # whatever the network, the server or the client raises
        raise RequestError(f"W&B project {path} cannot be read: {error}") from error
    rows, problems = [], []
    for run in runs:
        try:
            summary = {k: v for k, v in dict(run.summary).items() if not k.startswith("_")}
            rows.append(_row_of_wandb(run.id, dict(run.config), summary))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problems.append(f"W&B run {run.id} holds a value that no run writes: {error}")
    rows, unlike = unique_rows(rows)
    return rows, problems + unlike


def _wandb_home(file: Path) -> Path:
    """Return the directory that holds the files of this file's run and of no other."""
    siblings = {other.stem for other in file.parent.parent.glob("*/*.wandb")}
    return file.parent.parent if siblings == {file.stem} else file.parent


def _row_of_wandb(run_id: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> Row:
    """Return the row that a run's configuration and final values make."""
    status = summary.get("status")
    values = {name: _number(value) for name, value in summary.items() if name in METRICS}
    predicted = {
        metric: _number(value)
        for name, value in summary.items()
        if name.startswith(PREDICTED) and (metric := name.removeprefix(PREDICTED)) in METRICS
    }
    evals = {name: value for name, value in values.items() if name.startswith("eval/")}
    metrics = {name: value for name, value in values.items() if name not in evals}
    alone = metrics.get("throughput/step_ms") is not None  # a shared process measures none
    record = Record(
        run_id=run_id,
        status=RunStatus.interrupted if status is None else RunStatus(status),
        config=dict(config),
        metrics=metrics,
        predicted=predicted,
        measured_in=MeasuredIn.solo if alone else MeasuredIn.cohort,
    )
    row = flat_row(record)
    job_type = row.get("tracker.job_type")
    row["role"] = job_type if job_type in {role.value for role in Role} else None
    for name, value in evals.items():
        row[f"after.{name}"] = value
    return row


def _number(value: Any) -> float | None:
    """Return a number of a summary, where NaN and infinities are words; raises TypeError for no number."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, str):
        return float(value)
    raise TypeError(f"expected a number, got {value!r}")
