"""Combine the runs of a cell into the values reported to Optuna. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.question.question import Question
from harness.question.settings import Objective
from harness.records.metrics import COHORT_SHARES, Direction
from harness.records.record import Record, RunStatus
from harness.study.study import TrialStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    status: TrialStatus
    values: tuple[float, ...] = ()
    """One per objective, the mean over the seeds."""
    violations: tuple[float, ...] = ()
    """One per constraint, at most 0 where it is kept (Optuna's convention)."""
    reason: str | None = None


def cost_metrics(question: Question) -> list[str]:
    """Return what the question asks for and only a run with a process to itself can measure."""
    asked = [o.metric for o in question.objectives] + [c.metric for c in question.constraints]
    return [metric for metric in asked if metric in COHORT_SHARES]


def outcome_of(question: Question, runs: Sequence[Record], probe: Record | None) -> Outcome:
    """Return the outcome of a cell whose runs (one per seed) and probe have all ended.

    A run that diverged or ran out of memory is a result: the worst value there is. One that failed for
    another reason says nothing about its cell, and the trial fails.
    """
    everything = [*runs, *([probe] if probe is not None else [])]
    for record in everything:
        if record.status in (RunStatus.failed, RunStatus.interrupted, RunStatus.running):
            return Outcome(status=TrialStatus.failed, reason=f"{record.run_id}: {record.error}")
    if any(record.status is RunStatus.pruned for record in runs):
        return Outcome(status=TrialStatus.pruned)
    bad = [r for r in everything if r.status in (RunStatus.diverged, RunStatus.out_of_memory)]
    values, violations = [], []
    for objective in question.objectives:
        value = worst(objective) if bad else _measured(objective.metric, runs, probe)
        if value is None:
            return _not_measured(objective.metric, runs)
        values.append(value if math.isfinite(value) else worst(objective))
    for constraint in question.constraints:
        value = None if bad else _measured(constraint.metric, runs, probe)
        if value is None and not bad:
            return _not_measured(constraint.metric, runs)
        violations.append(math.inf if value is None else constraint.violation(value))
    return Outcome(
        status=TrialStatus.completed,
        values=tuple(values),
        violations=tuple(violations),
        reason=", ".join(sorted({record.status.value for record in bad})) or None,
    )


def worst(objective: Objective) -> float:
    """Return the value that no run can fall below."""
    return math.inf if objective.direction is Direction.minimize else -math.inf


def measure(record: Record, metric: str) -> float | None:
    """Return a metric of a run: its last evaluation, or what it cost."""
    result = record.evals.get("after", {}).get(metric)
    return record.metrics.get(metric) if result is None else result.value


def _measured(metric: str, runs: Sequence[Record], probe: Record | None) -> float | None:
    """Return the mean over seeds; where runs share a process, what the probe measured."""
    from_probe = metric in COHORT_SHARES and probe is not None
    found = [measure(record, metric) for record in ([probe] if from_probe and probe else runs)]
    values = [value for value in found if value is not None]
    if len(values) < len(found) or not values:
        return None
    return statistics.fmean(values)


def _not_measured(metric: str, runs: Sequence[Record]) -> Outcome:
    return Outcome(
        status=TrialStatus.failed,
        reason=f"{metric} was not measured in {', '.join(record.run_id for record in runs)}",
    )
