"""A report's directory: tables and figures as files, and the html that shows them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from os.path import relpath
from pathlib import Path

from analysis.figures.choose import Draw
from analysis.frame import Role, Row
from analysis.page.document import Section
from analysis.page.drawn import draw_all
from analysis.page.paper import write_paper
from analysis.page.parts import figure_grid, folded, picture, runs_table, table_block
from analysis.render import csv, html, latex, markdown
from analysis.render.latex import LatexLayout
from analysis.tables import Spec, Table, TableRefused, build_table
from harness.errors import RequestError
from harness.records.redact import looks_like_a_key


@dataclass(slots=True, kw_only=True)
class Written:
    """What one report left behind."""

    index: Path
    tables: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    answer: str | None = None
    """What the sweep has found, in sentences; None where nothing is confirmed, and for runs of no sweep."""
    ordering: str | None = None
    """How much of the published ordering appears; None where the question names nothing published."""
    laws: list[str] = field(default_factory=list)
    """How the best learning rate moves with the rank, a sentence each."""
    lacks: list[str] = field(default_factory=list)
    """Sentences about what the records do not hold or support."""


class ReportWriter:
    """The report's directory: what is written into it, and the html that shows it."""

    def __init__(self, directory: Path, layout: LatexLayout | None = None) -> None:
        """`layout`: how the LaTeX tables stand in their document."""
        self.directory = directory
        self._layout = layout or LatexLayout()
        self._tables: list[Table] = []
        self._captions: dict[str, str] = {}
        self.written = Written(index=directory / "index.html")
        (directory / "figures").mkdir(parents=True, exist_ok=True)

    def tables(self, specs: Iterable[Spec], rows: Sequence[Row]) -> tuple[str, str]:
        """Write the tables; return the html of those of the confirmation, and of the others."""
        verdict, others = [], []
        for spec in specs:
            try:
                table = build_table(spec, rows)
            except TableRefused as error:
                self.written.lacks.append(f"no table {spec.name}: {error}")
                continue
            (verdict if spec.role is Role.confirmation else others).append(self.table(table))
        return "".join(verdict), "".join(others)

    def table(self, table: Table) -> str:
        """Write one table in every format; return its html."""
        texts = {
            "md": markdown(table),
            "tex": latex(table, self._layout),
            "csv": csv(table),
            "json": table.sources(),
        }
        self.written.tables.append(table.name)
        self._tables.append(table)
        for suffix, text in texts.items():
            self._save(f"tables/{table.name}.{suffix}", text)
        return table_block(
            name=table.name,
            html=html(table),
            markdown=texts["md"],
            latex=texts["tex"],
            directory="tables",
        )

    def figures(self, draws: Iterable[Draw], *, prefix: str) -> str:
        """Write the figures in both widths; return their html, and what was not drawn and why."""
        drawn = draw_all(list(draws), self.directory / "figures", prefix)
        shown = [
            picture(
                title=figure.title,
                caption=figure.caption,
                stem=f"figures/{figure.name}",
                svg=figure.svg,
                narrow_svg=figure.narrow_svg,
            )
            for figure in drawn
            if figure.svg is not None
        ]
        self.written.figures += [figure.name for figure in drawn if figure.svg is not None]
        self._captions |= {
            each.name: f"{each.title[:1].upper()}{each.title[1:]}. {each.caption}" for each in drawn
        }
        missing = dict.fromkeys(f"{f.title}: {f.reason}" for f in drawn if f.svg is None)
        listed = "".join(f"<li>{escape(reason)}</li>" for reason in missing)
        reasons = f'<ul class="faint">{listed}</ul>'
        summary = f"Not drawn: {len(missing)}, and why"
        return figure_grid(shown) + (folded(summary, reasons) if missing else "")

    def runs_section(self, rows: Sequence[Row], metrics: Sequence[str], out: Path) -> Section:
        """Return the section that lists every run."""
        to_runs = relpath(out / "runs", self.directory)
        return Section(key="runs", title="Runs", body=runs_table(rows, metrics, to_runs))

    def write(self, page: str) -> None:
        """Replace index.html."""
        self._save("index.html", page)

    def write_paper(self, title: str, said: str) -> None:
        """Write the documents of all tables and figures; `said`: what else names a work to cite."""
        figures = [(name, self._captions[name]) for name in self.written.figures]
        text = [said, *(note for table in self._tables for note in table.footnotes)]
        text += [caption for _, caption in figures]
        write_paper(
            self.directory / "paper",
            title,
            self.written.answer or "",
            self._tables,
            figures,
            " ".join(text),
        )

    def _save(self, name: str, text: str) -> None:
        path = self.directory / name
        if looks_like_a_key(text):
            raise RequestError(
                f"{path} is not written: it would hold what looks like a key; `grep -rn` the key in the "
                "records and in sweep.yaml beside it, and take it out there"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)  # a browser that loads the page meanwhile sees the old one whole
