"""`report/paper/`: documents of the report's tables and figures that compile as they are, and their .bib."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from analysis.render.latex import (
    PACKAGES,
    FontSize,
    LatexLayout,
    TableWidth,
    breakable,
    escaped,
    latex,
)
from analysis.tables import Table

STYLES = ("main", "main_acl", "main_icml", "main_slides")
_USED = "".join(f"\\usepackage{{{package}}}\n" for package in (*PACKAGES, "graphicx"))
Captioned = tuple[str, str]
"""A figure's stem, and what is said below it."""
_PROSE = "\\emergencystretch=3em\n"


def write_paper(
    directory: Path,
    title: str,
    answer: str,
    tables: Sequence[Table],
    figures: Sequence[Captioned],
    said: str,
) -> None:
    """Write `main.tex`, `main_acl.tex`, `main_icml.tex`, `main_slides.tex` and `references.bib`.

    They are an article, one in the columns of each conference, and Beamer slides. Where the conference's own
    style file lies beside its document it is used; else the page has its measures and its font.

    Args:
        answer: what was found, in sentences.
        figures: stems of the pdf files beside, each of one column's width and, as `…_wide`, of two.
        said: all text of the report; the works that it names are cited.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = cited(said)
    bibliography = "\\nocite{*}\n\\bibliography{references}\n" if entries else ""
    narrow = LatexLayout(width=TableWidth.text, font=FontSize.footnote)
    documents = {
        name: _article(
            preamble + _USED,
            f"{_PROSE}\\section*{{{escaped(title)}}}\n\\sloppy {escaped(answer)}\n\n",
            _floats(tables, figures, layout, suffix),
            bibliography,
        )
        for name, preamble, layout, suffix in (
            ("main", _ARTICLE, LatexLayout(), "_wide"),
            ("main_acl", _ACL, narrow, ""),
            ("main_icml", _ICML, narrow, ""),
        )
    }
    documents["main_slides"] = _slides(title, answer, tables, figures)
    for name, text in documents.items():
        (directory / f"{name}.tex").write_text(text, encoding="utf-8")
    (directory / "references.bib").write_text("\n".join(entries), encoding="utf-8")


_PLAIN = "\\bibliographystyle{plain}\n"
_ARTICLE = f"\\documentclass{{article}}\n\\usepackage[a4paper,margin=2.5cm]{{geometry}}\n{_PLAIN}"


def _conference(size: str, style: str, geometry: str, column_gap: str) -> str:
    """Return the preamble of a document in two columns, by a style file if it is there."""
    return (
        f"\\documentclass[{size}]{{article}}\n% With {style}.sty beside this file it is used.\n"
        f"\\IfFileExists{{{style}.sty}}{{\\usepackage{{{style}}}}}{{%\n"
        f"\\usepackage{{times}}\\usepackage[{geometry}]{{geometry}}\\setlength{{\\columnsep}}{{{column_gap}}}%\n"
        "\\twocolumn\\sloppy\\flushbottom}\n"
    )


# acl.sty of 2024 brings its own bibliography style; icml2025.sty leaves that to the document.
_ACL = (
    _conference("11pt", "acl", "a4paper,margin=2.5cm,heightrounded", "0.6cm")
    + f"\\IfFileExists{{acl.sty}}{{}}{{{_PLAIN.strip()}}}\n"
)
_ICML = (
    _conference("10pt", "icml2025", "letterpaper,textwidth=6.75in,textheight=9in", "0.25in")
    + _PLAIN
)


def _article(preamble: str, text: str, floats: str, bibliography: str) -> str:
    return f"{preamble}\\begin{{document}}\n{text}{floats}\\clearpage\n{bibliography}\\end{{document}}\n"


def _floats(
    tables: Sequence[Table], figures: Sequence[Captioned], layout: LatexLayout, suffix: str
) -> str:
    shown = "".join(
        f"\\begin{{figure}}[htbp]\n\\centering\n\\includegraphics[width=\\columnwidth]"
        f"{{../figures/{stem}{suffix}.pdf}}\n\\caption{{{breakable(escaped(caption))}}}\n\\end{{figure}}\n"
        for stem, caption in figures
    )
    return shown + "".join(latex(table, layout) for table in tables)


def _slides(title: str, answer: str, tables: Sequence[Table], figures: Sequence[Captioned]) -> str:
    """Return frames: the answer, each figure, each table without its notes, scaled to the frame."""
    frames = [
        f"\\begin{{frame}}{{{_short(title)}}}\n\\footnotesize\\sloppy {escaped(answer)}\n\\end{{frame}}\n"
    ]
    inside = "width=\\textwidth,height=.8\\textheight,keepaspectratio"
    frames += [
        f"\\begin{{frame}}{{{_short(caption.partition('.')[0])}}}\n\\centering\n"
        f"\\includegraphics[{inside}]{{../figures/{stem}.pdf}}\n\\end{{frame}}\n"
        for stem, caption in figures
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
        f"\\documentclass{{beamer}}\n\\setbeamertemplate{{navigation symbols}}{{}}\n{_USED}"
        "\\sisetup{detect-all, retain-explicit-plus}\n"
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
    return re.search(rf"{author[1]}\b(?: et al\.)?[^.;]{{0,30}}{year[1]}", text) is not None
