"""Published values beside ours, from data files that name paper, table and what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis.cells import MISSING, Cell, Column, ColumnKind
from analysis.frame import Row, value_of
from harness.errors import near_names
from harness.records.metrics import Direction

DIRECTORY = Path(__file__).parent / "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedValue:
    """One number of a paper."""

    where: dict[str, Any]
    """Keys and values of the line that it belongs to."""
    label: str
    """The row as the paper calls it."""
    value: float
    deviation: float | None
    """Deviation that the paper gives; None where it gives none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One table of a paper, or a part of it."""

    name: str
    paper: str
    arxiv: str | None
    table: str
    """Its number in the paper."""
    label: str
    """Header of the column."""
    setting: str
    """Models, data and metric that were measured."""
    source: str | None
    """Address where it stands; None: the paper's own, by its arXiv number."""
    never: str | None
    """Why no run of ours can ever stand beside it; None: one can."""
    unit: str
    direction: Direction
    digits: int
    values: tuple[PublishedValue, ...]

    @property
    def footnote(self) -> str:
        """The sentence under a table that shows it."""
        where = f", arXiv {self.arxiv}" if self.arxiv else ""
        where += f" ({self.source})" if self.source else ""
        return (
            f"{self.label}: published in {self.paper}{where}, {self.table}; {self.setting}. Measured on "
            "other models and data than the other columns."
        )


def published_names() -> list[str]:
    """Return the names of all published tables."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


@cache
def load_published(name: str) -> Published:
    """Return a published table by the stem of its file. Raises ValueError where there is none."""
    import yaml

    path = DIRECTORY / f"{name}.yaml"
    if name not in published_names():
        raise ValueError(
            f"no published table {name}{near_names(name, published_names())}; "
            f"there are {', '.join(published_names())}"
        )
    tree: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    values = tuple(
        PublishedValue(
            where={key: _hashable(value) for key, value in entry["where"].items()},
            label=str(entry["label"]),
            value=float(entry["value"]),
            deviation=None if entry.get("deviation") is None else float(entry["deviation"]),
        )
        for entry in tree["values"]
    )
    return Published(
        name=name,
        paper=tree["paper"],
        arxiv=tree.get("arxiv"),
        table=tree["table"],
        label=tree["label"],
        setting=tree["setting"],
        source=tree.get("source"),
        never=tree.get("never"),
        unit=tree.get("unit", ""),
        direction=Direction(tree["direction"]),
        digits=int(tree["digits"]),
        values=values,
    )


def published_columns(
    names: Sequence[str], lines: Sequence[Row]
) -> tuple[list[tuple[Column, list[Cell]]], list[str]]:
    """Return a column for each published table, and its footnote; `lines` holds a run of each line.

    A value stands in the line whose runs have all of its keys with its values; where no line has one, the
    column is left out.
    """
    columns, footnotes = [], []
    for name in names:
        table = load_published(name)
        cells = [_cell(table, line) for line in lines]
        if all(cell.value is None for cell in cells):
            continue
        header = Column(
            key=name,
            label=table.label,
            kind=ColumnKind.published,
            unit=table.unit,
            direction=table.direction,
        )
        columns.append((header, cells))
        footnotes.append(table.footnote)
    return columns, footnotes


def _hashable(value: Any) -> Any:
    """Return a list of the file as a row holds it."""
    return tuple(value) if isinstance(value, list) else value


def published_value(table: Published, line: Row) -> PublishedValue | None:
    """Return the value of the line that a run belongs to; None where the paper has none."""
    for entry in table.values:
        if all(value_of(line, key) == value for key, value in entry.where.items()):
            return entry
    return None


def _cell(table: Published, line: Row) -> Cell:
    entry = published_value(table, line)
    if entry is not None:
        number = f"{entry.value:.{table.digits}f}"
        spread = None if entry.deviation is None else f"± {entry.deviation:.{table.digits}f}"
        text = f"{number} {spread}" if spread else number
        return Cell(text=text, number=number, spread=spread, value=entry.value)
    return Cell(text=MISSING)
