"""Best learning rate over rank with the line through it, one for each way that alpha goes with the rank."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from analysis.figures.style import (
    Drawing,
    Width,
    figure_style,
    legend_above,
    line_look,
    new_figure,
    not_drawn,
    sentences,
)
from analysis.rate_law import LawOfPlace
from harness.question.compare import spelled_combination

MAX_LAWS = 6


def best_rate_over_rank(laws: Sequence[LawOfPlace], *, width: Width = Width.one_column) -> Drawing:
    """Draw each seed's best rate, the fitted line, and the next rank's predicted rate with its interval."""
    name, title = "best_rate_over_rank", "Best learning rate over rank"
    if not laws:
        return not_drawn(name, title, "no rank has rates enough on both sides of its best")
    with figure_style():
        figure, axes = new_figure(width, 2.4)
        for index, each in enumerate(laws[:MAX_LAWS]):
            look = line_look(index)
            ranks = sorted({rank for rank, _, _ in each.best})
            ends = np.array([ranks[0], each.next_rank], dtype=float)
            axes.plot(
                ends,
                [each.law.predicted(rank) for rank in ends],
                color=look.colour,
                linestyle=look.dashes,
                label=f"{_label(each)}: slope {each.law.slope:+.2f}",
            )
            for rank, _, best in each.best:
                face = "white" if best.at_edge else look.colour
                axes.plot(
                    rank,
                    best.rate,
                    marker=look.marker,
                    color=look.colour,
                    markerfacecolor=face,
                    linestyle="",
                )
            ahead = each.law.prediction_interval(each.next_rank)
            if ahead is not None:
                beside = each.next_rank * 1.06**index
                axes.plot([beside, beside], ahead, color=look.colour, linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        known = sorted(
            {rank for each in laws for rank, _, _ in each.best} | {each.next_rank for each in laws}
        )
        axes.set_xticks(known, [str(rank) for rank in known])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("rank")
        axes.set_ylabel("best learning rate")
        legend_above(figure, axes)
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            "A mark is one seed's best rate of the search, between the tried rates by a parabola; "
            "hollow: at an "
            "edge of what was tried.",
            "Line: least squares in logarithms. Bar: where the next rank's best rate would lie, 95 %.",
        ),
        figure=figure,
        run_ids=tuple(run_id for each in laws for run_id in each.run_ids),
    )


def _label(each: LawOfPlace) -> str:
    place = spelled_combination(each.place)
    return f"{each.scaling} ({place})" if place and len(each.place) > 1 else each.scaling
