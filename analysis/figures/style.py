"""What a figure is, and how every one looks: print widths, colour-blind-safe colours, fonts, its files.

No pyplot: a figure belongs to whoever asked for it, and nothing is global.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PNG_DPI = 300

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which white paper swallows."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")
COLOUR_MAP = "cividis"
"""Made to read the same with and without colour-vision deficiency (Nuñez et al. 2018)."""
GREY = "#6B6B6B"

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a name with dollar signs is a name
    "pdf.fonttype": 42,  # TrueType: some publishers refuse Type 3
    "svg.fonttype": "path",
    "svg.hashsalt": "harness",  # the same rows give the same bytes
}


class Width(Enum):
    """Widths of a conference's page (ICML, ACL), in inches."""

    one_column = 3.25
    two_columns = 6.75


class FigureStyle(Enum):
    """What figures are made for."""

    page = "page"
    paper = "paper"
    slides = "slides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How all figures of a report look."""

    style: FigureStyle = FigureStyle.page
    serif: bool = False

    def settings(self) -> dict[Any, Any]:
        """Return matplotlib's settings: smaller for a paper, larger and thicker for slides."""
        found = dict(_SETTINGS)
        if self.serif:
            found["font.family"] = "DejaVu Serif"
        match self.style:
            case FigureStyle.page:
                return found
            case FigureStyle.paper:
                letters, lines = 0.9, 0.9
            case FigureStyle.slides:
                letters, lines = 1.3, 1.6
            case unknown:
                assert_never(unknown)
        for key, value in found.items():
            if key.endswith("size") and isinstance(value, int | float):
                found[key] = value * letters
            elif key.endswith("linewidth"):
                found[key] = value * lines
        return found


_LOOK = [Look()]
"""The look of the report in progress; the processes that draw are forked from the one that chose it."""


def choose_look(look: Look) -> None:
    """Let all figures from now on look so."""
    _LOOK[0] = look


class LineLook(NamedTuple):
    """A line that can be told from the others without its colour."""

    colour: str
    marker: str
    dashes: str


def line_look(index: int) -> LineLook:
    """Return the look of the `index`th line; colour, marker and dashes repeat with different periods."""
    return LineLook(
        COLOURS[index % len(COLOURS)],
        MARKERS[index % len(MARKERS)],
        LINES[(index // len(COLOURS) + index) % len(LINES)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure and what has to be said about it."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    """Description of what is drawn, over how many seeds, and how it was chosen; no findings."""
    figure: Figure | None
    """None where the rows do not support it."""
    reason: str | None = None
    """Why there is no figure."""
    is_wide: bool = False
    """Whether a page shows it over its full width."""
    run_ids: tuple[str, ...] = ()
    """The runs behind it."""


def not_drawn(name: str, title: str, reason: str) -> Drawing:
    """Return the answer of a function whose rows do not support its figure."""
    return Drawing(name=name, title=title, caption="", figure=None, reason=reason)


def sentences(*parts: str) -> str:
    """Join the sentences of a caption, leaving out the empty ones."""
    return " ".join(part for part in parts if part)


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the settings; for making a figure and for writing it."""
    with mpl.rc_context(_LOOK[0].settings()):
        yield


def new_figure(width: Width, height_inches: float) -> tuple[Figure, Axes]:
    """Return an empty figure with one pair of axes; call it inside `figure_style`."""
    figure = Figure(figsize=(width.value, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def legend_above(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Put the legend above the axes, where it hides nothing, in as many columns as fit the width."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=1)
    letters = 15 * figure.get_figwidth()  # of the legend's size, across the figure
    columns = max(1, min(len(labels), int(letters / (longest + 5))))
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, title=title, title_fontsize=7
    )


def fix_layout(figure: Figure) -> None:
    """Lay a finished figure out once, so that writing it in three formats does not do it three times."""
    with figure_style():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.pdf` and `<stem>.png` (300 dots per inch) and return their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with figure_style():
        for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
            path = stem.with_name(stem.name + suffix)
            figure.savefig(path, dpi=PNG_DPI, metadata=metadata)
            written.append(path)
    return written


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG whose text is outlines: it looks the same with any fonts, and is inert."""
    stream = io.StringIO()
    with figure_style():
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
