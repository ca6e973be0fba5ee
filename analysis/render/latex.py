"""A table as LaTeX: booktabs, numbers aligned by siunitx, everything escaped, never wider than its column."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from analysis.cells import TIED, Cell, Column, ColumnKind, Table

PACKAGES = ("booktabs", "siunitx", "adjustbox")


class TableWidth(Enum):
    """How wide a table may be in its document."""

    column = "column"
    """One column of text; the whole line where there is one."""
    text = "text"
    """Across both columns."""


class FontSize(Enum):
    """LaTeX's sizes below the text's own."""

    normal = "normalsize"
    small = "small"
    footnote = "footnotesize"
    script = "scriptsize"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatexLayout:
    """How tables stand in a document."""

    width: TableWidth = TableWidth.column
    font: FontSize = FontSize.small
    """Of a table that fits; a wider one is scaled down to the width."""


_DEFAULT = LatexLayout()
_SETUP = "\\sisetup{detect-all, retain-explicit-plus}\n"
_BREAK = "\\allowbreak{}"
_BREAKS_AFTER = re.compile(r"(?<=[a-z0-9])(\\_|[./=])(?=[a-z0-9])")
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_SPECIAL = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "$": "\\$",
    "&": "\\&",
    "#": "\\#",
    "%": "\\%",
    "_": "\\_",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "[": "{[}",  # at the start of a line it would be taken for an argument of the line before
    "]": "{]}",
    "*": "{*}",
    "—": "---",
    "…": "\\dots{}",
    "–": "--",
    "±": "$\\pm$",
    "×": "$\\times$",
    "Δ": "$\\Delta$",
    "↓": "$\\downarrow$",
    "↑": "$\\uparrow$",
    "≈": "$\\approx$",
    "†": "\\textdagger{}",
    "ß": "\\ss{}",
}


def latex(table: Table, layout: LatexLayout = _DEFAULT) -> str:
    """Return a `table` environment; its document loads `PACKAGES`.

    A column of one value stands in the caption. What is wider than the column is scaled down to it.
    """
    table = _without_constants(table)
    across = layout.width is TableWidth.text
    environment, width = ("table*", "\\textwidth") if across else ("table", "\\columnwidth")
    return (
        f"% \\usepackage{{{','.join(PACKAGES)}}}\n\\begin{{{environment}}}\n\\centering\n{_SETUP}"
        f"\\caption{{{breakable(escaped(table.title))}}}\n\\label{{tab:{_label(table.name)}}}\n"
        f"\\{layout.font.value}\n\\begin{{adjustbox}}{{max width={width}}}\n{_tabular(table)}"
        f"\\end{{adjustbox}}\n{_footnotes(table.footnotes, width)}\\end{{{environment}}}\n"
    )


def _without_constants(table: Table) -> Table:
    """Return the table with the keys and counts that never vary in its title, behind the question."""
    if len(table.rows) < 2:
        return table
    constant = [
        index
        for index, column in enumerate(table.columns)
        if column.kind in (ColumnKind.key, ColumnKind.count)
        and len({row[index].marked for row in table.rows}) == 1
    ]
    if not constant or len(constant) == len(table.columns):
        return table
    said = ", ".join(f"{table.columns[i].label} = {table.rows[0][i].marked}" for i in constant)
    kept = [index for index in range(len(table.columns)) if index not in constant]
    return replace(
        table,
        title=f"{table.title} ({said})",
        columns=[table.columns[index] for index in kept],
        rows=[[row[index] for index in kept] for row in table.rows],
    )


def _tabular(table: Table) -> str:
    wide = [_has_spread(table, index) for index in range(len(table.columns))]
    layout = "".join(_layout(table, index, wide[index]) for index in range(len(table.columns)))
    lines = [" & ".join(map(_header, table.columns, wide))]
    lines += [" & ".join(map(_cell, table.columns, row, wide)) for row in table.rows]
    head, *body = (f"{line} \\\\" for line in lines)
    return (
        f"\\begin{{tabular}}{{{layout}}}\n\\toprule\n{head}\n\\midrule\n"
        + "".join(f"{line}\n" for line in body)
        + "\\bottomrule\n\\end{tabular}\n"
    )


def latex_document(tables: Sequence[Table]) -> str:
    """Return a document of these tables that compiles as it is."""
    packages = "".join(f"\\usepackage{{{package}}}\n" for package in PACKAGES)
    body = "\\clearpage\n".join(map(latex, tables))
    return (
        "\\documentclass{article}\n"
        "\\usepackage[a4paper,landscape,margin=1cm]{geometry}\n"
        f"{packages}\\begin{{document}}\n{body}\\end{{document}}\n"
    )


def escaped(text: str) -> str:
    """Return text that LaTeX prints as it is; a letter that pdflatex has no glyph for becomes its code."""
    parts = _MINUS.split(text)
    return "$-$".join("".join(map(_escaped_character, part)) for part in parts)


def breakable(text: str) -> str:
    """Let lines of prose end inside a long key or path, where they may be narrow."""
    return _BREAKS_AFTER.sub(lambda found: f"{found[0]}{_BREAK}", text)


def _escaped_character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isspace():
        return " "
    if " " <= character <= "~":
        return character
    base = unicodedata.normalize("NFD", character)[0]
    if character.isalpha() and base.isascii() and ord(character) < 0x180:  # é, ü, ñ
        return character
    return f"(U+{ord(character):04X})"


def _label(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def _has_spread(table: Table, index: int) -> bool:
    """Whether something stands after the numbers of a column, so that it takes two of LaTeX's."""
    cells = [row[index] for row in table.rows]
    is_number = any(cell.number is not None for cell in cells)
    return is_number and any(cell.spread or cell.note or cell.tied for cell in cells)


def _layout(table: Table, index: int, wide: bool) -> str:
    column, cells = table.columns[index], [row[index] for row in table.rows]
    numbers = [cell.number for cell in cells if cell.number is not None]
    if column.kind is ColumnKind.key or not numbers:
        return "l"
    wholes, points = zip(
        *(number.lstrip("+-").partition(".")[::2] for number in numbers), strict=True
    )
    sign = "+" if any(number.startswith(("+", "-")) for number in numbers) else ""
    digits = max(map(len, points))
    form = f"{sign}{max(map(len, wholes))}{f'.{digits}' if digits else ''}"
    return f"S[table-format={form}]" + ("@{\\,}l" if wide else "")


def _header(column: Column, wide: bool) -> str:
    text = escaped(column.header)
    return f"\\multicolumn{{2}}{{c}}{{{text}}}" if wide else f"{{{text}}}"


def _cell(column: Column, cell: Cell, wide: bool) -> str:
    if cell.number is None:
        words = escaped(cell.text if wide else cell.marked)
        first, rest = f"{{{words}}}", [cell.note] if cell.note else []
    else:
        first = f"\\bfseries {cell.number}" if cell.best else cell.number
        spread = [cell.spread] if cell.spread else []
        rest = [*spread, *([cell.note] if cell.note else []), *([TIED] if cell.tied else [])]
    if column.kind is ColumnKind.key:
        return escaped(cell.text)
    if not wide:
        return first
    return f"{first} & {escaped(' '.join(rest))}".rstrip()


def _footnotes(notes: Sequence[str], width: str) -> str:
    if not notes:
        return ""
    lines = "\\par\n".join(breakable(escaped(note)) for note in notes)
    return (
        f"\\par\\smallskip\n\\begin{{minipage}}{{{width}}}\\footnotesize\\raggedright\n{lines}\n"
        "\\end{minipage}\n"
    )
