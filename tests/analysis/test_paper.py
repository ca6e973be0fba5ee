"""The paper's documents: which figure and table stands where, how titles are cut, and what is cited."""

from pathlib import Path

import pytest

from analysis.cells import Cell, Column, ColumnKind, Table
from analysis.page.paper import STYLES, cited, write_paper

TABLE = Table(
    name="t",
    title="Ranks & losses",
    columns=[
        Column(key="rank", label="rank", kind=ColumnKind.key),
        Column(key="loss", label="loss", kind=ColumnKind.statistic),
    ],
    rows=[[Cell(text="2"), Cell(text="1.5")]],
    footnotes=["A note below."],
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The documents of one table and one figure."""
    place = tmp_path_factory.mktemp("paper") / "new" / "paper"
    figures = [("loss_over_rank", "Loss over rank. It falls, by 5 %.")]
    write_paper(
        place, "Which rank?", "8 is better by 0.5.", [TABLE], figures, "as in arXiv 2305.14314"
    )
    return {path.name: path.read_text() for path in place.iterdir()}


def test_there_is_a_document_for_each_style_and_its_bibliography(written: dict[str, str]) -> None:
    assert set(written) == {*(f"{style}.tex" for style in STYLES), "references.bib"}


@pytest.mark.parametrize(
    ("style", "figure", "table"),
    [
        ("main", "loss_over_rank_wide.pdf", "{table}"),
        ("main_acl", "loss_over_rank.pdf", "{table*}"),
        ("main_icml", "loss_over_rank.pdf", "{table*}"),
    ],
)
def test_figures_and_tables_are_as_wide_as_their_columns(
    written: dict[str, str], style: str, figure: str, table: str
) -> None:
    text = written[f"{style}.tex"]
    assert f"{{../figures/{figure}}}" in text
    assert text.count("\\includegraphics") == 1
    assert f"\\begin{table}" in text
    assert "\\caption{Loss over rank. It falls, by 5 \\%.}" in text
    assert "Ranks \\& losses" in text
    assert "A note below." in text
    assert "\\section*{Which rank?}" in text
    assert "8 is better by 0.5." in text
    assert text.startswith("\\documentclass")
    assert text.index("\\begin{document}") < text.index("\\section*") < text.index("{references}")
    assert text.index("8 is better") < text.index("\\includegraphics") < text.index("tabular")


def test_slides_are_the_answer_each_figure_and_each_table_without_its_notes(
    written: dict[str, str],
) -> None:
    text = written["main_slides.tex"]
    frames = text.split("\\begin{frame}")[1:]
    assert [frame.splitlines()[0] for frame in frames] == [
        "{\\small Which rank?}",
        "{\\small Loss over rank}",
        "{\\small Ranks \\& losses}",
    ]
    assert "8 is better by 0.5." in frames[0]
    assert "{../figures/loss_over_rank.pdf}" in frames[1]
    assert "\\begin{tabular}" in frames[2]
    assert "1.5" in frames[2]
    assert "A note below." not in text


@pytest.mark.parametrize("length", [90, 91])
def test_the_title_of_a_slide_is_cut_where_it_is_longer_than_90_letters(
    tmp_path: Path, length: int
) -> None:
    title = "x" * length
    write_paper(tmp_path, title, "", [], [], "")
    head = (tmp_path / "main_slides.tex").read_text().split("\\begin{frame}")[1].splitlines()[0]
    shown = title if length == 90 else "x" * 89 + "\\dots{}"
    assert head == "{\\small " + shown + "}"
    assert (tmp_path / "references.bib").read_text() == ""
    assert "\\bibliography{" not in (tmp_path / "main.tex").read_text()


def named(text: str) -> list[str]:
    return [entry.partition("{")[2].partition(",")[0] for entry in cited(text)]


def test_a_work_is_cited_by_its_number_or_by_author_and_year_nearby() -> None:
    (qlora,) = cited("QLoRA (arXiv 2305.14314)")
    assert "eprint = {2305.14314}" in qlora
    assert cited("as Dettmers et al. (2023) do") == [qlora]
    assert named("Holm's procedure (1979)") == named("Holm 1979")
    assert len(named("Holm 1979")) == 1
    assert named("Holm 1980") == []
    assert named("Holm. In 1979 something else") == [], "another sentence"
    assert named(f"Holm{' and so' * 5} 1979") == [], "too far away"
    assert named("Holmes 1979") == [], "another name"
    assert named("") == []
    both = named("Holm 1979, and Hsu 1984")
    assert len(both) == 2
