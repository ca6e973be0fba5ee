"""One table in four languages: golden files, what is escaped, and LaTeX that really compiles."""

import csv as standard
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.cells import Cell, Column, ColumnKind
from analysis.intervals import Interval
from analysis.render import csv, html, latex, latex_document, markdown
from analysis.render.latex import FontSize, LatexLayout, TableWidth
from analysis.render.latex import escaped as latex_escaped
from analysis.tables import Spec, Table, build_table
from harness.records.record import MeasuredIn, RunStatus
from tests.analysis.records_for_tables import Run, rows, seeds

GOLDEN = Path(__file__).parent / "golden"
FORMULA, SCRIPT, INPUT = (
    '=HYPERLINK("http://x","y")',
    "<script>alert(1)</script>",
    "\\input{/etc/passwd}",
)


def fixture_table() -> Table:
    """Everything a table can hold: ties, OOM, missing values, marks, a comparison, footnotes."""
    runs = [
        *seeds(1.10, 1.20, 1.30, match=0.5, adapter=3 * 2**20, before=2.5),
        *seeds(1.00, 1.12, 1.21, format="int4", match=0.25, adapter=3 * 2**20, peak=1.0),
        *seeds(1.01, 1.42, format="fp4", adapter=1234567.0, notes=("2 rows cut",)),
        Run(format="none", status=RunStatus.out_of_memory),
        Run(lr=1.0, peak=5 * 2**30, measured_in=MeasuredIn.probe),
    ]
    spec = Spec(
        name="formats",
        title="Formats & 100 % of their losses",
        rows=("quant.format", "lora.rank"),
        columns=("eval/loss", "eval/exact_match", "memory/peak_bytes", "memory/adapter_bytes"),
        against={"quant.format": "nf4"},
        published=("qlora_mmlu",),
    )
    return build_table(spec, rows(*runs))


@pytest.mark.parametrize(
    ("render", "suffix"), [(markdown, "md"), (latex, "tex"), (csv, "csv"), (html, "html")]
)
def test_the_golden_table(render, suffix: str) -> None:
    assert render(fixture_table()) == (GOLDEN / f"formats.{suffix}").read_text(encoding="utf-8")


def hostile_table(model: str) -> Table:
    spec = Spec(name="x", title=f"Is {model} safe?", rows=("model.name",), columns=("eval/loss",))
    return build_table(spec, rows(Run(model=model, loss=1.0, notes=(model,))))


def test_markdown_shows_html_and_links_as_text() -> None:
    text = markdown(hostile_table(SCRIPT))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 3
    assert "[a](javascript:b)" not in markdown(hostile_table("[a](javascript:b)"))
    assert "a \\| b" in markdown(hostile_table("a | b")), "no cell of its own"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_shows_tags_as_text() -> None:
    parser = Tags()
    parser.feed(html(hostile_table(SCRIPT)))
    assert "script" not in parser.tags
    assert parser.text.count(SCRIPT) == 3


