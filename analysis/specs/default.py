"""The tables that every sweep gets: confirmation, search, cost."""

from collections.abc import Iterable, Sequence

from analysis.frame import Role, Row, metric_key
from analysis.groups import COST_NOTHING
from analysis.sources import SweepData
from analysis.spec import Spec
from analysis.task_scores import task_columns
from harness.records.metrics import COHORT_SHARES, Direction
from harness.records.record import MeasuredIn

SEARCH_LINES = 20
"""Lines of a search that is no grid; a grid is shown whole."""

_QUALITY = (
    "eval/loss",
    "eval/exact_match",
    "eval/rouge_l",
    "eval/choice_accuracy",
    "eval/token_accuracy",
    "eval/forgetting_bits_per_byte",
)
_COST = (
    "memory/peak_bytes",
    "throughput/step_ms",
    "throughput/input_tokens_per_second",
    "adapter/trainable_params",
    "base/bits_per_param",
    "memory/base_bytes",
    "memory/adapter_bytes",
    "memory/optimizer_bytes",
)


def default_specs(sweep: SweepData) -> list[Spec]:
    """Return the default tables of a sweep for which it has runs."""
    makers = (confirmation_spec, search_spec, cost_spec)
    return [spec for maker in makers if (spec := maker(sweep)) is not None]


def confirmation_spec(sweep: SweepData) -> Spec | None:
    """Return the verdict: the confirmed cells on fresh seeds, each against the best of them."""
    rows = sweep.rows_of(Role.confirmation)
    if not rows:
        return None
    return Spec(
        name="confirmation",
        title=f"{sweep.question or sweep.name} Confirmed on fresh seeds.",
        rows=_axes_of(sweep, rows),
        columns=_quality(sweep, rows),
        role=Role.confirmation,
        best_first=True,
        against_best=True,
    )


def search_spec(sweep: SweepData) -> Spec | None:
    """Return the trials: a grid as its axes, another search by trial, the best first."""
    rows = [row for row in sweep.rows_of(Role.search) if row["trial"] is not None]
    if not rows:
        return None
    grid = sweep.method == "grid"
    axes = _axes_of(sweep, rows)
    front = {metric: Direction(word) for metric, word in sweep.objectives.items()}
    return Spec(
        name="search",
        title=f"{sweep.name}: trials of the search",
        rows=axes if grid else tuple(dict.fromkeys(("trial", *axes))),
        columns=_quality(sweep, rows),
        role=Role.search,
        best_first=not grid,
        limit=None if grid else SEARCH_LINES,
        front=front if len(front) > 1 else {},
    )


def cost_spec(sweep: SweepData) -> Spec | None:
    """Return what each configuration costs, by the axes that change it."""
    rows = [row for row in sweep.rows_of(Role.search) if row["trial"] is not None]
    axes = tuple(axis for axis in _axes_of(sweep, rows) if not _costs_nothing(sweep, axis))
    alone = [row for row in sweep.rows if row["measured_in"] is not MeasuredIn.cohort]
    columns = [metric for metric in _COST if metric not in COHORT_SHARES]
    measured = _measured([*rows, *alone], _COST if alone else columns)
    if not axes or not measured:
        return None
    return Spec(
        name="cost",
        title=f"{sweep.name}: what a configuration costs",
        rows=axes,
        columns=measured,
        role=Role.search,
    )


def _axes_of(sweep: SweepData, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the axes that these rows' points have, or `trial` where there are none."""
    found = {axis for row in rows for axis in row["point"]}
    return tuple(axis for axis in sweep.axes if axis in found) or ("trial",)


def _quality(sweep: SweepData, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the objectives, whatever was measured, and the other scores that were."""
    scores = _measured(rows, [name for name in _QUALITY if name not in sweep.objectives])
    tasks = [name for name in task_columns(list(rows)) if name not in sweep.objectives]
    return (*sweep.objectives, *scores, *tasks)


def _measured(rows: Iterable[Row], metrics: Sequence[str]) -> tuple[str, ...]:
    found = {key for row in rows for key, value in row.items() if value is not None and "/" in key}
    return tuple(metric for metric in metrics if metric_key(metric) in found)


def _costs_nothing(sweep: SweepData, axis: str) -> bool:
    """Whether nothing that an axis changes changes the cost of a step."""
    entry = (sweep.asked.get("space") or {}).get(axis)
    cases = entry.get("cases") if isinstance(entry, dict) else None
    if not cases:
        return axis.startswith(COST_NOTHING)
    overrides = [override for case in cases.values() for override in case]
    return all(override.lstrip("+~").startswith(COST_NOTHING) for override in overrides)
