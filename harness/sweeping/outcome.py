"""What the runs of a cell come to as a trial of Optuna's, and which cells are confirmed. Pure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.question.compare import combinations_of, matches
from harness.question.points import Point
from harness.question.power import seeds_for_margin
from harness.question.question import Question
from harness.question.settings import Objective
from harness.records.metrics import COHORT_SHARES, Direction
from harness.records.record import Record, RunStatus
from harness.study.study import Study, Trial, TrialStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    status: TrialStatus
    values: tuple[float, ...] = ()
    """Values, one per objective: the mean over the seeds."""
    violations: tuple[float, ...] = ()
    """Violations, one per constraint, at most 0 where it is kept (Optuna's convention)."""
    reason: str | None = None
    deviation: float | None = None
    """Sample deviation of the first objective over the seeds; None for one seed."""


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
        deviation=None if bad else _deviation(question.objectives[0].metric, runs),
    )


def _deviation(metric: str, runs: Sequence[Record]) -> float | None:
    values = [value for run in runs if (value := measure(run, metric)) is not None]
    finite = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.stdev(values) if finite else None


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


# Confirmation --------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Chosen:
    """A cell that is to be confirmed, by the first of its trials."""

    trial: Trial
    compared: list[Point] = field(default_factory=list)
    """The combinations of compared levels for which it stands; none for one that is only among the best."""


def most_confirmed(question: Question) -> int:
    """Return how many cells are confirmed at most: several levels may have one best cell."""
    assert question.confirm is not None
    return len(compared_combinations(question)) + question.confirm.top


def compared_combinations(question: Question) -> list[Point]:
    """Return the combinations whose best cells are confirmed, each once though several contrasts need it."""
    found = {
        frozenset(combination.items()): combination
        for compare in question.compare
        for combination in combinations_of(compare, question.space)
    }
    return list(found.values())


def chosen_for_confirmation(study: Study, question: Question) -> list[Chosen]:
    """Return each compared combination's best cell by the first objective, then the best of all.

    A combination no cell of which was measured and keeps the constraints is left out: the report names it.
    """
    assert question.confirm is not None
    sound = study.best(len(study.trials))
    sign = -1.0 if question.objectives[0].direction is Direction.maximize else 1.0
    by_first = sorted(
        sound, key=lambda trial: (sign * (trial.values or (math.inf,))[0], trial.number)
    )
    chosen: dict[str, Chosen] = {}
    for compare in question.compare:
        for combination in combinations_of(compare, question.space):
            of_level = (t for t in by_first if matches(t.point, combination, compare.axes))
            if (best := next(of_level, None)) is not None:
                cell = chosen.setdefault(_cell(best), Chosen(trial=_first(sound, best)))
                cell.compared.append(combination)
    overall = dict.fromkeys(map(_cell, sound))
    for cell in list(overall)[: question.confirm.top]:
        first = next(trial for trial in sound if _cell(trial) == cell)
        chosen.setdefault(cell, Chosen(trial=first))
    return list(chosen.values())


def confirmation_seeds(question: Question, chosen: Iterable[Chosen]) -> tuple[int, ...]:
    """Return the seeds of the confirmation; with `at_most` as many as the chosen cells' spread asks for."""
    confirm, margin = question.confirm, question.margin
    assert confirm is not None
    if confirm.at_most is None or margin is None:
        return confirm.seeds
    most = min(confirm.at_most, len(confirm.seeds))
    noted = [each.trial.notes.get("deviation") for each in chosen]
    squares = [deviation**2 for deviation in noted if deviation is not None]
    if not squares:
        return confirm.seeds[:most]
    deviation = math.sqrt(math.fsum(squares) / len(squares))
    return confirm.seeds[: seeds_for_margin(deviation, margin, most)]


def _cell(trial: Trial) -> str:
    return str(trial.notes.get("cell"))


def _first(sound: list[Trial], like: Trial) -> Trial:
    """Return the first trial of a trial's cell among those that count."""
    return min((t for t in sound if _cell(t) == _cell(like)), key=lambda trial: trial.number)
