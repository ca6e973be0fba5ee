"""Which cells are best, which may be, and how far each is from a reference: one inference a table."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, assert_never

from analysis.cells import MISSING, Cell, Column, ColumnKind
from analysis.groups import Group, metric_name
from analysis.inference import AmongBest, Tested, compare_with_best, family_of
from analysis.metric_cells import BySeed
from analysis.printing import Scale, scale_of
from analysis.spec import Spec
from analysis.statistics import pareto_front
from harness.records.metrics import METRICS, Direction

P_DIGITS = 3


def best_index(cells: Sequence[Cell], direction: Direction) -> int | None:
    """Return the index of the best cell; None without two different values or a better side."""
    valued = [(cell.value, index) for index, cell in enumerate(cells) if cell.value is not None]
    if len({value for value, _ in valued}) < 2:
        return None
    match direction:
        case Direction.minimize:
            return min(valued)[1]
        case Direction.maximize:
            return max(valued, key=lambda pair: pair[0])[1]
        case Direction.neither:
            return None
        case unknown:
            assert_never(unknown)


def marked_best(
    cells: Sequence[Cell], values: Sequence[BySeed], direction: Direction
) -> list[Cell]:
    """Return the cells with the best mean marked, and those that may be the best (`compare_with_best`).

    From one seed nothing is said to be tied.
    """
    best = best_index(cells, direction)
    if best is None:
        return list(cells)
    among = among_best(values, direction)
    return [
        replace(cell, best=True)
        if cell.value is not None and cell.value == cells[best].value
        else replace(cell, tied=found is not None and found.may_be_best)
        for cell, found in zip(cells, among, strict=True)
    ]


def among_best(values: Sequence[BySeed], direction: Direction) -> list[AmongBest | None]:
    """Return what comparisons with the best say of each cell; None for one of fewer than two seeds."""
    enough = [index for index, by_seed in enumerate(values) if len(by_seed) >= 2]
    compared = compare_with_best(
        [values[index] for index in enough], smaller_is_better=direction is not Direction.maximize
    )
    found = {} if compared is None else dict(zip(enough, compared[0], strict=True))
    return [found.get(index) for index in range(len(values))]


def comparison_columns(
    spec: Spec, groups: Sequence[Group], cells: Sequence[Cell], values: Sequence[BySeed]
) -> list[tuple[Column, list[Cell]]]:
    """Return difference, interval and p-value of each line against its reference, or against the best.

    Nothing if none is asked for, or the one asked for is not among the lines.
    """
    if spec.against_best:
        return _best_columns(spec, cells, values)
    if spec.against is None:
        return []
    references = _references(spec, groups)
    if all(index is None for index in references):
        return []
    differences = [
        [] if reference in (None, index) else paired(by_seed, values[reference])
        for index, (by_seed, reference) in enumerate(zip(values, references, strict=True))
    ]
    tested = family_of(differences, None).tested
    changes = [each.difference for each in tested if each is not None]
    scale = _scale_of_differences(metric_name(spec.columns[0]), cells, changes)
    lines = [
        compared_cells(each, scale, _runs(cells, index, references[index]))
        if each is not None
        else [Cell(text="reference" if references[index] == index else MISSING), _DASH, _DASH]
        for index, each in enumerate(tested)
    ]
    headers = [
        _column("difference", f"Δ {METRICS[metric_name(spec.columns[0])].label}", scale.unit),
        _column("difference interval", "interval"),
        _column("p", "p (Holm)"),
    ]
    return [(header, [line[index] for line in lines]) for index, header in enumerate(headers)]


def paired(a: BySeed, b: BySeed) -> list[float]:
    """Return the differences a - b over the seeds that both have."""
    return [a[seed] - b[seed] for seed in a if seed in b]


def _best_columns(
    spec: Spec, cells: Sequence[Cell], values: Sequence[BySeed]
) -> list[tuple[Column, list[Cell]]]:
    """Return each line's difference to the best of the others, with Hsu's interval; nothing without it."""
    name = metric_name(spec.columns[0])
    among = among_best(values, METRICS[name].direction)
    intervals = [None if found is None else found.interval for found in among]
    if all(interval is None for interval in intervals):
        return []
    scale = _scale_of_differences(name, cells, [i.mean for i in intervals if i is not None])
    lines = [
        [_DASH, _DASH]
        if interval is None
        else [
            Cell(
                text=scale.signed(interval.mean), number=scale.signed(interval.mean), n=interval.n
            ),
            Cell(text=bounds(interval.low, interval.high, scale), n=interval.n),
        ]
        for interval in intervals
    ]
    headers = [
        _column("to best", "Δ to the best other", scale.unit),
        _column("to best interval", "95 % interval (Hsu)"),
    ]
    return [(header, [line[index] for line in lines]) for index, header in enumerate(headers)]


_DASH = Cell(text=MISSING)


def _scale_of_differences(name: str, cells: Sequence[Cell], changes: Sequence[float]) -> Scale:
    """Return a scale in which a difference of bytes, smaller than what it is between, can be read."""
    means = [cell.value for cell in cells if cell.value is not None]
    return scale_of(name, [*means, *changes])


def compared_cells(tested: Tested, scale: Scale, run_ids: tuple[str, ...]) -> list[Cell]:
    """Return the cells of difference, interval and p-value."""
    change = scale.signed(tested.difference)
    shown = None if tested.p_value is None else p_text(tested.p_value)
    return [
        Cell(text=text, number=number, n=tested.n, run_ids=run_ids)
        for text, number in (
            (change, change),
            (bounds(tested.low, tested.high, scale), None),
            (shown or MISSING, shown if shown and not shown.startswith("<") else None),
        )
    ]


def p_text(p_value: float) -> str:
    """Return a p-value in three digits; smaller ones as such."""
    least = 10.0**-P_DIGITS
    return f"<{least:.{P_DIGITS}f}" if p_value < least / 2 else f"{p_value:.{P_DIGITS}f}"


def bounds(low: float | None, high: float | None, scale: Scale) -> str:
    """Return an interval of a difference in brackets, with its signs."""
    if low is None or high is None:
        return MISSING
    return f"[{scale.signed(low)}, {scale.signed(high)}]"


def front_column(
    spec: Spec, columns: Sequence[tuple[Column, list[Cell]]]
) -> list[tuple[Column, list[Cell]]]:
    """Return a column that marks the lines on the Pareto front of the means; nothing if none is asked."""
    if not spec.front:
        return []
    cells = {column.key: cells for column, cells in columns}
    points = [
        [math.nan if cell.value is None else cell.value for cell in line]
        for line in zip(*(cells[name] for name in spec.front), strict=True)
    ]
    front = set(pareto_front(points, list(spec.front.values())))
    marks = [Cell(text="yes" if index in front else "no") for index in range(len(points))]
    return [(_column("front", "on the Pareto front"), marks)]


def _column(key: str, label: str, unit: str = "") -> Column:
    return Column(key=key, label=label, unit=unit, kind=ColumnKind.statistic)


def _runs(cells: Sequence[Cell], index: int, reference: int | None) -> tuple[str, ...]:
    return cells[index].run_ids + (() if reference is None else cells[reference].run_ids)


def _references(spec: Spec, groups: Sequence[Group]) -> list[int | None]:
    """Return for each line the index of the line that it is compared with."""
    wanted = dict(spec.against or {})
    lines: dict[tuple[Any, ...], int] = {}
    for index, group in enumerate(groups):
        lines[group.values[: len(spec.rows)]] = index
    return [
        lines.get(
            tuple(
                wanted.get(key, value) for key, value in zip(spec.rows, group.values, strict=False)
            )
        )
        for group in groups
    ]
