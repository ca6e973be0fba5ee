"""A report's directory: every table and figure in its files, what is not there with its reason, no key."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.cells import Table
from analysis.figures.style import Drawing, Width, figure_style, new_figure, not_drawn
from analysis.frame import Role
from analysis.page import drawn
from analysis.page.drawn import draw_all
from analysis.page.writer import ReportWriter
from analysis.render import csv, latex, markdown
from analysis.render.latex import LatexLayout, TableWidth
from analysis.spec import Spec
from analysis.tables import build_table
from harness.errors import RequestError
from tests.analysis.records_for_tables import Run, rows

BY_RANK = Spec(name="ranks", title="By rank", rows=("lora.rank",), columns=("eval/loss",))
ROWS = rows(Run(rank=2, loss=1.5), Run(rank=8, loss=1.25))


def drawing(
    name: str, *, is_wide: bool = False, caption: str = "A line."
) -> Callable[[Width], Drawing]:
    """Return what draws a line across the figure."""

    def draw(width: Width) -> Drawing:
        with figure_style():
            figure, axes = new_figure(width, 1.0)
            axes.plot([0, 1], [0, 1])
        return Drawing(
            name=name,
            title=f"the {name}",
            caption=caption,
            figure=figure,
            is_wide=is_wide,
            run_ids=("a", "b"),
        )

    return draw


def lacking(name: str, reason: str) -> Callable[[Width], Drawing]:
    return lambda _: not_drawn(name, f"The {name}", reason)


# Figures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_figure_lies_in_two_widths_for_print_and_on_the_page_in_one_or_both(
    tmp_path: Path, is_wide: bool
) -> None:
    absent, figure = draw_all(
        [lacking("gone", "no run"), drawing("line", is_wide=is_wide)], tmp_path, "pre_"
    )
    assert (absent.name, absent.title, absent.reason, absent.svg) == (
        *("pre_gone", "The gone", "no run"),
        None,
    )
    assert (figure.name, figure.title, figure.caption, figure.reason) == (
        *("pre_line", "the line", "A line."),
        None,
    )
    names = [f"pre_line{wide}.{kind}" for wide in ("", "_wide") for kind in ("pdf", "png")]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "pre_line.json"}
    dots = {
        name: int.from_bytes((tmp_path / f"{name}.png").read_bytes()[16:20], "big")
        for name in ("pre_line", "pre_line_wide")
    }
    assert dots == {"pre_line": round(3.25 * 300), "pre_line_wide": round(6.75 * 300)}
    assert json.loads((tmp_path / "pre_line.json").read_text()) == {
        "figure": "pre_line",
        "title": "the line",
        "runs": ["a", "b"],
    }

    def width_of(svg: str | None) -> float:
        assert svg is not None
        return float(svg.partition('width="')[2].partition("pt")[0]) / 72

    if is_wide:
        assert width_of(figure.svg) == pytest.approx(6.75)
        assert width_of(figure.narrow_svg) == pytest.approx(3.25)
    else:
        assert width_of(figure.svg) == pytest.approx(3.25)
        assert figure.narrow_svg is None


@pytest.mark.parametrize(("count", "cores", "forked"), [(4, 2, True), (3, 2, False), (4, 1, False)])
def test_many_figures_are_drawn_by_several_processes_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, cores: int, forked: bool
) -> None:
    monkeypatch.setattr(drawn.os, "sched_getaffinity", lambda _: set(range(cores)))
    draws = [
        lambda _, number=number: not_drawn(str(number), "t", str(os.getpid()))
        for number in range(count)
    ]
    found = draw_all(draws, tmp_path, "")
    assert [each.name for each in found] == [str(number) for number in range(count)]
    assert (str(os.getpid()) not in {each.reason for each in found}) is forked
    assert drawn._TASK is None


def test_the_page_shows_what_was_drawn_and_says_why_the_rest_was_not(tmp_path: Path) -> None:
    page = ReportWriter(tmp_path / "new" / "report")
    body = page.figures(
        [drawing("line"), lacking("x", "one < two"), lacking("x", "one < two"), lacking("y", "no")],
        prefix="p_",
    )
    assert page.written.figures == ["p_line"]
    assert body.count("<figure") == 1
    assert "figures/p_line" in body
    assert "Not drawn: 2, and why" in body
    assert "<li>The x: one &lt; two</li><li>The y: no</li>" in body
    assert (page.directory / "figures" / "p_line.pdf").exists()
    assert "Not drawn" not in page.figures([drawing("other")], prefix="")
    assert page.written.figures == ["p_line", "other"]


# Tables -------------------------------------------------------------------------------------------


def test_a_table_lies_in_every_language_and_on_the_page(tmp_path: Path) -> None:
    layout = LatexLayout(width=TableWidth.text)
    page = ReportWriter(tmp_path, layout)
    table = build_table(BY_RANK, ROWS)
    body = page.table(table)
    written = {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}
    assert written == {
        "ranks.md": markdown(table),
        "ranks.tex": latex(table, layout),
        "ranks.csv": csv(table),
        "ranks.json": table.sources(),
    }
    assert latex(table, layout) != latex(table)
    assert page.written.tables == ["ranks"]
    assert "1.2500" in body
    assert 'href="tables/ranks.csv"' in body


def test_the_confirmation_stands_apart_and_a_table_that_the_records_refuse_is_named(
    tmp_path: Path,
) -> None:
    confirmed = rows(Run(rank=4, loss=1.0, role="confirmation"))
    of_confirmation = Spec(
        name="verdict", title="V", rows=("lora.rank",), columns=("eval/loss",),
        role=Role.confirmation,
    )  # fmt: skip
    wrong = Spec(name="wrong", title="W", rows=("lora.rang",), columns=("eval/loss",))
    page = ReportWriter(tmp_path)
    verdict, others = page.tables([wrong, BY_RANK, of_confirmation], [*ROWS, *confirmed])
    assert ("verdict" in verdict, "verdict" in others) == (True, False)
    assert ("ranks" in verdict, "ranks" in others) == (False, True)
    assert page.written.tables == ["ranks", "verdict"]
    (lack,) = page.written.lacks
    assert lack.startswith("no table wrong: table wrong: lora.rang is no configuration key")
    assert "near names: lora.rank" in lack


def test_what_looks_like_a_key_is_not_written(tmp_path: Path) -> None:
    page = ReportWriter(tmp_path)
    page.write("<p>first</p>")
    with pytest.raises(RequestError, match=r"index\.html is not written: .* looks like a key"):
        page.write("hf_" + "A1b2C3d4E5" * 4)
    assert (tmp_path / "index.html").read_text() == "<p>first</p>"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.html"]


def test_runs_are_linked_from_where_the_report_lies(tmp_path: Path) -> None:
    page = ReportWriter(tmp_path / "sweeps" / "s" / "report")
    section = page.runs_section(ROWS, ["eval/loss"], tmp_path)
    assert (section.key, section.title) == ("runs", "Runs")
    assert f'href="../../../runs/{ROWS[0]["run_id"]}/"' in section.body


def test_a_paper_holds_all_that_was_written_and_cites_what_any_of_it_names(tmp_path: Path) -> None:
    page = ReportWriter(tmp_path)
    page.figures([drawing("line", caption="As Watanabe et al. (2023) do.")], prefix="")
    table = build_table(BY_RANK, ROWS)
    noted = Table(
        name="t", title="T", columns=table.columns, rows=table.rows, footnotes=["Holm 1979."]
    )
    page.table(noted)
    page.write_paper("Which rank?", "Hsu 1984")
    text = (tmp_path / "paper" / "main.tex").read_text()
    assert "\\section*{Which rank?}" in text
    assert "\\caption{The line. As Watanabe et al. (2023) do.}" in text
    cited = (tmp_path / "paper" / "references.bib").read_text()
    assert ["Holm, Sture" in cited, "Hsu, Jason" in cited, "Watanabe, S" in cited] == [True] * 3
    assert "Dettmers" not in cited
    page.written.answer = "Eight is better."
    page.write_paper("Which rank?", "")
    assert "Eight is better." in (tmp_path / "paper" / "main.tex").read_text()
    assert "Hsu" not in (tmp_path / "paper" / "references.bib").read_text()