@pytest.mark.parametrize("name", [FORMULA, "+1+1", "-cmd|x", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_csv_holds_no_formula(name: str) -> None:
    table = list(standard.reader(io.StringIO(csv(hostile_table(name)), newline="")))
    assert table[1][0] == "'" + name.replace("\r", " ").replace("\n", " ")


def test_csv_keeps_numbers_numbers() -> None:
    runs = [*seeds(1.0, 2.0), *seeds(0.5, 1.4, format="int4")]
    spec = Spec(
        name="t",
        title="t",
        rows=("quant.format",),
        columns=("eval/loss",),
        against={"quant.format": "nf4"},
    )
    (line,) = [
        line
        for line in standard.DictReader(io.StringIO(csv(build_table(spec, rows(*runs)))))
        if line["quant.format"] == "int4"
    ]
    assert float(line["difference"]) == -0.55
    assert float(line["eval/loss"]) == pytest.approx(0.95)
    assert float(line["eval/loss high"]) - float(line["eval/loss"]) == pytest.approx(
        5.7178, abs=1e-4
    )
    assert line["eval/loss n"] == "2"


def test_latex_holds_no_command_of_others() -> None:
    text = latex(hostile_table(INPUT))
    assert "\\input" not in text
    assert text.replace("\\allowbreak{}", "").count("\\textbackslash{}input\\{/etc/passwd\\}") == 3


def compiled(source: str, directory: Path) -> str:
    """Compile a document and return what TeX says."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-recommended texlive-science)")
    (directory / "t.tex").write_text(source, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"],
        cwd=directory,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_latex_compiles_as_it_is(tmp_path: Path) -> None:
    everything = "".join(map(chr, range(32, 127))) + "é — ± ≈ Δ † 模型 ß \N{BELL} *[x]"
    tables = [
        fixture_table(),
        *map(hostile_table, (FORMULA, SCRIPT, INPUT, everything, "[t]", "*")),
    ]
    printed = compiled(latex_document(tables), tmp_path)
    assert (tmp_path / "t.pdf").stat().st_size > 10_000
    assert "passwd" not in printed, "nothing was read"


def plain_table(*lines: tuple[str, ...], kinds: str = "kcs", note: str = "") -> Table:
    """A table of words: k a key, c a count, s a statistic."""
    named = {"k": ColumnKind.key, "c": ColumnKind.count, "s": ColumnKind.statistic}
    return Table(
        name="t",
        title="Title",
        columns=[Column(key=f"{k}{n}", label=f"{k}{n}", kind=named[k]) for n, k in enumerate(kinds)],
        rows=[[Cell(text=t, number=t if t[:1].isdigit() else None) for t in line] for line in lines],
        footnotes=[note] if note else [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "title", "header"),
    [
        ([("a", "1", "5"), ("b", "2", "5")], "Title", "{k0} & {c1} & {s2}"),
        ([("a", "1", "5"), ("a", "2", "5")], "Title (k0 = a)", "{c1} & {s2}"),
        ([("a", "1", "5"), ("a", "1", "6")], "Title (k0 = a, c1 = 1)", "{s2}"),
        ([("a", "1", "5")], "Title", "{k0} & {c1} & {s2}"),  # one line varies in nothing
    ],
)
def test_a_key_or_count_that_never_varies_stands_in_the_caption(
    lines, title: str, header: str
) -> None:
    text = latex(plain_table(*lines))
    assert f"\\caption{{{title}}}" in text
    assert f"\\toprule\n{header} \\\\\n" in text


def test_a_table_of_nothing_but_constants_keeps_them() -> None:
    text = latex(plain_table(("a", "1"), ("a", "1"), kinds="kc"))
    assert "\\caption{Title}" in text
    assert "{k0} & {c1}" in text


@pytest.mark.parametrize(
    ("numbers", "layout"),
    [
        (("5", "12"), "S[table-format=2]"),
        (("1.25", "-10.5"), "S[table-format=+2.2]"),
        (("+1.2",), "S[table-format=+1.1]"),
        (("1.5", "words"), "S[table-format=1.1]"),
        (("words", "—"), "l"),
    ],
)
def test_numbers_are_aligned_by_their_digits(numbers: tuple[str, ...], layout: str) -> None:
    table = Table(
        name="t",
        title="T",
        columns=[Column(key="x", label="x", kind=ColumnKind.statistic)],
        rows=[
            [Cell(text=text, number=text if text.lstrip("+-")[:1].isdigit() else None)]
            for text in numbers
        ],
    )
    assert f"\\begin{{tabular}}{{{layout}}}" in latex(table)


def test_what_stands_behind_a_number_has_a_column_of_its_own() -> None:
    cells = [
        Cell(text="1.5 ± 0.2", number="1.5", spread="± 0.2", note="†", best=True),
        Cell(text="1.6", number="1.6", tied=True),
        Cell(text="OOM", note="‡"),
        Cell(text="—"),
    ]
    table = Table(
        name="a_b.c",
        title="T",
        columns=[Column(key="x", label="x", kind=ColumnKind.metric)],
        rows=[[cell] for cell in cells],
    )
    text = latex(table)
    assert "\\begin{tabular}{S[table-format=1.1]@{\\,}l}" in text
    assert "\\multicolumn{2}{c}{x} \\\\" in text
    lines = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
    assert lines == [
        "\\bfseries 1.5 & $\\pm$ 0.2 \\textdagger{} \\\\",
        "1.6 & $\\approx$ \\\\",
        "{OOM} & (U+2021) \\\\",
        "{---} & \\\\",
    ]
    assert "\\label{tab:a-b-c}" in text
    assert "minipage" not in text, "there is no note"
    narrow = Table(name="t", title="T", columns=table.columns, rows=[[cells[2]], [cells[3]]])
    assert "{OOM (U+2021)} \\\\" in latex(narrow)


def test_a_note_is_as_wide_as_the_table_may_be() -> None:
    table = plain_table(("a", "1", "5"), note="Of a_b.c.")
    assert "\\begin{minipage}{\\columnwidth}" in latex(table)
    wide = LatexLayout(width=TableWidth.text, font=FontSize.script)
    text = latex(table, wide)
    assert "\\begin{minipage}{\\textwidth}" in text
    assert "max width=\\textwidth" in text
    assert "\\scriptsize\n" in text
    assert "\\begin{table*}" in text
    assert "Of a\\_\\allowbreak{}b.\\allowbreak{}c." in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("é", "é"),
        ("ſ", "(U+017F)"),
        ("Ɓ", "(U+0181)"),
        ("Ω", "(U+03A9)"),
        ("~", "\\textasciitilde{}"),
        ("a\tb", "a b"),
        ("x-1", "x-1"),
        ("at -1", "at $-$1"),
        ("2-1", "2-1"),
    ],
)
def test_letters_are_printed_or_named(text: str, shown: str) -> None:
    assert latex_escaped(text) == shown


def test_html_says_what_is_best_tied_missing_and_what_an_interval_spans() -> None:
    cells = [
        Cell(text="1.5", value=1.5, best=True, note="†",
             interval=Interval(mean=1.5, low=1.25, high=1.75, n=3, deviation=0.1)),
        Cell(text="1.6", value=1.6, tied=True,
             interval=Interval(mean=1.6, low=None, high=None, n=1, deviation=None)),
        Cell(text="OOM"),
    ]  # fmt: skip
    table = Table(
        name="t",
        title="A `code` title",
        columns=[Column(key="x", label="x", kind=ColumnKind.metric)],
        rows=[[cell] for cell in cells],
    )
    text = html(table)
    assert '<td class="metric best" title="n=3, 1.25 to 1.75"><b>1.5</b> †</td>' in text
    assert '<td class="metric tied" title="n=1">1.6 ≈</td>' in text
    assert '<td class="metric no-number">OOM</td>' in text
    assert "<caption>A <code>code</code> title</caption>" in text
    assert "<tfoot>" not in text
    noted = Table(name="t", title="t", columns=table.columns * 2, rows=[], footnotes=["a", "b"])
    assert '<td colspan="2"><p>a</p><p>b</p></td>' in html(noted)


def test_csv_has_the_ends_of_an_interval_or_nothing() -> None:
    cells = [
        Cell(text="1.5", value=1.5, n=3,
             interval=Interval(mean=1.5, low=1.25, high=None, n=3, deviation=0.1)),
        Cell(text="OOM"),
    ]  # fmt: skip
    columns = [Column(key="x", label="x", kind=ColumnKind.metric)]
    text = csv(Table(name="t", title="t", columns=columns, rows=[[cell] for cell in cells]))
    assert text.splitlines() == ["x,x low,x high,x deviation,x n", "1.5,1.25,,0.1,3", "OOM,,,,0"]
