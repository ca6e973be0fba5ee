"""The cells of one metric: a mean over seeds with its spread, or what became of the runs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.cells import MISSING, Cell, Column, ColumnKind
from analysis.frame import metric_key
from analysis.groups import Group, counted, metric_name
from analysis.printing import Scale, is_exact, scale_of, status_label, with_separators
from analysis.shares import share_interval
from analysis.statistics import mean_interval
from harness.records.metrics import COHORT_SHARES, METRICS, Direction

COHORT_MARK = "†"
NOT_FINITE = "not finite"

BySeed = dict[Any, float]


def metric_column(
    column: str, groups: Sequence[Group | None]
) -> tuple[Column, list[Cell], list[BySeed]]:
    """Return a metric's column over groups: header, cells, and the finite values by seed behind each cell.

    None among the groups is a combination that no run has.
    """
    name = metric_name(column)
    found = [_found(group, column) for group in groups]
    means = [sum(values.values()) / len(values) for values, _, _ in found if values]
    scale = scale_of(name, means)
    metric = METRICS[name]
    phase = "" if column == name else f" {column.partition('.')[0]}"
    header = Column(
        key=column,
        label=f"{metric.label}{phase}",
        kind=ColumnKind.metric,
        unit=scale.unit,
        direction=Direction.neither if column.startswith("before.") else metric.direction,
    )
    cells = [
        _cell(group, column, scale, values, run_ids, note)
        for group, (values, run_ids, note) in zip(groups, found, strict=True)
    ]
    if all(cell.n <= 1 for cell in cells):  # the column n and a footnote say it for all of them
        cells = [
            replace(cell, note=_without_n(cell, group))
            for cell, group in zip(cells, groups, strict=True)
        ]
    values = [
        by_seed if cell.value is not None else {}
        for cell, (by_seed, _, _) in zip(cells, found, strict=True)
    ]
    return header, cells, values


def _found(group: Group | None, column: str) -> tuple[BySeed, tuple[str, ...], str | None]:
    """Return the values by seed, the runs that they come from, and the mark of a footnote."""
    if group is None:
        return {}, (), None
    key = metric_key(column)
    pairs, mark = counted(group, column), None
    in_company = any(row.get(key) is not None for row in group.completed)
    if not pairs and in_company and metric_name(column) in COHORT_SHARES:
        mark = COHORT_MARK
    values = {seed: row[key] for seed, row in pairs}
    return values, tuple(row["run_id"] for _, row in pairs), mark


def _cell(
    group: Group | None,
    column: str,
    scale: Scale,
    values: BySeed,
    run_ids: tuple[str, ...],
    mark: str | None,
) -> Cell:
    if group is None:
        return Cell(text=MISSING)
    if not values:
        if group.completed:
            return Cell(text=MISSING, note=mark)
        labels = sorted({status_label(row["status"]) for row in group.rows})
        return Cell(text=", ".join(labels), run_ids=tuple(row["run_id"] for row in group.rows))
    if not all(map(math.isfinite, values.values())):
        return Cell(text=NOT_FINITE, n=len(values), run_ids=run_ids)
    interval = mean_interval(list(values.values()))
    exact = is_exact(metric_name(column)) and not interval.deviation
    number = scale.number(interval.mean)
    share = share_interval([row for _, row in counted(group, column)], column)
    if share is not None:
        interval = replace(share, deviation=interval.deviation)
        spread = f"[{scale.number(share.low or 0.0)}, {scale.number(share.high or 0.0)}]"
    else:
        width = None if exact else interval.half_width
        spread = None if width is None else f"± {with_separators(scale.number(width))}"
    text = with_separators(number) + (f" {spread}" if spread else "")
    n = interval.n
    remarks = [f"(n={n})"] if not exact and (n == 1 or n != len(group.completed)) else []
    return Cell(
        text=text,
        number=number,
        spread=spread,
        value=interval.mean,
        interval=interval,
        n=n,
        run_ids=run_ids,
        note=" ".join([*remarks, *([mark] if mark else [])]) or None,
    )


def _without_n(cell: Cell, group: Group | None) -> str | None:
    """Return a cell's remark without `(n=1)`, unless its line has more runs than that."""
    if cell.note is None or group is None or len(group.completed) != 1:
        return cell.note
    return cell.note.removeprefix("(n=1)").strip() or None
