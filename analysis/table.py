"""A Markdown table of cells, each a mean over seeds, that refuses to average unlike runs.

Quality comes from solo and cohort runs, cost from solo runs and probes: a cohort shares its process, so
what it measured is nobody's own cost (design: "Measuring").
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, assert_never

from analysis.frame import Row, config_keys
from harness.metrics import COHORT_SHARES, METRICS, Direction, Metric, format_value
from harness.record import MeasuredIn, RunStatus

MISSING = "—"
COHORT_MARK = "†"

_SEED = "seed"
_WITHOUT_EFFECT = ("paths.", "tracker.", "checkpoint.", "resources.")
_PHASES = ("before", "after")


def comparison_table(
    rows: Sequence[Row],
    *,
    group_by: Sequence[str],
    columns: Sequence[str],
    show_cohort_costs: bool = False,
) -> str:
    """Return a Markdown table: one line per combination of the `group_by` keys, one column per metric.

    `columns` are metric names, or `before.`/`after.` and a metric name. A cell is the mean ± the sample
    standard deviation over the completed runs of its group, the plain value where there is one, — where
    it was not measured; a group without a completed run shows what became of it (OOM, diverged, …), and
    the column `n` counts every run. Memory and throughput that only a cohort measured are left out with
    a footnote, or, with `show_cohort_costs`, shown with one. Notes of the records stand below.

    Raises ValueError for an unknown key or column, where a configuration key that can change a result,
    other than the seed, varies within a group, and where two runs of a group have the same seed.
    """
    _check_request(rows, group_by, columns)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in group_by), []).append(row)
    for values, group in groups.items():
        _check_alike(group, dict(zip(group_by, values, strict=True)))

    header = [*group_by, "n", *(_header(column) for column in columns)]
    lines = [header, [*("---" for _ in group_by), *("---:" for _ in header[len(group_by) :])]]
    for values in sorted(groups, key=_sort_key):
        cells = [_cell(groups[values], column, show_cohort_costs) for column in columns]
        lines.append([*map(_printed, values), _run_count(groups[values]), *cells])
    table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    return "\n".join([table, *_footnotes(rows, table, show_cohort_costs)]) + "\n"


def _check_request(rows: Sequence[Row], group_by: Sequence[str], columns: Sequence[str]) -> None:
    if not rows:
        raise ValueError("no runs to compare")
    known = set[str]().union(*(config_keys(row) for row in rows))
    for key in group_by:
        if key not in known:
            raise ValueError(
                f"group_by={key} is no configuration key of these runs; they have {sorted(known)}"
            )
    for column in columns:
        if _metric_name(column) not in METRICS:
            raise ValueError(
                f"column {column} is no metric, nor before. or after. and a metric; "
                f"metrics are {list(METRICS)}"
            )


def _check_alike(group: Sequence[Row], named: Row) -> None:
    """Raise ValueError if runs that would be averaged differ in more than their seed."""
    keys = set[str]().union(*(config_keys(row) for row in group))
    for key in sorted(keys):
        if key == _SEED or key.startswith(_WITHOUT_EFFECT):
            continue
        values = {repr(row[key]) if key in row else "absent" for row in group}
        if len(values) > 1:
            raise ValueError(
                f"{key} varies ({', '.join(sorted(values))}) among the {len(group)} runs of "
                f"{named}: they cannot be averaged; add {key} to group_by or choose among the runs"
            )
    seeds = Counter(row.get(_SEED) for row in group if _is_replicate(row))
    for seed, count in seeds.items():
        if count > 1:
            raise ValueError(f"{count} runs of {named} have seed {seed}: they are no replicates")


def _metric_name(column: str) -> str:
    phase, dot, name = column.partition(".")
    return name if dot and phase in _PHASES else column


def _header(column: str) -> str:
    metric = METRICS[_metric_name(column)]
    phase = "" if column == metric.name else f" {column.partition('.')[0]}"
    unit = f" ({metric.unit})" if _shows_unit(metric) else ""
    match metric.direction:
        case Direction.minimize:
            arrow = " ↓"
        case Direction.maximize:
            arrow = " ↑"
        case Direction.neither:
            arrow = ""
        case unknown:
            assert_never(unknown)
    return f"{metric.label}{phase}{unit}{arrow}"


def _shows_unit(metric: Metric) -> bool:
    """Whether the header gives the unit: bytes carry theirs in every cell, some labels say it already."""
    return metric.unit not in ("", "bytes") and metric.unit not in metric.label


def _cell(group: Sequence[Row], column: str, show_cohort_costs: bool) -> str:
    name = _metric_name(column)
    shared = name in COHORT_SHARES
    expected = sum(_is_replicate(row) for row in group)
    values = _values([row for row in group if _counts(row["measured_in"], shared)], column)
    if values:
        return _mean(name, values, expected)
    if shared and (of_cohort := _values(group, column)):
        return f"{_mean(name, of_cohort, expected) if show_cohort_costs else MISSING} {COHORT_MARK}"
    if any(row["status"] is RunStatus.completed for row in group):
        return MISSING
    return ", ".join(sorted({_status_label(row["status"]) for row in group}))


def _is_replicate(row: Row) -> bool:
    return row["status"] is RunStatus.completed and row["measured_in"] is not MeasuredIn.probe


def _counts(measured_in: MeasuredIn, shared: bool) -> bool:
    """Whether a run's value goes into a cell; `shared`: of a metric that is a cohort's, not a run's."""
    match measured_in:
        case MeasuredIn.solo:
            return True
        case MeasuredIn.cohort:
            return not shared
        case MeasuredIn.probe:  # a few steps: what they cost is meant, what they learnt is not
            return shared
        case unknown:
            assert_never(unknown)


