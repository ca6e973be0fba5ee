"""The answer as a figure: each contrast's difference with its interval, beside 0 and the margin."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.contrasts import Answered, Compared
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
from analysis.inference import Verdict
from harness.question.compare import spelled_combination
from harness.records.metrics import METRICS

MAX_LINES = 40


def contrast_intervals(found: Answered, *, width: Width = Width.one_column) -> Drawing:
    """Draw a line for each contrast: the mean difference, its interval, filled where it is decided."""
    name, title = "contrasts", f"{METRICS[found.metric].label}: differences between compared levels"
    shown = [each for each in found.all if each.tested is not None][:MAX_LINES]
    if not shown:
        return not_drawn(name, title, "no contrast has two confirmed sides")
    scale = found.scale
    with figure_style():
        figure, axes = new_figure(width, 0.75 + 0.24 * len(shown))
        if found.margin is not None:
            reach = found.margin / scale.size
            axes.axvspan(-reach, reach, color="#EEEEEE", zorder=0)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for place, each in enumerate(reversed(shown)):
            _draw_line(axes, place, each, scale.size)
        axes.set_yticks(range(len(shown)), [_label(each) for each in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more would touch where labels are long
        unit = f" ({scale.unit})" if scale.unit else ""
        axes.set_xlabel(f"Δ {METRICS[found.metric].label}{unit}", loc="right")
    better = "left" if found.smaller_is_better else "right"
    return Drawing(
        name=name,
        title=title,
        caption=sentences(
            f"Level minus reference on fresh seeds; better is {better}. Filled: decided at 5 % (Holm).",
            "" if found.margin is None else f"Grey: the margin, ±{found.margin:g}.",
        ),
        figure=figure,
        run_ids=tuple(run_id for each in shown for run_id in each.run_ids),
    )


def _draw_line(axes: Axes, place: int, each: Compared, size: float) -> None:
    tested = each.tested
    assert tested is not None, "only tested contrasts are drawn"
    decided = tested.verdict is not Verdict.undecided
    colour = COLOURS[2] if tested.verdict is Verdict.equivalent else COLOURS[0]
    if tested.low is not None and tested.high is not None:
        axes.plot([tested.low / size, tested.high / size], [place, place], color=colour)
    face = colour if decided else "white"
    axes.plot(
        tested.difference / size, place, marker="o", color=colour, markerfacecolor=face, zorder=3
    )


def _label(each: Compared) -> str:
    contrast = each.contrast
    within = spelled_combination(contrast.within)
    pair = f"{contrast.level} - {contrast.reference}"
    return f"{pair}, {within}" if within else pair
