"""Whether the ordering that a paper has published appears in a sweep's confirmation: worded by the tests
alone.

A contrast's claim is what the question expects of it, else what the published numbers say: a difference
within the paper's own deviation over seeds, or of nothing, is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from analysis.cells import MISSING, Cell, Column, ColumnKind, Table
from analysis.compare import compared_cells
from analysis.contrasts import Answered, Compared
from analysis.frame import Role, Row
from analysis.inference import Verdict
from analysis.published import Published, load_published, published_names, published_value
from analysis.sources import SweepData
from analysis.spec import Spec
from harness.question.compare import Expected
from harness.records.metrics import METRICS, Direction


class Order(Enum):
    """What the tests make of one published comparison."""

    appears = "appears"
    reverse = "the reverse appears"
    absent = "does not appear"
    undecided = "not decided"
    unmeasured = "not measured"
    unclaimed = "not in the paper"


_WORDS = {
    Order.appears: "appears",
    Order.reverse: "is reversed",
    Order.absent: "does not appear",
    Order.undecided: "is not decided",
    Order.unmeasured: "is not measured",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One contrast beside what is published of it."""

    compared: Compared
    claim: Expected | None
    """What the level is beside its reference by the paper; None where it says nothing."""
    values: tuple[tuple[Published, float, float], ...]
    """Published tables that have both: level, reference."""
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """All contrasts of a question beside what is published of them."""

    answered: Answered
    placed: tuple[Placed, ...]

    @property
    def sentence(self) -> str:
        """How much of the published ordering appears."""
        claimed = [each for each in self.placed if each.claim is not None]
        if not claimed:
            return "No published comparison stands beside these."
        parts = []
        for order in _WORDS:
            where = [each for each in claimed if each.order is order]
            if where:
                named = (
                    "; ".join(_named(each) for each in where) if len(where) < len(claimed) else ""
                )
                parts.append(f"{_WORDS[order]} in {len(where)}" + (f" ({named})" if named else ""))
        return f"Of {len(claimed)} published comparisons the ordering {', '.join(parts)}."


def ordering(sweep: SweepData, found: Answered) -> Ordering | None:
    """Return the contrasts beside what is published; None for a question that names nothing published."""
    names = sweep.asked.get("published")
    if not names:
        return None
    tables = [load_published(name) for name in names if name in published_names()]
    of_run = {row["run_id"]: row for row in sweep.rows_of(Role.confirmation)}
    placed = [_placed(each, tables, of_run, found) for each in found.all]
    return Ordering(answered=found, placed=tuple(placed))


def _placed(
    compared: Compared, tables: Sequence[Published], of_run: Mapping[str, Row], found: Answered
) -> Placed:
    lines = [
        next((row for row in map(of_run.get, compared.run_ids) if _is_of(row, side)), None)
        for side in compared.contrast.sides
    ]
    values = []
    claim = compared.contrast.expected
    for table in tables:
        level, reference = (
            None if line is None else published_value(table, line) for line in lines
        )
        if level is None or reference is None:
            continue
        values.append((table, level.value, reference.value))
        if claim is None:
            allowed = max(level.deviation or 0.0, reference.deviation or 0.0)
            claim = _claim(table, level.value - reference.value, allowed)
    return Placed(
        compared=compared, claim=claim, values=tuple(values), order=order_of(compared, claim, found)
    )


def _is_of(row: Row | None, side: Mapping[str, str]) -> bool:
    return row is not None and all(row["point"].get(key) == level for key, level in side.items())


def _claim(table: Published, difference: float, allowed: float) -> Expected:
    if abs(difference) <= allowed:
        return Expected.equivalent
    smaller_is_better = table.direction is Direction.minimize
    return Expected.better if (difference < 0) == smaller_is_better else Expected.worse


def order_of(compared: Compared, claim: Expected | None, found: Answered) -> Order:
    """Return what the test says of a claim; a difference within the margin is as good as none."""
    tested = compared.tested
    if claim is None:
        return Order.unclaimed
    if tested is None:
        return Order.unmeasured
    word = found.word(tested)
    if claim is Expected.equivalent and tested.within_margin:
        return Order.appears
    if tested.verdict is Verdict.undecided:
        return Order.undecided
    if word == claim.value:
        return Order.appears
    opposite = {Expected.better: "worse", Expected.worse: "better"}
    return Order.reverse if opposite.get(claim) == word else Order.absent


