"""A table as CSV for programs: full precision, and the ends of intervals in columns of their own."""

import csv as standard
import io
from collections.abc import Iterator

from analysis.cells import Cell, Column, ColumnKind, Table

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t")


def csv(table: Table) -> str:
    """Return the table; what is no number and would be a formula in a spreadsheet gets a leading apostrophe.

    A metric's value is in its own unit (bytes, not MiB). Words as OOM stand in the value's column.
    """
    text = io.StringIO()
    writer = standard.writer(text, lineterminator="\n")
    writer.writerow([escaped(name) for column in table.columns for name in _names(column)])
    for row in table.rows:
        writer.writerow(
            [
                escaped(field)
                for column, cell in zip(table.columns, row, strict=True)
                for field in _fields(column, cell)
            ]
        )
    return text.getvalue()


def escaped(text: str) -> str:
    """Return one line of text that no spreadsheet takes for a formula."""
    text = text.replace("\r", " ").replace("\n", " ")
    if not text.lstrip(" ").startswith(_STARTS_A_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def _names(column: Column) -> list[str]:
    if column.kind is not ColumnKind.metric:
        return [column.key]
    return [column.key, *(f"{column.key} {end}" for end in ("low", "high", "deviation", "n"))]


def _fields(column: Column, cell: Cell) -> Iterator[str]:
    if column.kind is not ColumnKind.metric:
        yield cell.text
        return
    yield cell.text if cell.value is None else _number(cell.value)
    interval = cell.interval
    for value in (interval.low, interval.high, interval.deviation) if interval else (None,) * 3:
        yield "" if value is None else _number(value)
    yield str(cell.n)


def _number(value: float) -> str:
    return f"{value:.10g}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
