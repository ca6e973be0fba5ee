"""One table in four languages: golden files, what is escaped, and LaTeX that really compiles."""

import csv as standard
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.render import csv, html, latex, latex_document, markdown
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
