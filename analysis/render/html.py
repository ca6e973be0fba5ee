"""A table as a piece of HTML."""

import re
from html import escape

from analysis.cells import Cell, Column, ColumnKind, Table


def prose(text: str) -> str:
    """Return text that a person wrote as html: words in backticks are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def html(table: Table) -> str:
    """Return a `<table>` with caption and footnotes; classes say what is best, tied, a number, or missing."""
    head = "".join(
        f'<th scope="col" class="{column.kind.value}">{escape(column.header)}</th>'
        for column in table.columns
    )
    body = "\n".join(
        "<tr>" + "".join(map(_cell, table.columns, row)) + "</tr>" for row in table.rows
    )
    notes = "".join(f"<p>{prose(note)}</p>" for note in table.footnotes)
    foot = (
        f'<tfoot><tr><td colspan="{len(table.columns)}">{notes}</td></tr></tfoot>\n'
        if notes
        else ""
    )
    return (
        f'<table class="results" id="table-{escape(table.name)}">\n'
        f"<caption>{prose(table.title)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n{foot}</table>\n"
    )


def _cell(column: Column, cell: Cell) -> str:
    if column.kind is ColumnKind.key:
        return f'<th scope="row">{escape(cell.text)}</th>'
    classes = [column.kind.value]
    if column.kind is ColumnKind.metric and cell.value is None:
        classes.append("no-number")
    if cell.tied:
        classes.append("tied")
    if cell.best:
        classes.append("best")
        text = f"<b>{escape(cell.text)}</b>" + (f" {escape(cell.note)}" if cell.note else "")
    else:
        text = escape(cell.marked)
    title = f' title="{escape(_explained(cell))}"' if cell.interval else ""
    return f'<td class="{" ".join(classes)}"{title}>{text}</td>'


def _explained(cell: Cell) -> str:
    """Return what a pointer over the cell shows: how many values, and the ends of the interval."""
    interval = cell.interval
    assert interval is not None
    if interval.low is None or interval.high is None:
        return f"n={interval.n}"
    return f"n={interval.n}, {interval.low:.6g} to {interval.high:.6g}"
