"""Figures drawn and written by as many processes as there are cores: subsetting fonts for print is slow."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from analysis.figures.choose import Draw
from analysis.figures.style import Drawing, Width, fix_layout, svg_text, write_figure

MIN_PER_PROCESS = 2
"""Fewer figures than this are drawn here: a process takes longer to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure as the page needs it, or the reason why there is none."""

    name: str
    title: str
    caption: str
    reason: str | None
    svg: str | None = None
    narrow_svg: str | None = None
    """The figure for a phone, where the page shows it over its full width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    draws: Sequence[Draw]
    directory: Path
    prefix: str


_TASK: _Task | None = None
"""What the forked processes inherit: what a figure is drawn from is not sent, it is there already."""


def draw_all(draws: Sequence[Draw], directory: Path, prefix: str) -> list[Drawn]:
    """Draw each figure in both widths, write its pdf and png under `directory`, and return what to show.

    The two-column files end in `_wide`; beside them a json names the runs.
    """
    global _TASK
    _TASK = _Task(draws=draws, directory=directory, prefix=prefix)
    processes = min(len(os.sched_getaffinity(0)), len(draws) // MIN_PER_PROCESS)
    try:
        if processes < 2:
            return [_drawn(index) for index in range(len(draws))]
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, mp_context=fork) as pool:
            return list(pool.map(_drawn, range(len(draws))))
    finally:
        _TASK = None


def _drawn(index: int) -> Drawn:
    assert _TASK is not None
    draw = _TASK.draws[index]
    narrow = draw(Width.one_column)
    name = _TASK.prefix + narrow.name
    if narrow.figure is None:
        return Drawn(name=name, title=narrow.title, caption="", reason=narrow.reason)
    wide = draw(Width.two_columns)
    assert wide.figure is not None
    for figure, stem in ((narrow.figure, name), (wide.figure, f"{name}_wide")):
        fix_layout(figure)
        write_figure(figure, _TASK.directory / stem)
    _write_sources(narrow, _TASK.directory / f"{name}.json")
    return Drawn(
        name=name,
        title=narrow.title,
        caption=narrow.caption,
        reason=None,
        svg=svg_text(wide.figure if narrow.is_wide else narrow.figure),
        narrow_svg=svg_text(narrow.figure) if narrow.is_wide else None,
    )


def _write_sources(drawing: Drawing, path: Path) -> None:
    tree = {"figure": path.stem, "title": drawing.title, "runs": list(drawing.run_ids)}
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
