"""`report/paper/`: documents of the report's tables and figures that compile as they are, and their .bib."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from analysis.render.latex import PACKAGES, FontSize, LatexLayout, TableWidth, escaped, latex
from analysis.tables import Table

STYLES = ("main", "main_twocolumn", "main_slides")
_USED = "".join(f"\\usepackage{{{package}}}\n" for package in (*PACKAGES, "graphicx"))
_PROSE = "\\emergencystretch=3em\n"


def write_paper(
    directory: Path,
    title: str,
    answer: str,
    tables: Sequence[Table],
    figures: Sequence[str],
    said: str,
) -> None:
    """Write `main.tex`, `main_twocolumn.tex`, `main_slides.tex` and `references.bib`.

    They are an article, one with the 3.25 inch columns of ACL and ICML, and Beamer slides.

    Args:
        answer: what was found, in sentences.
        figures: stems of the pdf files beside, of one column's width.
        said: all text of the report; the works that it names are cited.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = cited(said)
    end = "\\nocite{*}\n\\bibliographystyle{plain}\n\\bibliography{references}\n" if entries else ""
    documents = {
        "main": _article(
            "a4paper,margin=2.5cm", "", LatexLayout(), title, answer, tables, figures, end
        ),
        "main_twocolumn": _article(
            "letterpaper,textwidth=6.75in,textheight=9in,columnsep=0.25in",
            "twocolumn,10pt",
            LatexLayout(width=TableWidth.text, font=FontSize.footnote),
            title,
            answer,
            tables,
            figures,
            end,
        ),
        "main_slides": _slides(title, answer, tables, figures),
    }
    for name, text in documents.items():
        (directory / f"{name}.tex").write_text(text, encoding="utf-8")
    (directory / "references.bib").write_text("\n".join(entries), encoding="utf-8")


def _article(
    geometry: str,
    options: str,
    layout: LatexLayout,
    title: str,
    answer: str,
    tables: Sequence[Table],
    figures: Sequence[str],
    end: str,
) -> str:
    shown = "".join(
        f"\\begin{{figure}}[htbp]\n\\centering\n\\includegraphics[width=\\columnwidth]{{../figures/{stem}.pdf}}\n"
        f"\\caption{{{escaped(stem.replace('_', ' '))}}}\n\\end{{figure}}\n"
        for stem in figures
    )
    body = "".join(latex(table, layout) for table in tables)
    return (
        f"\\documentclass[{options}]{{article}}\n\\usepackage[{geometry}]{{geometry}}\n{_USED}"
        f"\\begin{{document}}\n{_PROSE}\\section*{{{escaped(title)}}}\n\\sloppy {escaped(answer)}\n\n"
        f"{shown}{body}\\clearpage\n{end}\\end{{document}}\n"
    )


def _slides(title: str, answer: str, tables: Sequence[Table], figures: Sequence[str]) -> str:
    """Return frames: the answer, each figure, each table without its notes, scaled to the frame."""
    frames = [
        f"\\begin{{frame}}{{{_short(title)}}}\n\\footnotesize\\sloppy {escaped(answer)}\n\\end{{frame}}\n"
    ]
    inside = "width=\\textwidth,height=.85\\textheight,keepaspectratio"
    frames += [
        f"\\begin{{frame}}\n\\centering\n\\includegraphics[{inside}]{{../figures/{stem}.pdf}}\n\\end{{frame}}\n"
        for stem in figures
    ]
    for table in tables:
        bare = re.search(r"\\begin\{tabular\}.*\\end\{tabular\}\n", latex(table), re.DOTALL)
        assert bare is not None, "a table has a tabular"
        frames.append(
            f"\\begin{{frame}}{{{_short(table.title)}}}\n\\centering\n"
            "\\begin{adjustbox}{max width=\\textwidth,max totalheight=.8\\textheight}\n"
            f"{bare[0]}\\end{{adjustbox}}\n\\end{{frame}}\n"
        )
    return (
        f"\\documentclass{{beamer}}\n{_USED}\\sisetup{{detect-all, retain-explicit-plus}}\n"
        f"\\begin{{document}}\n{''.join(frames)}\\end{{document}}\n"
    )


def _short(title: str) -> str:
    return f"\\small {escaped(title if len(title) <= 90 else title[:89] + '…')}"


def cited(text: str) -> list[str]:
    """Return the .bib entries of the works that a text names: by arXiv number, or by author and year."""
    known = files("analysis.page").joinpath("references.bib").read_text(encoding="utf-8")
    return [entry for entry in re.split(r"\n(?=@)", known) if _is_named(entry, text)]


def _is_named(entry: str, text: str) -> bool:
    number = re.search(r"eprint = \{([^}]+)\}", entry)
    if number is not None and number[1] in text:
        return True
    author = re.search(r"author = \{(\w[\w-]*)", entry)
    year = re.search(r"year = \{(\d+)\}", entry)
    assert author is not None, entry
    assert year is not None, entry
    return re.search(rf"{author[1]}\b[^.;]{{0,30}}{year[1]}", text) is not None