def _values(group: Iterable[Row], column: str) -> list[float]:
    completed = (row for row in group if row["status"] is RunStatus.completed)
    return [row[column] for row in completed if row.get(column) is not None]


def _mean(name: str, values: Sequence[float], expected: int) -> str:
    """Print mean ± deviation, with n where it is not the `expected` one of the column `n`."""
    if not all(map(math.isfinite, values)):
        return "not finite"
    text = format_value(name, statistics.fmean(values))
    if len(values) > 1:
        text += f" ± {format_value(name, statistics.stdev(values))}"
    return text if len(values) == expected else f"{text} (n={len(values)})"


def _run_count(group: Sequence[Row]) -> str:
    """Count the runs of a group (probes are none) by what became of them: `3`, `2 + 1 OOM`."""
    count = Counter(row["status"] for row in group if row["measured_in"] is not MeasuredIn.probe)
    completed = count.pop(RunStatus.completed, 0)
    others = [f"{count[status]} {_status_label(status)}" for status in RunStatus if count[status]]
    return " + ".join([str(completed)] * (completed > 0 or not others) + others)


def _status_label(status: RunStatus) -> str:
    return "OOM" if status is RunStatus.out_of_memory else status.value


def _footnotes(rows: Sequence[Row], table: str, show_cohort_costs: bool) -> list[str]:
    lines = ["Cells are means ± sample standard deviations over the n seeds."]
    if COHORT_MARK in table:
        lines.append(
            f"{COHORT_MARK} Measured in a cohort, whose runs share one process: not the cost of a run "
            f"alone{'' if show_cohort_costs else ', so left out'}."
        )
    notes = Counter(note for row in rows for note in row["notes"])
    lines += [f"{_escaped(note)} ({_runs(count)})." for note, count in notes.items()]
    return [line for text in lines for line in ("", text)]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _sort_key(values: tuple[Any, ...]) -> list[tuple[int, float, str]]:
    """Order missing values first, then numbers by size, then the rest by their print."""
    return [
        (0, 0.0, "")
        if value is None
        else (1, float(value), "")
        if isinstance(value, int | float)
        else (2, 0.0, _printed(value))
        for value in values
    ]


def _printed(value: Any) -> str:
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
