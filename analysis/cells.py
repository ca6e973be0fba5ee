"""What a table is made of: columns, cells, footnotes, and the runs behind every cell."""

import json
from dataclasses import dataclass, field
from enum import Enum

from analysis.statistics import Interval
from harness.records.metrics import Direction

MISSING = "—"
TIED = "≈"


class TableRefused(ValueError):
    """The records do not support the table; the message says why and what would."""


class ColumnKind(Enum):
    """What a column holds."""

    key = "key"
    count = "count"
    metric = "metric"
    statistic = "statistic"
    published = "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column and its header."""

    key: str
    """Configuration key, metric, or what it is called in the CSV file."""
    label: str
    kind: ColumnKind
    unit: str = ""
    direction: Direction = Direction.neither

    @property
    def header(self) -> str:
        """The label with unit and an arrow to the better side."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit}{self.direction.arrow}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: what is printed, and what it rests on."""

    text: str
    """Text of the cell, without the marks for best and tied."""
    number: str | None = None
    """The digits of the mean as printed, without separators; None for words and missing values."""
    spread: str | None = None
    """What stands after the mean: `± 0.02`, or the ends of its interval in brackets; or None."""
    value: float | None = None
    """The mean in the metric's own unit."""
    interval: Interval | None = None
    n: int = 0
    run_ids: tuple[str, ...] = ()
    best: bool = False
    tied: bool = False
    note: str | None = None
    """The mark of a footnote, or a short remark such as n=1, printed after the value."""

    @property
    def marked(self) -> str:
        """The text with its remark and the mark of a tie."""
        remarks = [self.note] if self.note else []
        return " ".join([self.text, *remarks, *([TIED] if self.tied else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table ready to be printed."""

    name: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    footnotes: list[str] = field(default_factory=list)

    def sources(self) -> str:
        """Return a JSON document that names the runs behind every cell."""
        keys = [i for i, column in enumerate(self.columns) if column.kind is ColumnKind.key]
        cells = [
            {
                "row": {self.columns[i].key: row[i].text for i in keys},
                "column": column.key,
                "text": cell.text,
                "n": cell.n,
                "runs": list(cell.run_ids),
            }
            for row in self.rows
            for column, cell in zip(self.columns, row, strict=True)
            if column.kind in (ColumnKind.metric, ColumnKind.statistic, ColumnKind.count)
        ]
        tree = {"table": self.name, "title": self.title, "cells": cells}
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
