"""The W&B run of a sweep that has ended: what is in it, from the state and the report."""

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.config.schema import TrackerConfig, TrackerName
from harness.parsing import Unreadable, read_yaml
from harness.records.redact import message
from harness.sweeping.state import SweepDirectory, SweepState, TrialLine, state_tree
from harness.tracking.sweep_mirror import Sheet, SweepResult, mirror_sweep

_W_AND_B = (TrackerName.wandb_offline, TrackerName.wandb_online)


def mirror_finished_sweep(
    tracker: TrackerConfig, out: Path, directory: SweepDirectory, state: SweepState
) -> None:
    """Write the sweep's own W&B run, with its report; say what went wrong, a sentence each."""
    if tracker.name not in _W_AND_B:
        return
    for problem in _mirror(tracker, out, directory, state):
        directory.append_log(problem)
        print(message(f"harness: {problem}"), file=sys.stderr)


def _mirror(
    tracker: TrackerConfig, out: Path, directory: SweepDirectory, state: SweepState
) -> list[str]:
    problems, page = [], None
    try:
        from analysis.report import report_sweep  # matplotlib: 0.4 s

        page = report_sweep(out, state.name).index.parent
    except Exception as error:  # no report is worth a sweep
        problems.append(f"no report for W&B: {type(error).__name__}: {error}")
    try:
        asked = read_yaml(directory.question.read_bytes())
    except (OSError, Unreadable) as error:
        asked = {}
        problems.append(f"no question for W&B: {directory.question}: {error}")
    result = SweepResult(
        name=state.name,
        asked=asked,
        state=state_tree(state),
        trials=list(_best_so_far(state)),
        tables={"leaderboard": _leaderboard(state), "confirmation": _confirmation(state)},
        report=page,
    )
    return problems + mirror_sweep(tracker, directory.path, result)


def _best_so_far(state: SweepState) -> Iterator[Mapping[str, float]]:
    """Yield of each trial its values (`trial.<metric>`) and the best of each objective (`best.<metric>`)."""
    best: dict[str, float] = {}
    for trial in state.trials:
        values: dict[str, float] = {}
        for metric, value in zip(state.objectives, trial.values or (), strict=False):
            values[f"trial.{metric}"] = value
            if trial.status == "completed" and trial.feasible and math.isfinite(value):
                better = min if state.objectives[metric] == "minimize" else max
                best[metric] = better(best.get(metric, value), value)
        yield values | {f"best.{metric}": value for metric, value in best.items()}


def _leaderboard(state: SweepState) -> Sheet:
    """Return the trials, best first by the first objective, those without a value last."""
    axes = _axes(state)
    first = next(iter(state.objectives.values()), "minimize")
    sign = 1 if first == "minimize" else -1

    def rank(trial: TrialLine) -> tuple[bool, float]:
        value = trial.values[0] if trial.values and trial.feasible else math.nan
        known = trial.status == "completed" and not math.isnan(value)
        return not known, sign * value if known else 0.0

    rows = [
        (
            trial.number,
            trial.status,
            *(trial.point.get(axis, "") for axis in axes),
            *(_cell(v) for v in trial.values or [None] * len(state.objectives)),
            trial.feasible,
            " ".join(trial.runs),
        )
        for trial in sorted(state.trials, key=rank)
    ]
    columns = ("trial", "status", *axes, *state.objectives, "feasible", "runs")
    return Sheet(columns=columns, rows=rows)


def _confirmation(state: SweepState) -> Sheet:
    """Return the confirmed cells: the value of each objective by run."""
    axes = _axes(state)
    rows = [
        (
            line.trial,
            *(line.point.get(axis, "") for axis in axes),
            *(" ".join(map(repr, line.values.get(m, ()))) for m in state.objectives),
            " ".join(line.runs),
        )
        for line in state.confirmed
    ]
    return Sheet(columns=("trial", *axes, *state.objectives, "runs"), rows=rows)


def _axes(state: SweepState) -> list[str]:
    return list(dict.fromkeys(axis for trial in state.trials for axis in trial.point))


def _cell(value: Any) -> float | str | None:
    return value if value is None or math.isfinite(value) else repr(value)
