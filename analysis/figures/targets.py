"""Target modules side by side, with what each set spends: is it where the parameters go, or how many?"""

from collections.abc import Sequence

from analysis.figures.cells import Cell, axis_label, cells_of, chosen, failures, seeds_text
from analysis.figures.factors import TARGETS, printed
from analysis.figures.over import sharing_text, stem_of
from analysis.figures.style import (
    COLOURS,
    GREY,
    Drawing,
    Width,
    figure_style,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.frame import Row
from harness.records.metrics import METRICS

BUDGET_TOLERANCE = 0.1
"""Relative spread of trainable parameters within which sets count as spending the same: ranks are whole
numbers, so no two sets can spend exactly the same."""


def targets_at_equal_budget(
    rows: Sequence[Row], *, metric: str, width: Width = Width.one_column
) -> Drawing:
    """Draw a metric for each set of target modules, among cells of nearly equal trainable parameters.

    Every seed is a dot (as figure 2 of the QLoRA paper does) with the mean and its interval above. The
    budget is the one that the most sets share. Not drawn with fewer than two sets at one budget.
    """
    name = f"{stem_of(metric)}_by_targets"
    title = f"{METRICS[metric].label} by target modules at equal budget"
    cells = [c for c in cells_of(rows) if c.setting(TARGETS) is not None and c.values(metric)]
    if not cells:
        return not_drawn(name, title, f"no completed run measured {metric}")
    same = _equal_budget(cells)
    kept, at_most = chosen(same, metric, lambda c: c.setting(TARGETS))
    if len(kept) < 2:
        return not_drawn(
            name,
            title,
            f"fewer than two target sets whose trainable parameters lie within {BUDGET_TOLERANCE:.0%}",
        )
    ordered = sorted(kept.items(), key=lambda item: item[1].mean(metric) or 0.0)
    with figure_style():
        figure, axes = new_figure(width, 0.8 + 0.36 * len(ordered))
        for place, (_, cell) in enumerate(ordered):
            values = cell.values(metric)
            axes.plot(values, [place - 0.18] * len(values), ".", color=GREY, markersize=3)
            interval = cell.interval(metric)
            assert interval is not None
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [place, place], color=COLOURS[0])
            axes.plot([interval.mean], [place], "o", color=COLOURS[0])
        axes.set_yticks(range(len(ordered)), [_label(cell) for _, cell in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.set_xlabel(axis_label(metric))
        axes.grid(visible=False, axis="y")
    drawn = [cell for _, cell in ordered]
    budgets = [p for p in map(_parameters, drawn) if p is not None]
    spent = f"Trainable parameters: {min(budgets):,.0f} to {max(budgets):,.0f}." if budgets else ""
    shared = sharing_text(rows, drawn, at_most, "set", TARGETS)
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            spent, seeds_text(drawn, metric), "Grey dots are the runs.", shared, failures(rows)
        ),
        figure=figure,
        run_ids=tuple(run_id for cell in drawn for run_id in cell.run_ids()),
    )


def _equal_budget(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells around the budget that the most target sets share."""
    best: list[Cell] = []
    for around in cells:
        budget = _parameters(around)
        if budget is None:
            continue
        near = [
            cell
            for cell in cells
            if (own := _parameters(cell)) is not None
            and abs(own - budget) <= BUDGET_TOLERANCE * budget / 2
        ]
        if len({c.setting(TARGETS) for c in near}) > len({c.setting(TARGETS) for c in best}):
            best = near
    return best


def _parameters(cell: Cell) -> float | None:
    return cell.mean("adapter/trainable_params")


def _label(cell: Cell) -> str:
    rank = cell.rows[0].get("lora.rank")
    targets = printed(cell.setting(TARGETS)).replace("_proj", "").replace("_", " ")
    return f"{targets}, r={rank}" if rank is not None else targets
