"""A table as LaTeX: booktabs, numbers aligned by siunitx, everything escaped."""

import unicodedata
from collections.abc import Sequence

from analysis.cells import TIED, Cell, Column, ColumnKind, Table

PACKAGES = ("booktabs", "siunitx")

_PREAMBLE = "% \\usepackage{booktabs,siunitx}\n\\begin{table}\n\\centering\n\\sisetup{detect-all}\n"
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


def latex(table: Table) -> str:
    """Return a `table` environment; its document loads booktabs and siunitx."""
    wide = [_has_spread(table, index) for index in range(len(table.columns))]
    layout = "".join(_layout(table, index, wide[index]) for index in range(len(table.columns)))
    lines = [" & ".join(map(_header, table.columns, wide))]
    lines += [" & ".join(map(_cell, table.columns, row, wide)) for row in table.rows]
    head, *body = (f"{line} \\\\" for line in lines)
    return (
        f"{_PREAMBLE}\\caption{{{escaped(table.title)}}}\n\\label{{tab:{_label(table.name)}}}\n"
        f"\\begin{{tabular}}{{{layout}}}\n\\toprule\n{head}\n\\midrule\n"
        + "".join(f"{line}\n" for line in body)
        + f"\\bottomrule\n\\end{{tabular}}\n{_footnotes(table.footnotes)}\\end{{table}}\n"
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
    return "".join(map(_escaped_character, text))


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
        spread = [f"± {cell.spread}"] if cell.spread else []
        rest = [*spread, *([cell.note] if cell.note else []), *([TIED] if cell.tied else [])]
    if column.kind is ColumnKind.key:
        return escaped(cell.text)
    if not wide:
        return first
    return f"{first} & {escaped(' '.join(rest))}".rstrip()


def _footnotes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "\\par\n".join(map(escaped, notes))
    return f"\\par\\smallskip\n\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{lines}\n\\end{{minipage}}\n"
