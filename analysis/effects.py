"""What each factor of a search does while the others stay as they are, as one table."""

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.cells import MISSING, Cell, Column, ColumnKind, Table
from analysis.figures.cells import value_of
from analysis.figures.factors import Factor, is_numeric, levels, printed, varying_factors
from analysis.frame import Row
from analysis.printing import Scale, scale_of
from analysis.statistics import Effect, holm, marginal_effects
from harness.records.metrics import METRICS
from harness.records.record import RunStatus

P_DIGITS = 3


def effects_table(rows: Sequence[Row], metric: str) -> Table | None:
    """Return a line for each change of one factor: neighbouring levels of a number, else against the first.

    A change is the mean over blocks, combinations of all other factors and the seed in which both levels were
    measured; None where no factor has two levels in one block, as in most searches that are no grid.
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
    p_values = holm([effect.change.p_value for _, effect in found])
    scale = scale_of(metric, [effect.change.difference for _, effect in found])
    unit = scale.unit
    columns = [
        Column(key="factor", label="factor", kind=ColumnKind.key),
        Column(key="from", label="from", kind=ColumnKind.key),
        Column(key="to", label="to", kind=ColumnKind.key),
        Column(key="n", label="blocks", kind=ColumnKind.count),
        Column(
            key="change", label=f"Δ {METRICS[metric].label}", unit=unit, kind=ColumnKind.statistic
        ),
        Column(key="interval", label="95 % interval", kind=ColumnKind.statistic),
        Column(key="p", label="p (Holm)", kind=ColumnKind.statistic),
    ]
    ids = tuple(row["run_id"] for row in measured)
    lines = [
        _line(factor, effect, p_value, scale, ids)
        for (factor, effect), p_value in zip(found, p_values, strict=True)
    ]
    return Table(
        name="effects",
        title=f"What each factor does to {METRICS[metric].label} with the others held fixed",
        columns=columns,
        rows=lines,
        footnotes=[
            "Of the search's own runs: it says what mattered in this space, not how good a setting is. A "
            "block is a combination of the other factors and the seed; t-interval over blocks, exact sign "
            "flips or Wilcoxon's test."
        ],
    )


def _effects(
    rows: Sequence[Row], factor: Factor, factors: Sequence[Factor], metric: str
) -> Iterator[Effect]:
    order = levels(factor, rows)
    table: list[dict[str, Any]] = [
        {each.name: repr(each.value(row)) for each in factors if each is not factor}
        | {factor.name: factor.value(row), "seed": row.get("seed"), metric: value_of(row, metric)}
        for row in sorted(rows, key=lambda row: order.index(factor.value(row)))
    ]
    others = [*(each.name for each in factors if each is not factor), "seed"]
    numeric = is_numeric(factor, rows)
    try:
        effects = marginal_effects(table, factor.name, metric, others)
    except ValueError:  # something varies that is no factor: then nothing is held fixed
        return
    for effect in effects:
        reference, level = order.index(effect.reference), order.index(effect.level)
        if (level - reference == 1) if numeric else reference == 0:
            yield effect


def _line(
    factor: Factor, effect: Effect, p_value: float | None, scale: Scale, ids: tuple[str, ...]
) -> list[Cell]:
    change = effect.change

    bounds = MISSING
    if change.low is not None and change.high is not None:
        bounds = f"[{scale.signed(change.low)}, {scale.signed(change.high)}]"
    shown = None if p_value is None else f"{p_value:.{P_DIGITS}f}"
    return [
        Cell(text=factor.label),
        Cell(text=printed(effect.reference)),
        Cell(text=printed(effect.level)),
        Cell(text=str(change.n), n=change.n, run_ids=ids),
        Cell(
            text=scale.signed(change.difference),
            number=scale.signed(change.difference),
            value=change.difference,
            n=change.n,
            run_ids=ids,
        ),
        Cell(text=bounds, n=change.n, run_ids=ids),
        Cell(text=shown or MISSING, number=shown, n=change.n, run_ids=ids),
    ]
