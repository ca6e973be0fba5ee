"""`build_table`: from a spec and rows to a table whose every number says what it rests on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from analysis.cells import Cell, Column, ColumnKind, Table, TableRefused
from analysis.compare import comparison_columns, front_column, marked_best
from analysis.footnotes import footnotes
from analysis.frame import Row, named_level
from analysis.groups import Group, chosen_groups, grouped, sort_key
from analysis.metric_cells import BySeed, metric_column
from analysis.printing import printed, status_label
from analysis.published import published_columns
from analysis.spec import Spec
from harness.records.metrics import Direction
from harness.records.record import RunStatus

__all__ = [
    "Cell",
    "Column",
    "ColumnKind",
    "Spec",
    "Table",
    "TableRefused",
    "build_table",
]

_Columns = list[tuple[Column, list[Cell]]]


def build_table(spec: Spec, rows: Sequence[Row]) -> Table:
    """Build the table of a spec.

    Raises TableRefused where there is nothing to show, where a configuration key that can change a result
    varies within a line, or where two runs of a line have the same seed; ValueError for an unknown column
    or key.
    """
    groups = grouped(spec, rows)
    if spec.across is not None:
        return _across(spec, groups)
    chosen: list[int] = []
    if spec.choose:
        groups, chosen = chosen_groups(groups, spec)
    columns: _Columns = []
    first: tuple[list[Cell], list[BySeed]] | None = None
    for name in spec.columns:
        header, cells, values = metric_column(name, groups)
        cells = marked_best(cells, values, header.direction)
        columns.append((header, cells))
        first = first or (cells, values)
    assert first is not None, "a spec has columns"
    columns += front_column(spec, columns)
    columns[1:1] = comparison_columns(spec, groups, *first)
    lines = [dict(zip((*spec.rows, *spec.choose), group.values, strict=True)) for group in groups]
    beside, published_notes = published_columns(spec.published, [g.rows[0] for g in groups])
    whole = [*_key_columns(lines), (_N, [_count_cell(g) for g in groups]), *columns, *beside]
    order = _order(spec, columns[0])
    return _table(spec, whole, order, groups, chosen, published_notes)


def _table(
    spec: Spec,
    columns: _Columns,
    order: Sequence[int],
    groups: Sequence[Group],
    chosen: Sequence[int],
    published_notes: Sequence[str],
) -> Table:
    shown = order[: spec.limit]
    cells = [[column[index] for _, column in columns] for index in shown]
    notes = footnotes(spec, groups, cells, chosen)
    if len(shown) < len(order):
        which = "best" if spec.best_first else "first"
        notes.insert(0, f"The {which} {len(shown)} of {len(order)} lines.")
    return Table(
        name=spec.name,
        title=spec.title,
        columns=[column for column, _ in columns],
        rows=cells,
        footnotes=[*notes, *published_notes],
    )


_N = Column(key="n", label="n", kind=ColumnKind.count)


def _key_columns(lines: Sequence[dict[str, Any]]) -> _Columns:
    return [
        (
            Column(key=key, label=key, kind=ColumnKind.key),
            [Cell(text=printed(named_level(key, line[key]))) for line in lines],
        )
        for key in lines[0]
    ]


def _order(spec: Spec, first: tuple[Column, list[Cell]]) -> list[int]:
    """Return the order of the lines: as grouped, or the best first and those without a value last."""
    column, cells = first
    if not spec.best_first:
        return list(range(len(cells)))
    sign = -1.0 if column.direction is Direction.maximize else 1.0
    return sorted(
        range(len(cells)),
        key=lambda i: (cells[i].value is None, sign * (cells[i].value or 0.0)),
    )


def _across(spec: Spec, groups: Sequence[Group]) -> Table:
    """Build a table in which the values of one key stand side by side."""
    assert spec.across is not None
    by_place = {(group.values[:-1], group.values[-1]): group for group in groups}
    lines = sorted({line for line, _ in by_place}, key=sort_key)
    sides = sorted({side for _, side in by_place}, key=lambda side: sort_key((side,)))
    columns: _Columns = []
    for name in spec.columns:
        whole = [by_place.get((line, side)) for line in lines for side in sides]
        header, cells, values = metric_column(name, whole)  # one scale for all sides
        marked = [
            marked_best(
                cells[start : start + len(sides)],
                values[start : start + len(sides)],
                header.direction,
            )
            for start in range(0, len(whole), len(sides))
        ]
        for index, side in enumerate(sides):
            level = printed(named_level(spec.across, side))
            column = Column(
                key=f"{header.key} {spec.across}={level}",
                label=f"{spec.across}={level}: {header.label}",
                kind=ColumnKind.metric,
                unit=header.unit,
                direction=header.direction,
            )
            columns.append((column, [line[index] for line in marked]))
    keys = [dict(zip(spec.rows, line, strict=True)) for line in lines]
    counts = [
        _joined_count([by_place[line, side] for side in sides if (line, side) in by_place])
        for line in lines
    ]
    first = [next(g for g in groups if g.values[:-1] == line).rows[0] for line in lines]
    beside, published_notes = published_columns(spec.published, first)
    whole_table = [*_key_columns(keys), (_N, counts), *columns, *beside]
    return _table(spec, whole_table, range(len(lines)), groups, [], published_notes)


def _joined_count(groups: Sequence[Group]) -> Cell:
    """Count the runs of each group of a line: once if all have as many, else from side to side."""
    cells = [_count_cell(group) for group in groups]
    texts = list(dict.fromkeys(cell.text for cell in cells))
    run_ids = tuple(run_id for cell in cells for run_id in cell.run_ids)
    text = texts[0] if len(texts) == 1 else "; ".join(cell.text for cell in cells)
    return Cell(text=text, n=sum(cell.n for cell in cells), run_ids=run_ids)


def _count_cell(group: Group) -> Cell:
    """Count the runs of a group by what became of them: `3`, `2 + 1 OOM`."""
    count = Counter(row["status"] for row in group.rows)
    completed = count.pop(RunStatus.completed, 0)
    others = [f"{count[status]} {status_label(status)}" for status in RunStatus if count[status]]
    text = " + ".join([str(completed)] * (completed > 0 or not others) + others)
    return Cell(
        text=text,
        number=text if text.isdigit() else None,
        n=completed,
        run_ids=tuple(row["run_id"] for row in group.rows),
    )
