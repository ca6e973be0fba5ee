"""The report: one page that opens from disk, files beside it, and a sentence for whatever is missing."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import harness.commands.report as command
from analysis.page.paper import STYLES
from analysis.report import report_runs, report_sweep
from harness.commands.report import report_command
from harness.errors import RequestError
from harness.records.record import MeasuredIn, RunDirectory, RunStatus, write_record
from harness.sweeping.state import (
    ConfirmedLine,
    RunLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    TrialLine,
    write_state,
)
from tests.analysis.rows_for_figures import Run

REPOSITORY = Path(__file__).resolve().parents[2]
QUESTION = "Does <script>alert(1)</script> & rank matter?"
RANKS = (2, 8)
LOSS = {2: 2.0, 8: 1.0}


def searched() -> list[Run]:
    return [
        Run(rank=rank, loss=LOSS[rank], role="search", trial=trial, peak=1024.0 * rank)
        for trial, rank in enumerate(RANKS)
    ]


def confirmed() -> list[Run]:
    return [
        Run(
            rank=rank,
            seed=seed,
            loss=LOSS[rank] + 0.25 * seed / 10,
            exact=1 / rank,
            role="confirmation",
            trial=trial,
            split="test",
            peak=1024.0 * rank,
        )
        for trial, rank in enumerate(RANKS)
        for seed in (10, 11, 12)
    ]


def of_one_rank() -> list[Run]:
    """Two runs of a search and what was confirmed of one: tables and few figures, which take seconds."""
    return [*searched(), *confirmed()[:3]]


def save_runs(out: Path, runs: Sequence[Run]) -> None:
    for run in runs:
        directory = RunDirectory(out / "runs" / run.run_id)
        directory.path.mkdir(parents=True, exist_ok=True)
        write_record(directory.record, run.record())
        lines = [
            json.dumps({"step": step, "train/loss": (run.loss or 1.0) / step}) + "\n"
            for step in range(1, 9)
        ]
        (directory.path / "metrics.jsonl").write_text("".join(lines))


def save_sweep(
    out: Path, runs: Sequence[Run], *, status: SweepStatus = SweepStatus.finished
) -> None:
    """Write the runs and the state of a sweep over them."""
    save_runs(out, runs)

    def of(role: str, trial: int) -> list[Run]:
        return [run for run in runs if run.role == role and run.trial == trial]

    def loss(run: Run) -> float:
        assert run.loss is not None
        return run.loss

    def failed(trial: int) -> bool:
        return any(run.loss is None for run in of("search", trial))

    trials = sorted({run.trial for run in runs if run.trial is not None})
    points = {trial: {"lora.rank": str(of("search", trial)[0].rank)} for trial in trials}
    state = SweepState(
        name="small",
        question=QUESTION,
        expect="Yes.",
        method="grid",
        objectives={"eval/loss": "minimize"},
        trials_requested=len(trials),
        status=status,
        trials=[
            TrialLine(
                number=trial,
                point=points[trial],
                status="failed" if failed(trial) else "completed",
                values=None if failed(trial) else [loss(run) for run in of("search", trial)],
                feasible=True,
                runs=[run.run_id for run in of("search", trial)],
                reason=None,
            )
            for trial in trials
        ],
        runs=[
            RunLine(
                run_id=run.run_id,
                role=run.role or "search",
                seed=run.seed,
                status=run.status.value,
                step=400,
                total_steps=400,
                was_there=False,
                error=run.error,
            )
            for run in runs
        ],
        confirmed=[
            ConfirmedLine(
                point=points[trial],
                trial=trial,
                runs=[run.run_id for run in of("confirmation", trial)],
                values={"eval/loss": [loss(run) for run in of("confirmation", trial)]},
            )
            for trial in trials
            if of("confirmation", trial)
        ],
    )
    directory = SweepDirectory(out, "small")
    directory.path.mkdir(parents=True, exist_ok=True)
    write_state(directory, state)
    asked = {"name": "small", "question": QUESTION, "base": ["data=facts"]}
    directory.question.write_text(yaml.safe_dump(asked | {"space": {"lora.rank": "choice(2,8)"}}))


class Links(HTMLParser):
    """Every address in a page, and the text of what can be copied."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.copies: dict[str, str] = {}
        self.copied_by: list[str] = []
        self._inside: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [found[k] or "" for k in ("href", "src", "srcset") if k in found]
        self.scripts += tag == "script"
        self._inside = found["id"] if tag == "textarea" else None
        if copy := found.get("data-copy"):
            self.copied_by.append(copy)

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.copies[self._inside] = self.copies.get(self._inside, "") + data


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report's directory of a small finished sweep."""
    out = tmp_path_factory.mktemp("small") / "out"
    save_sweep(out, [*searched(), *confirmed()])
    return report_sweep(out, "small").index.parent


