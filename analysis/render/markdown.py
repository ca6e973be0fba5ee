"""A table as GitHub-flavoured Markdown."""

from analysis.cells import Cell, ColumnKind, Table

_ESCAPED = str.maketrans(
    {
        "\\": "\\\\",
        "|": "\\|",
        "*": "\\*",
        "`": "\\`",
        "<": "&lt;",
        ">": "&gt;",
        "&": "&amp;",
        "\n": " ",
        "\r": " ",
    }
)


def markdown(table: Table) -> str:
    """Return title, table and footnotes; the best values are bold."""
    header = [escaped(column.header) for column in table.columns]
    rule = ["---" if column.kind is ColumnKind.key else "---:" for column in table.columns]
    lines = [header, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    paragraphs = [
        f"**{escaped(table.title)}**",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *map(escaped, table.footnotes),
    ]
    return "\n\n".join(paragraphs) + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, without links or HTML."""
    return text.translate(_ESCAPED).replace("](", "]\\(")


def _cell(cell: Cell) -> str:
    if not cell.best:
        return escaped(cell.marked)
    return " ".join([f"**{escaped(cell.text)}**", *([escaped(cell.note)] if cell.note else [])])
