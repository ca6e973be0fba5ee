"""What each factor of a search does while the others stay as they are, as one table."""

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.cells import Cell, Column, ColumnKind, Table
from analysis.compare import compared_cells
from analysis.figures.cells import value_of
from analysis.figures.factors import Factor, is_numeric, levels, printed, varying_factors
from analysis.footnotes import how_tested
from analysis.frame import Row
from analysis.inference import Family, family_of
from analysis.printing import Scale, scale_of
from analysis.statistics import Effect, marginal_effects
from harness.records.metrics import METRICS
from harness.records.record import RunStatus


def effects_table(rows: Sequence[Row], metric: str) -> Table | None:
    """Return a line for each change of one factor: neighbouring levels of a number, else against the first.

    A change is the mean over blocks, combinations of all other factors that every seed has measured at both
    levels; None where no factor has two levels in one block, as in most searches that are no grid.
    """
    measured = [
        row
        for row in rows
        if row["status"] is RunStatus.completed and value_of(row, metric) is not None
    ]
    if not measured:
        return None
    factors = varying_factors(measured)
    found = [
        (factor, effect)
        for factor in factors
        for effect in _effects(measured, factor, factors, metric)
    ]
    if not found:
        return None
    family = family_of([list(effect.by_seed.values()) for _, effect in found], None)
    changes = [tested.difference for tested in family.tested if tested is not None]
    scale = scale_of(metric, changes)
    return Table(
        name="effects",
        title=f"What each factor does to {METRICS[metric].label} with the others held fixed",
        columns=_columns(metric, scale),
        rows=_lines(found, family, scale, tuple(row["run_id"] for row in measured)),
        footnotes=[_note(family)],
    )


def _columns(metric: str, scale: Scale) -> list[Column]:
    key, number = ColumnKind.key, ColumnKind.statistic
    return [
        *(Column(key=name, label=name, kind=key) for name in ("factor", "from", "to")),
        Column(key="blocks", label="blocks", kind=ColumnKind.count),
        Column(key="n", label="seeds", kind=ColumnKind.count),
        Column(key="change", label=f"Δ {METRICS[metric].label}", unit=scale.unit, kind=number),
        Column(key="interval", label="interval", kind=number),
        Column(key="p", label="p (Holm)", kind=number),
    ]


def _note(family: Family) -> str:
    pairs = max(tested.n for tested in family.tested if tested is not None)
    note = (
        "Of the search's own runs: it says what mattered in this space, not how good a setting is. A block "
        "is a combination of the other factors. A seed's change is its mean over the blocks; the test is "
        "over seeds."
    )
    if pairs < 2:
        return f"{note} One seed: no interval and no test."
    return f"{note} {how_tested('the lines of this table', pairs, family.method)}"


def _effects(
    rows: Sequence[Row], factor: Factor, factors: Sequence[Factor], metric: str
) -> Iterator[Effect]:
    numeric = is_numeric(factor, rows)
    order = levels(factor, rows) if numeric else _as_asked(factor, rows)
    table: list[dict[str, Any]] = [
        {each.name: repr(each.value(row)) for each in factors if each is not factor}
        | {factor.name: factor.value(row), "seed": row.get("seed"), metric: value_of(row, metric)}
        for row in sorted(rows, key=lambda row: order.index(factor.value(row)))
    ]
    others = [each.name for each in factors if each is not factor]
    try:
        effects = marginal_effects(table, factor.name, metric, others)
    except ValueError:  # something varies that is no factor: then nothing is held fixed
        return
    for effect in effects:
        reference, level = order.index(effect.reference), order.index(effect.level)
        if (level - reference == 1) if numeric else reference == 0:
            yield effect


def _as_asked(factor: Factor, rows: Sequence[Row]) -> list[Any]:
    """Return the levels in the order of the trials, which for a grid is that of the question."""
    return list({repr(value): value for value in map(factor.value, rows)}.values())


def _lines(
    found: Sequence[tuple[Factor, Effect]], family: Family, scale: Scale, ids: tuple[str, ...]
) -> list[list[Cell]]:
    lines = []
    for (factor, effect), tested in zip(found, family.tested, strict=True):
        assert tested is not None, "an effect has a seed"
        lines.append(
            [
                Cell(text=factor.label),
                Cell(text=printed(effect.reference)),
                Cell(text=printed(effect.level)),
                Cell(text=str(effect.num_blocks), n=effect.num_blocks, run_ids=ids),
                Cell(text=str(tested.n), n=tested.n, run_ids=ids),
                *compared_cells(tested, scale, ids),
            ]
        )
    return lines
