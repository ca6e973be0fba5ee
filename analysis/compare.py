"""Which cells are best, which cannot be told from it, and how far each is from a reference, with a test."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, assert_never

from analysis.cells import MISSING, Cell, Column, ColumnKind
from analysis.groups import Group, metric_name
from analysis.metric_cells import BySeed
from analysis.printing import Scale, scale_of
from analysis.spec import Spec
from analysis.statistics import (
    Paired,
    difference_interval,
    holm,
    paired_difference,
    pareto_front,
)
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
    cells: Sequence[Cell], values: Sequence[BySeed], direction: Direction, confidence: float
) -> list[Cell]:
    """Return the cells with the best marked, and those whose difference to it may be 0.

    Tied is a cell where the interval of the difference to the best, paired over shared seeds where there are
    two, contains 0. From one seed nothing is said to be tied.
    """
    best = best_index(cells, direction)
    if best is None:
        return list(cells)
    marked = []
    for cell, by_seed in zip(cells, values, strict=True):
        if cell.value is None:
            marked.append(cell)
        elif cell.value == cells[best].value:
            marked.append(replace(cell, best=True))
        else:
            interval = difference_interval(by_seed, values[best], confidence)
            marked.append(replace(cell, tied=interval is not None and interval.contains(0.0)))
    return marked


def comparison_columns(
    spec: Spec, groups: Sequence[Group], cells: Sequence[Cell], values: Sequence[BySeed]
) -> list[tuple[Column, list[Cell]]]:
    """Return difference, interval and p-value of each line against its reference.

    Nothing if none is asked for, or the one asked for is not among the lines.
    """
    if spec.against is None and not spec.against_best:
        return []
    references = _references(spec, groups, cells)
    if all(index is None for index in references):
        return []
    pairs = [
        None
        if reference is None or reference == index or not by_seed.keys() & values[reference].keys()
        else paired_difference(by_seed, values[reference], spec.confidence)
        for index, (by_seed, reference) in enumerate(zip(values, references, strict=True))
    ]
    scale = _scale_of_differences(metric_name(spec.columns[0]), cells, pairs)
    p_values = holm([None if pair is None else pair.p_value for pair in pairs])
    lines = [
        _compared(pair, p_value, scale, _runs(cells, index, references[index]))
        if pair is not None
        else [Cell(text="reference" if references[index] == index else MISSING), _DASH, _DASH]
        for index, (pair, p_value) in enumerate(zip(pairs, p_values, strict=True))
    ]
    headers = [
        _column("difference", f"Δ {METRICS[metric_name(spec.columns[0])].label}", scale.unit),
        _column("difference interval", f"{100 * spec.confidence:g} % interval"),
        _column("p", "p (Holm)"),
    ]
    return [(header, [line[index] for line in lines]) for index, header in enumerate(headers)]


_DASH = Cell(text=MISSING)


def _scale_of_differences(
    name: str, cells: Sequence[Cell], pairs: Sequence[Paired | None]
) -> Scale:
    """Return a scale in which a difference of bytes, smaller than what it is between, can be read."""
    means = [cell.value for cell in cells if cell.value is not None]
    return scale_of(name, [*means, *(pair.difference for pair in pairs if pair is not None)])


def _compared(
    pair: Paired, p_value: float | None, scale: Scale, run_ids: tuple[str, ...]
) -> list[Cell]:
    """Return the cells of difference, interval and p-value."""

    change = scale.signed(pair.difference)
    bounds = MISSING
    if pair.low is not None and pair.high is not None:
        bounds = f"[{scale.signed(pair.low)}, {scale.signed(pair.high)}]"
    shown = None if p_value is None else f"{p_value:.{P_DIGITS}f}"
    return [
        Cell(text=text, number=number, n=pair.n, run_ids=run_ids)
        for text, number in ((change, change), (bounds, None), (shown or MISSING, shown))
    ]


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


def _references(spec: Spec, groups: Sequence[Group], cells: Sequence[Cell]) -> list[int | None]:
    """Return for each line the index of the line that it is compared with."""
    if spec.against is None:
        direction = METRICS[metric_name(spec.columns[0])].direction
        return [best_index(cells, direction)] * len(cells)
    wanted = dict(spec.against)
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
