"""A sweep's own W&B run: its question, its state, the leaderboard, best-so-far over trials, the report.

Written in one go when the sweep has ended, in a thread: whatever wandb raises becomes a sentence.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.metrics import METRICS
from harness.records.metrics_log import spell_not_finite
from harness.records.redact import redact, redact_tree
from harness.tracking.wandb_tracker import FINISH_SECONDS, start_run, wait_for_file

SWEEP = "sweep-"
"""What the id of a sweep's own run begins with; the sweep's name follows (analysis.wandb_runs reads it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What is told of a sweep that has ended."""

    name: str
    asked: Mapping[str, Any]
    """sweep.yaml."""
    state: Mapping[str, Any]
    """state.json."""
    trials: Sequence[Mapping[str, float]]
    """Of each told trial in its order: the objectives' values and the best so far."""
    tables: Mapping[str, Sheet]
    report: Path | None
    """The page's directory."""


def mirror_sweep(config: TrackerConfig, directory: Path, result: SweepResult) -> list[str]:
    """Write the sweep's run below `directory`, in two minutes at most; return what went wrong.

    Nothing is written for a tracker that is not W&B.
    """
    match config.name:
        case TrackerName.none | TrackerName.tensorboard:
            return []
        case TrackerName.wandb_offline | TrackerName.wandb_online:
            pass
    problems: list[str] = []
    thread = threading.Thread(
        target=_mirror, args=(config, directory, result, problems), daemon=True
    )
    thread.start()
    thread.join(FINISH_SECONDS)
    if thread.is_alive():
        problems.append(f"W&B did not finish within {FINISH_SECONDS:.0f} s")
    return problems


def _mirror(
    config: TrackerConfig, directory: Path, result: SweepResult, problems: list[str]
) -> None:
    online = config.name is TrackerName.wandb_online
    arguments = {
        "project": redact(config.project),
        "entity": None if config.entity is None else redact(config.entity),
        "id": SWEEP + result.name,
        "name": redact(result.name),
        "group": redact(config.group or result.name),
        "job_type": "sweep",
        "tags": [redact(tag) for tag in config.tags],
        "config": spell_not_finite(redact_tree(result.asked)),
        "dir": str(directory),
        "resume": "allow" if online else None,
    }
    try:
        run = start_run(arguments, online=online)
        import wandb

        for number, values in enumerate(result.trials):
            if number >= run.step:
                run.log(dict(values), step=number)
        sheets = {**result.tables, "metrics": _definitions()}
        run.log(
            {
                name: wandb.Table(columns=list(s.columns), data=[list(row) for row in s.rows])
                for name, s in sheets.items()
            }
        )
        if result.report is not None:
            page = wandb.Artifact(f"report-{result.name}", type="report")
            page.add_dir(str(result.report))
            run.log_artifact(page)
        run.summary["state"] = spell_not_finite(redact_tree(result.state))
        run.finish()
        wait_for_file(Path(run.dir).parent, problems)
    except Exception as error:  # the mirror breaks, the sweep has its records
        problems.append(redact(f"W&B failed: {type(error).__name__}: {error}"))


def _definitions() -> Sheet:
    """Return what each metric is, once for the whole sweep."""
    rows = [(m.name, m.label, m.unit, m.direction.value, m.definition) for m in METRICS.values()]
    return Sheet(columns=("metric", "label", "unit", "better", "definition"), rows=rows)
