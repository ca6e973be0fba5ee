"""What a table is to show, as data: rows, columns, filters, comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.frame import Role
from harness.records.metrics import Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One table. Keys are configuration keys, axes of the sweep, or `trial`."""

    name: str
    """Stem of the files."""
    title: str
    rows: tuple[str, ...]
    """One line for each combination of these keys."""
    columns: tuple[str, ...]
    """Metrics; an evaluation is the one after training unless `before.` precedes it."""
    across: str | None = None
    """A key whose values stand side by side: each column once for each of them."""
    role: Role | None = None
    """Only the runs that a sweep trained for this; None: of whatever runs there are."""
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Key -> the values that are let in."""
    choose: tuple[str, ...] = ()
    """Keys that vary within a line: the line shows the setting of them with the best first column."""
    best_first: bool = False
    """Lines by the first column, the best on top; else by the keys of the rows."""
    limit: int | None = None
    """Greatest number of lines; a footnote counts the rest."""
    against: Mapping[str, Any] | None = None
    """Values of some row keys. Each line is compared in the first column with the line that has these values
    and is otherwise the same: paired difference, interval, Holm-adjusted p-value."""
    against_best: bool = False
    """Compare with the best line instead."""
    front: Mapping[str, Direction] = field(default_factory=dict)
    """Two or more of the columns and their directions: the lines that no other is better than are marked."""
    published: tuple[str, ...] = ()
    """Names of files in analysis/published; each becomes a column beside ours."""

    def __post_init__(self) -> None:
        """Raise ValueError for a table without rows or columns, or with two references."""
        if not self.rows or not self.columns:
            raise ValueError(
                f"table {self.name} needs rows and columns, got {self.rows}, {self.columns}"
            )
        if self.against is not None and self.against_best:
            raise ValueError(f"table {self.name}: give `against` or `against_best`, not both")
        compares = self.against is not None or self.against_best or self.choose or self.front
        if self.across is not None and compares:
            raise ValueError(f"table {self.name}: `across` compares by itself; drop the comparison")
        unknown = sorted(set(self.front) - set(self.columns))
        if unknown:
            raise ValueError(f"table {self.name}: front of {unknown}, none of {self.columns}")
        unlisted = sorted(set(self.against or ()) - set(self.rows))
        if unlisted:
            raise ValueError(
                f"table {self.name}: against {unlisted}, which are none of {self.rows}"
            )