def _named(placed: Placed) -> str:
    contrast = placed.compared.contrast
    within = "".join(f", {level}" for level in contrast.within.values())
    return f"{contrast.level} beside {contrast.reference}{within}"


# Tables -------------------------------------------------------------------------------------------


def ordering_table(ordering: Ordering, title: str) -> Table:
    """Return a line for each contrast: published difference, ours with its interval, and the verdict."""
    found = ordering.answered
    scale = found.scale
    per = list(dict.fromkeys(key for each in found.all for key in each.contrast.within))
    axes = list(dict.fromkeys(each.contrast.axis for each in found.all))
    tables = list(
        {table.name: table for each in ordering.placed for table, _, _ in each.values}.values()
    )
    key, number = ColumnKind.key, ColumnKind.statistic
    label = METRICS[found.metric].label
    columns = [
        Column(key="level", label=axes[0] if len(axes) == 1 else "level", kind=key),
        Column(key="reference", label="beside", kind=key),
        *(Column(key=name, label=name, kind=key) for name in per),
        *(
            Column(
                key=f"published {table.name}",
                label=f"published Δ: {table.label}",
                unit=table.unit,
                kind=ColumnKind.published,
            )
            for table in tables
        ),
        Column(key="claim", label="so it is", kind=ColumnKind.published),
        Column(key="difference", label=f"our Δ {label}", unit=scale.unit, kind=number),
        Column(key="interval", label="interval", kind=number),
        Column(key="p", label="p (Holm)", kind=number),
        Column(key="ours", label="ours is", kind=number),
        Column(key="verdict", label="the published ordering", kind=number),
    ]
    lines = [_line(each, per, tables, found) for each in ordering.placed]
    return Table(
        name="ordering", title=title, columns=columns, rows=lines, footnotes=_notes(tables)
    )


def _line(
    placed: Placed, per: Sequence[str], tables: Sequence[Published], found: Answered
) -> list[Cell]:
    contrast, tested = placed.compared.contrast, placed.compared.tested
    ids = placed.compared.run_ids
    keys = [contrast.level, contrast.reference]
    keys += [contrast.within.get(key, MISSING) for key in per]
    values = {table.name: level - reference for table, level, reference in placed.values}
    cells = [Cell(text=text) for text in keys]
    for table in tables:
        value = values.get(table.name)
        text = MISSING if value is None else f"{value:+.{table.digits}f}".replace("-", "\u2212")
        cells.append(
            Cell(text=text, number=None if value is None else f"{value:+.{table.digits}f}")
        )
    cells.append(Cell(text=MISSING if placed.claim is None else placed.claim.value))
    if tested is None:
        cells += [Cell(text=MISSING)] * 3 + [Cell(text=placed.compared.missing, run_ids=ids)]
    else:
        difference, interval, p = compared_cells(tested, found.scale, ids)
        cells += [difference, interval, p, Cell(text=found.word(tested), n=tested.n, run_ids=ids)]
    return [*cells, Cell(text=placed.order.value, run_ids=ids)]


def _notes(tables: Sequence[Published]) -> list[str]:
    notes = [
        "So it is: what the question expects after the paper, else the sign of the first published "
        "difference, "
        "which within the paper's own deviation over seeds counts as equivalent. The last column "
        "follows from "
        "our test alone."
    ]
    return notes + [table.footnote for table in tables]


def published_spec(sweep: SweepData, found: Answered) -> Spec | None:
    """Return the table of published values beside ours, a line for each level that was confirmed."""
    names = [name for name in sweep.asked.get("published") or () if name in published_names()]
    axes = list(dict.fromkeys(key for each in found.compares for key in (*each.per, *each.axes)))
    rows = sweep.rows_of(Role.confirmation)
    tuned = tuple(
        axis
        for axis in sweep.axes
        if axis not in axes and any(axis in row["point"] for row in rows)
    )
    if not names or not axes:
        return None
    return Spec(
        name="published",
        title=f"{sweep.question or sweep.name} Published beside ours, on fresh seeds.",
        rows=tuple(axis for axis in sweep.axes if axis in axes),
        columns=(found.metric,),
        role=Role.confirmation,
        choose=tuned,
        published=tuple(names),
    )