def test_the_page_needs_nothing_but_what_lies_beside_it(report: Path) -> None:
    page = (report / "index.html").read_text()
    links = Links(page)
    kept = [a for a in links.addresses if not a.startswith(("data:image/svg+xml", "#"))]
    assert kept
    for address in kept:
        assert "://" not in address
        assert (report / address).exists(), address
    inside = {address[1:] for address in links.addresses if address.startswith("#")}
    assert inside <= set(re.findall(r'id="([^"]+)"', page))
    assert "default-src 'none'" in page


def test_what_a_user_wrote_is_text_and_never_a_script(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert Links(page).scripts == 1  # ours
    assert "Does &lt;script&gt;alert(1)&lt;/script&gt; &amp; rank matter?" in page
    assert "<script>alert" not in page


def test_every_table_can_be_copied_and_lies_in_four_languages(report: Path) -> None:
    links = Links((report / "index.html").read_text())
    assert set(links.copied_by) == set(links.copies)
    names = {path.stem for path in (report / "tables").iterdir()}
    assert "confirmation" in names
    for name in names:
        for suffix in ("md", "tex", "csv", "json"):
            assert (report / "tables" / f"{name}.{suffix}").stat().st_size > 0
        for kind in ("md", "tex"):
            file = (report / "tables" / f"{name}.{kind}").read_text()
            assert links.copies[f"{kind}-{name}"].strip() == file.strip()


def test_figures_lie_in_both_widths_for_print_with_the_runs_behind_them(report: Path) -> None:
    figures = report / "figures"
    stems = {path.stem for path in figures.glob("*.json")}
    assert {"eval_loss_over_rank", "eval_exact_match_over_rank", "curves_train_loss"} <= stems
    for stem in stems:
        for name in (stem, f"{stem}_wide"):
            assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
            assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_confirmation_and_search_never_mix(report: Path) -> None:
    def runs_behind(stem: str) -> set[str]:
        return set(json.loads((report / "figures" / f"{stem}.json").read_text())["runs"])

    assert runs_behind("eval_loss_over_rank") == {run.run_id for run in confirmed()}
    assert runs_behind("search_eval_loss_over_rank") == {run.run_id for run in searched()}


def test_what_a_shared_process_cannot_measure_comes_from_the_probes(tmp_path: Path) -> None:
    parts = (1, 1, 1, 1, 1)
    runs = [
        replace(run, measured_in=MeasuredIn.cohort, peak=None, parts=parts)
        for run in [*searched(), *confirmed()]
    ]
    probes = [
        Run(
            rank=rank,
            role="probe",
            measured_in=MeasuredIn.probe,
            peak=8.0 * rank,
            parts=(*parts, 3),
        )
        for rank in RANKS
    ]
    save_sweep(tmp_path, [*runs, *probes])
    page = report_sweep(tmp_path, "small").index.read_text()
    assert "Activations are missing" not in page
    memory = tmp_path / "sweeps" / "small" / "report" / "figures" / "eval_loss_against_memory.json"
    behind = set(json.loads(memory.read_text())["runs"])
    assert behind == {run.run_id for run in [*runs[2:], *probes]}


def test_the_page_says_what_was_asked_how_it_stands_and_how_to_do_it_again(report: Path) -> None:
    page = (report / "index.html").read_text()
    for text in (
        "<b>Expected:</b> Yes.",
        "finished · grid · 2 trials requested (2 completed) · 8 runs with a record",
        "harness sweep small.yaml\nharness report small",
        "c0ffee with local changes",
        "8 runs: 8 completed",
        "their numbers are not results",
    ):
        assert text in page
    for run in searched() + confirmed():
        assert f'<a href="../../../runs/{run.run_id}/">' in page


def test_what_a_sweep_lacks_is_said(tmp_path: Path) -> None:
    failed = Run(rank=8, role="search", trial=1, status=RunStatus.failed, error="<b>gone</b>")
    save_sweep(tmp_path, [searched()[0], failed], status=SweepStatus.running)
    written = report_sweep(tmp_path, "small")
    assert "state.json says running: 2 of 2 trials have ended" in written.lacks
    assert "1 run with status failed" in written.lacks
    assert any(lack.startswith("no confirmation") for lack in written.lacks)
    page = written.index.read_text()
    assert "&lt;b&gt;gone&lt;/b&gt;" in page
    assert "lora.rank has one value, 2" in page  # why there is no figure over rank
    assert "Confirmation: fresh seeds" not in page


def test_a_torn_record_is_named_and_the_rest_is_reported(tmp_path: Path) -> None:
    runs = of_one_rank()
    save_sweep(tmp_path, runs)
    torn = tmp_path / "runs" / runs[0].run_id / "run.json"
    torn.write_text(torn.read_text()[:100])
    written = report_sweep(tmp_path, "small")
    assert any(runs[0].run_id in lack and "torn" in lack for lack in written.lacks)
    assert "confirmation" in written.tables


def test_all_runs_are_reported_in_groups_that_can_be_compared(tmp_path: Path) -> None:
    tasks = {"facts": (2.0, 1.0), "rule": (0.5, 0.4)}
    runs = [
        Run(task=task, rank=rank, loss=loss)
        for task, losses in tasks.items()
        for rank, loss in zip(RANKS, losses, strict=True)
    ]
    save_runs(tmp_path, runs)
    written = report_runs(tmp_path)
    assert written.index == tmp_path / "report" / "index.html"
    behind = [
        {run_id.partition("-")[0] for run_id in json.loads(path.read_text())["runs"]}
        for path in (tmp_path / "report" / "figures").glob("*over_rank.json")
    ]
    assert sorted(behind, key=str) == [{"facts"}, {"rule"}]
    assert len(written.tables) == 2


# The command --------------------------------------------------------------------------------------


def test_the_command_prints_where_the_page_is_and_what_is_missing(tmp_path, capsys) -> None:
    save_sweep(tmp_path, searched()[:1])
    assert report_command(["small", f"paths.out={tmp_path}"], watch=False) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path}/sweeps/small/report/index.html  (")
    assert "no confirmation" in said.err


def test_without_records_it_says_where_it_looked(tmp_path) -> None:
    with pytest.raises(RequestError, match=re.escape(str(tmp_path / "runs"))):
        report_command([f"paths.out={tmp_path}"], watch=False)
    with pytest.raises(RequestError, match=re.escape(str(tmp_path / "sweeps" / "small"))):
        report_command(["small", f"paths.out={tmp_path}"], watch=False)
    assert not list(tmp_path.iterdir())


def test_a_wrong_name_among_right_ones_writes_nothing(tmp_path) -> None:
    save_sweep(tmp_path, searched())
    with pytest.raises(RequestError, match="near names: small"):
        report_command(["small", "smal", f"paths.out={tmp_path}"], watch=False)
    assert not (tmp_path / "sweeps" / "small" / "report").exists()


def test_watching_reports_again_until_the_sweep_has_ended(tmp_path, monkeypatch, capsys) -> None:
    save_sweep(tmp_path, searched()[:1], status=SweepStatus.running)
    directory = SweepDirectory(tmp_path, "small")
    pages = []

    def sleep(seconds: float) -> None:  # the sweep ends during the second pause
        pages.append((directory.report / "index.html").read_text())
        if len(pages) == 2:
            save_sweep(tmp_path, searched()[:1])

    monkeypatch.setattr(command.time, "sleep", sleep)
    with directory.lock():  # a driver
        assert report_command(["small", f"paths.out={tmp_path}"], watch=True) == 0
    assert len(pages) == 2
    assert all('http-equiv="refresh"' in page for page in pages)
    last = (directory.report / "index.html").read_text()
    assert 'http-equiv="refresh"' not in last
    assert "finished · grid" in last
    with pytest.raises(RequestError, match="needs the name of a sweep"):
        report_command([f"paths.out={tmp_path}"], watch=True)


def test_a_report_loads_neither_torch_nor_transformers_nor_wandb(tmp_path) -> None:
    save_sweep(tmp_path, of_one_rank())
    code = (
        "import sys\nfrom harness.commands.report import report_command\n"
        f"report_command(['small', 'paths.out={tmp_path}'], watch=False)\n"
        "print({'torch', 'transformers', 'wandb', 'optuna', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize("document", STYLES)
def test_the_paper_compiles_without_an_overfull_box(report: Path, document: str) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-extra texlive-science)")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", document],
        cwd=report / "paper",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_a_look_is_chosen_by_words_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    save_sweep(tmp_path, of_one_rank())
    words = ["small", f"paths.out={tmp_path}", "table.width=text", "figure.style=slides"]
    assert report_command(words, watch=False) == 0
    table = tmp_path / "sweeps" / "small" / "report" / "tables" / "confirmation.tex"
    assert "\\begin{table*}" in table.read_text()
    with pytest.raises(
        RequestError, match=r"table\.width=colum is none of column, text; near names: column"
    ):
        report_command(["small", "table.width=colum"], watch=False)
    with pytest.raises(
        RequestError, match=r"unknown key 'figure\.stile'; near names: figure\.style"
    ):
        report_command(["small", "figure.stile=page"], watch=False)
