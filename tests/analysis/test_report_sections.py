"""What a report is made of, section by section: from rows made by hand, without writing a page."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import report
from analysis.answer import Answer, Expectation, answer_of
from analysis.figures.cells import SEARCH_VALUE
from analysis.figures.choose import Draw
from analysis.figures.style import Width
from analysis.frame import Row
from analysis.histories import History
from analysis.page.writer import ReportWriter
from analysis.render.latex import LatexLayout
from analysis.sources import SweepData, load_sweep
from harness.records.record import MeasuredIn, RunStatus
from tests.analysis.rows_for_figures import Run, rows
from tests.analysis.test_answer import around, saved
from tests.analysis.test_default import placed, sweep_of
from tests.analysis.test_rate_law import BY_RANK, searched

LOSS, MATCH = "eval/loss", "eval/exact_match"


class Kept(ReportWriter):
    """A report's directory whose figures are drawn and named, and not written."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.drawn: dict[str, str | None] = {}

    def figures(self, draws: Iterable[Draw], *, prefix: str) -> str:
        for draw in draws:
            drawing = draw(Width.one_column)
            self.drawn[prefix + drawing.name] = drawing.reason
        return f"<figures {prefix}>"

    @property
    def shown(self) -> list[str]:
        return [name for name, reason in self.drawn.items() if reason is None]


@dataclass
class Made:
    """A source of answers and curves."""

    answers: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    curves: dict[str, History] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    report = "report"

    def samples(self, run_id: str) -> list[Sequence[str]]:
        self.asked.append(run_id)
        return list(self.answers.get(run_id, ()))

    def histories(self, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, History]:
        return {run_id: self.curves[run_id] for run_id in run_ids if run_id in self.curves}

    def runs(self) -> tuple[list[Row], list[str]]:
        raise NotImplementedError

    def sweep(self, name: str) -> SweepData:
        raise NotImplementedError


def state(status: str = "finished", **more: Any) -> dict[str, Any]:
    told = [
        {"number": n, "status": s, "values": None} for n, s in enumerate(("completed", "running"))
    ]
    return {"status": status, "trials": told, "trials_requested": 3, "confirmed": []} | more


def with_state(sweep: SweepData, tree: dict[str, Any]) -> SweepData:
    sweep.state.update({"objectives": sweep.objectives} | tree)
    return sweep


# What is missing ----------------------------------------------------------------------------------


def test_what_a_sweep_lacks_is_a_sentence_each() -> None:
    confirmed = placed("confirmation", {"lora.rank": "8"}, loss=1.0)
    whole = with_state(sweep_of([confirmed]), state())
    assert report._lacks(whole) == []
    running = with_state(sweep_of([confirmed]), state("running"))
    assert report._lacks(running) == ["state.json says running: 1 of 3 trials have ended"]
    none = with_state(sweep_of([]), state())
    assert report._lacks(none) == [
        "no confirmation: what stands below are the search's own numbers, not results",
        "no run has a record yet",
    ]
    failed = placed("search", {}, status=RunStatus.failed)
    pruned = placed("search", {}, status=RunStatus.pruned, seed=1)
    over = with_state(sweep_of([confirmed, failed, pruned]), state())
    assert report._lacks(over) == ["1 run with status failed"], "pruning is how a search works"
    over.problems.append("something else")
    assert report._lacks(over)[-1] == "something else"
    still = with_state(sweep_of([confirmed, pruned]), state("interrupted"))
    assert report._lacks(still)[1:] == ["1 run with status pruned"]


def test_runs_that_did_not_complete_are_counted_by_status() -> None:
    found = rows(
        Run(loss=1.0),
        Run(seed=1, status=RunStatus.out_of_memory),
        Run(seed=2, status=RunStatus.diverged),
        Run(seed=3, status=RunStatus.out_of_memory),
    )
    assert report._failures(found) == [
        "2 runs with status out of memory",
        "1 run with status diverged",
    ]


# What chooses and what is shown -------------------------------------------------------------------


def test_a_confirmed_run_remembers_what_the_search_saw_of_its_cell() -> None:
    found = [
        placed("confirmation", {}, trial=0, loss=5.0),
        placed("confirmation", {}, trial=1, loss=6.0, seed=1),
        placed("search", {}, trial=0, loss=7.0),
    ]
    trials = [{"number": 0, "values": [0.25, 9.0]}, {"number": 1, "values": None}]
    report._remember_search_values(with_state(sweep_of(found), {"trials": trials}))
    assert [row.get(SEARCH_VALUE) for row in found] == [0.25, None, None]
    aimless = placed("confirmation", {}, trial=0, loss=5.0)
    report._remember_search_values(
        with_state(sweep_of([aimless], objectives={}), {"trials": trials})
    )
    assert SEARCH_VALUE not in aimless


def test_the_metrics_shown_are_the_wanted_ones_of_quality_with_the_task_s_own_score() -> None:
    both = rows(Run(loss=1.0, exact=0.5, peak=1.0))
    assert report._measured(both) == [LOSS, MATCH]
    assert report._measured(both, [MATCH, LOSS]) == [MATCH, LOSS]
    assert report._measured(both, ["memory/peak_bytes"]) == [MATCH]
    assert report._measured(rows(Run(loss=1.0))) == [LOSS]
    assert report._measured(rows(Run(loss=1.0, status=RunStatus.diverged))) == []
    assert report._measured(rows(Run(loss=1.0, measured_in=MeasuredIn.probe))) == []
    row = rows(Run(loss=1.0))[0] | {"after.eval/rouge_l": 0.5, "after.eval/choice_accuracy": 0.5}
    assert report._measured([row]) == [LOSS, "eval/choice_accuracy"], "the first score there is"


def test_a_table_of_runs_has_a_line_for_all_that_varies_and_columns_of_quality_and_cost() -> None:
    found = rows(Run(format="nf4", rank=2, loss=1.0), Run(format="int4", rank=2, lr=1.0, loss=2.0))
    spec = report._spec_of_runs(found, "runs", "T", [LOSS])
    assert (spec.name, spec.title, spec.limit) == ("runs", "T", 60)
    assert spec.rows == ("quant", "optim.lr")
    assert spec.columns == (
        *(LOSS, "adapter/trainable_params"),
        *("memory/peak_bytes", "throughput/step_ms"),
    )
    probe = rows(Run(rank=64, measured_in=MeasuredIn.probe))
    assert report._spec_of_runs([*found, *probe], "runs", "T", [LOSS]).rows == spec.rows
    alphas = rows(Run(alpha=4.0, loss=1.0), Run(alpha=8.0, loss=1.0))
    assert report._spec_of_runs(alphas, "runs", "T", [LOSS]).rows == ("lora.alpha",)
    assert report._spec_of_runs(found[:1], "runs", "T", [LOSS]).rows == ("model.name",)


def test_runs_are_compared_within_one_model_data_evaluation_and_role() -> None:
    found = rows(
        Run(task="facts", rank=2),
        Run(task="rule", rank=2),
        Run(task="facts", rank=8),
        Run(task="facts", rank=8, role="search"),
    )
    groups = report._comparable(found)
    assert [(label, [row["run_id"] for row in group]) for label, group in groups] == [
        ("data.task=facts", [found[0]["run_id"], found[2]["run_id"]]),
        ("data.task=rule", [found[1]["run_id"]]),
        ("search, data.task=facts", [found[3]["run_id"]]),
    ]
    assert [label for label, _ in report._comparable(found[:1])] == ["All runs"]
    splits = rows(Run(split="test"), Run(split="validation"))
    assert [label for label, _ in report._comparable(splits)] == [
        "eval.split=test",
        "eval.split=validation",
    ]


# The head -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4])
def test_few_sentences_are_a_paragraph_and_many_a_list(count: int) -> None:
    sentences = tuple(f"Say <{n}>." for n in range(count))
    said = report._found(Answer(sentences=sentences, expectation=Expectation.partly, answered=None))
    assert ("<ul>" in said) is (count == 4)
    assert f"<b>The expectation is {Expectation.partly.value}.</b>" in said
    listed = [f"<li>Say &lt;{n}&gt;.</li>" for n in range(count)]
    joined = " ".join(f"Say &lt;{n}&gt;." for n in range(count))
    assert ("".join(listed) if count == 4 else joined) in said
    plain = report._found(Answer(sentences=sentences, expectation=None, answered=None))
    assert "expectation" not in plain
    assert "nothing is confirmed yet" in report._found(None)


# Sections -----------------------------------------------------------------------------------------


def confirmed_rows() -> list[Row]:
    return [
        placed("confirmation", {"lora.rank": str(rank)}, trial=trial, rank=rank, seed=seed,
               loss=1.0 + trial + seed / 10, peak=1024.0 * rank)
        for trial, rank in enumerate((2, 8))
        for seed in (10, 11)
    ]  # fmt: skip


def searched_rows() -> list[Row]:
    return [
        placed("search", {"lora.rank": str(rank)}, trial=trial, rank=rank, loss=1.0 + trial,
               peak=1024.0 * rank)
        for trial, rank in enumerate((2, 8))
    ]  # fmt: skip


def trials_of(count: int) -> list[dict[str, Any]]:
    return [
        {"number": n, "status": "completed", "values": [1.0 + n],
         "point": {"lora.rank": str(2 + n), "optim.lr": str(n)}}
        for n in range(count)
    ]  # fmt: skip


def test_confirmation_and_search_have_figures_apart(tmp_path: Path) -> None:
    page = Kept(tmp_path)
    sweep = with_state(sweep_of([*confirmed_rows(), *searched_rows()]), {"trials": trials_of(4)})
    sections = list(report._sweep_figures(page, sweep, Made()))
    assert [section.key for section in sections] == ["figures", "search", "cost"]
    assert {"eval_loss_over_rank", "search_eval_loss_over_rank"} <= set(page.shown)
    assert "search_trials_eval_loss" in page.shown
    assert not any("dependence" in name for name in page.drawn), "a grid needs no surrogate"
    assert "eval_loss_against_memory" in page.shown
    assert "their numbers are not results" in sections[1].body
    assert "effects" in page.written.tables, "of a grid"
    alone = Kept(tmp_path / "alone")
    only = with_state(sweep_of(searched_rows()), {"trials": trials_of(4)})
    keys = [section.key for section in report._sweep_figures(alone, only, Made())]
    assert keys == ["search", "cost"]
    assert "eval_loss_over_rank" in alone.shown, "nothing else has that name"
    nothing = with_state(sweep_of([]), {"trials": []})
    assert list(report._sweep_figures(alone, nothing, Made())) == []


@pytest.mark.parametrize(
    ("method", "asked", "has_effects"),
    [
        ("grid", {}, True),
        ("grid", {"search": {"transfer": "none"}}, True),
        ("grid", {"search": {"transfer": "lr"}}, False),  # levels met unlike others
        ("random", {}, False),
    ],
)
def test_effects_are_of_a_whole_grid(tmp_path: Path, method: str, asked, has_effects) -> None:
    page = Kept(tmp_path)
    (tmp_path / "sweeps" / "s").mkdir(parents=True)
    sweep = sweep_of(
        searched_rows(), method=method, asked=asked, directory=tmp_path / "sweeps" / "s"
    )
    list(report._sweep_figures(page, with_state(sweep, {"trials": trials_of(4)}), Made()))
    assert ("effects" in page.written.tables) is has_effects
    assert any("dependence" in name for name in page.drawn) is (method != "grid")
    lacking = [lack for lack in page.written.lacks if lack.startswith("no importance: ")]
    assert len(lacking) == (method != "grid")


def test_curves_of_the_best_runs_are_drawn_and_torn_lines_are_counted(tmp_path: Path) -> None:
    found = confirmed_rows()
    steps = np.array([1.0, 2.0])
    whole = {
        row["run_id"]: History(curves={"train/loss": (steps, steps)}, num_damaged_lines=1)
        for row in found
    }
    page = Kept(tmp_path)
    draws = report._curve_draws(page, Made(curves=whole), found, LOSS)
    assert [draw(Width.one_column).name for draw in draws] == [
        *("curves_train_loss", "curves_eval_loss", "series_over_steps")
    ]
    assert draws[0](Width.one_column).reason is None
    assert page.written.lacks == ["4 torn lines in metrics.jsonl were left out"]
    clean = Kept(tmp_path)
    report._curve_draws(clean, Made(), found, LOSS)
    assert clean.written.lacks == []


def test_without_contrasts_two_objectives_show_quality_against_memory(tmp_path: Path) -> None:
    said = Answer(sentences=("Two.",), expectation=None, answered=None)
    page = Kept(tmp_path)
    both = {LOSS: "minimize", "memory/peak_bytes": "minimize"}
    body = report._answer_body(page, sweep_of(confirmed_rows(), objectives=both), said)
    assert body == "<figures answer_>"
    assert page.shown == ["answer_eval_loss_against_memory"]
    for objectives in (
        {LOSS: "minimize"},
        {"memory/peak_bytes": "minimize"} | {"train/loss": "minimize"},
    ):
        assert (
            report._answer_body(page, sweep_of(confirmed_rows(), objectives=objectives), said) == ""
        )


def test_the_law_of_rates_is_told_drawn_and_tabled_where_there_is_one(tmp_path: Path) -> None:
    page = Kept(tmp_path)
    section = report._law(page, searched(by_rank=BY_RANK))
    assert page.written.tables == ["rate_law", "rate_transfer"]
    assert page.shown == ["best_rate_over_rank"]
    assert len(page.written.laws) == 1
    assert "falls with the rank" in section.body
    assert (section.key, section.title) == ("rate_law", "Learning rate and rank")
    none = report._law(Kept(tmp_path), searched(by_rank={2: 4e-3, 8: 4e-3}))
    assert (none.key, none.title, none.body) == (section.key, section.title, "")
    few = Kept(tmp_path)
    partial = searched(by_rank=BY_RANK)
    partial.rows.pop()  # no whole grid any more, but still a law
    partial.rows.pop()
    report._law(few, partial)
    assert few.written.tables == ["rate_law"]


def test_the_cost_and_the_prediction_are_there_where_something_was_measured(tmp_path: Path) -> None:
    page = Kept(tmp_path)
    sweep = with_state(sweep_of(searched_rows()), {"devices": ["cpu", "cpu"]})
    cost = report._cost(page, sweep)
    assert re.search(r">devices</th><td[^>]*>2</td>", cost.body)
    assert page.written.tables == ["question_cost"]
    assert report._cost(page, with_state(sweep_of([]), {})).body == ""
    assert report._predicted(page, sweep.rows).body == ""
    sweep.rows[0]["predicted.memory/peak_bytes"] = 2048.0
    predicted = report._predicted(page, sweep.rows)
    assert predicted.body.startswith("<figures >")
    assert page.written.tables[1:] == ["predicted_memory"]
    assert page.shown == ["memory_predicted"]


# Answers ------------------------------------------------------------------------------------------


def answering(rank: int, **more: Any) -> Row:
    return rows(Run(rank=rank, loss=float(rank), exact=1 / rank, **more))[0]


def test_answers_of_the_best_four_cells_stand_side_by_side() -> None:
    found = [answering(rank) for rank in (32, 16, 8, 4, 2, 1)]
    asked = [("2 + 2", "4", "5", "4"), ("3 + 3", "6", "5", "6")]
    told = {row["run_id"]: asked[: 1 + (row["lora.rank"] > 1)] for row in found}
    source = Made(answers=told)
    (section,) = report._answers(found, [LOSS], source)
    assert source.asked == [row["run_id"] for row in reversed(found[2:])]
    heads = [part.partition("<")[0] for part in section.body.split("<th>")[1:]]
    assert heads[-4:] == ["r=1", "r=2", "r=4", "r=8"]
    assert "1 prompts, a seed each of the 4 best cells" in section.body
    (best,) = report._answers(found, [MATCH], Made(answers=told))
    assert best.body == section.body, "small ranks are best by either"
    (cost_first,) = report._answers(found, ["memory/peak_bytes", LOSS], Made(answers=told))
    assert cost_first.body == section.body
    (nameless,) = report._answers(found, [], Made(answers=told))
    assert nameless.body == section.body, "by loss where nothing else is asked"


def test_only_runs_that_were_asked_to_generate_have_answers() -> None:
    silent = rows(Run(rank=2, loss=1.0))
    told = {row["run_id"]: [("p", "r", "b", "a")] for row in silent}
    assert list(report._answers(silent, [LOSS], Made(answers=told))) == []
    silent[0]["data.answers"] = "letters"
    (section,) = report._answers(silent, [LOSS], Made(answers=told))
    assert "<th>after training</th>" in section.body, "one cell differs in nothing"
    assert list(report._answers(silent, [LOSS], Made())) == [], "it kept none"
    probe = answering(2, measured_in=MeasuredIn.probe)
    assert (
        list(
            report._answers(
                [probe], [LOSS], Made(answers={probe["run_id"]: told[silent[0]["run_id"]]})
            )
        )
        == []
    )


# Whole pages, with their figures named and not written ---------------------------------------------


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """Every directory that a report makes."""
    made: list[Kept] = []

    def writer(directory: Path, layout: LatexLayout | None = None) -> Kept:
        made.append(Kept(directory))
        return made[-1]

    monkeypatch.setattr(report, "ReportWriter", writer)
    return made


@dataclass
class Held(Made):
    """A source of one sweep, or of rows."""

    rows: list[Row] = field(default_factory=list)
    whole: SweepData | None = None
    report = "report_held"

    def runs(self) -> tuple[list[Row], list[str]]:
        return self.rows, ["one thing could not be used"]

    def sweep(self, name: str) -> SweepData:
        assert self.whole is not None
        return self.whole


def sections_of(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page)


def test_all_runs_are_shown_in_their_groups_the_largest_first(
    tmp_path: Path, pages: list[Kept]
) -> None:
    found = rows(
        *(Run(task="small", rank=rank, loss=2.0 + rank) for rank in (2, 8)),
        *(Run(task="large", rank=rank, loss=1.0 + rank, exact=1 / rank, peak=1024.0 * rank)
          for rank in (2, 8, 16)),
        *(Run(task=f"t{n}", loss=1.0) for n in range(3)),
        Run(task="failed", status=RunStatus.diverged),
    )  # fmt: skip
    written = report.report_runs(tmp_path, Held(rows=found))
    (page,) = pages
    assert written is page.written
    assert written.index == tmp_path / "report_held" / "index.html"
    shown = set(page.shown)
    assert {"group1_eval_loss_over_rank", "group1_eval_exact_match_over_rank"} <= shown
    assert "group1_eval_loss_against_memory" in shown
    assert "group1_eval_exact_match_against_memory" not in shown, "by the first metric"
    assert "group2_eval_loss_over_rank" in shown
    assert "group1_curves_train_loss" in page.drawn
    assert "group1_memory_beside_throughput" in page.drawn
    assert written.tables == ["group1_runs", "group2_runs", "group3_runs", "group4_runs"]
    assert written.lacks == [
        "one thing could not be used",
        "1 run with status diverged",
        "no figures of the 1 runs with data.task=t2",
        "no figures of the 1 runs with data.task=failed",
    ]
    text = written.index.read_text()
    assert "<h1>9 runs under " in text
    assert "<title>9 runs</title>" in text
    assert re.findall(r"<h2>(.*?)</h2>", text)[:2] == ["data.task=large", "data.task=small"]
    assert sections_of(text) == [
        *("figures1", "figures2", "figures3", "figures4"),
        *("runs", "provenance"),
    ]
    alone = Held(rows=found[:2])
    report.report_runs(tmp_path, alone)
    assert "eval_loss_over_rank" in pages[1].shown, "one group needs no number"
    assert pages[1].written.tables == ["runs"]
    unmeasured = Held(rows=rows(Run(task="a"), Run(task="b", loss=1.0)))
    report.report_runs(tmp_path, unmeasured)
    assert sections_of(pages[2].written.index.read_text()) == ["figures2", "runs", "provenance"]


def test_a_sweep_s_page_has_its_sections_in_order(tmp_path: Path, pages: list[Kept]) -> None:
    parts: dict[str, Any] = {"parts": (1, 1, 1, 1, 1, 1)}
    found = [*confirmed_rows(), *searched_rows()]
    found.append(
        placed("probe", {"lora.rank": "2"}, rank=2, peak=9.0, measured_in=MeasuredIn.probe, **parts)
    )
    for row in found:
        row["predicted.memory/peak_bytes"] = 2048.0
    tree = state() | {"method": "grid", "updated_at": "now", "devices": ["cpu"]}
    tree |= {"trials": [trial | {"runs": []} for trial in trials_of(4)]}
    tree["objectives"] = {LOSS: "minimize"}
    whole = with_state(sweep_of(found, directory=tmp_path / "sweeps" / "small"), tree)
    written = report.report_sweep(
        tmp_path, "small", refresh_seconds=7, source=Held(whole=whole, answers={})
    )
    (page,) = pages
    assert written.index == tmp_path / "sweeps" / "small" / "report_held" / "index.html"
    text = written.index.read_text()
    assert sections_of(text) == [
        *("verdict", "figures", "search", "cost", "tables", "question_cost", "runs", "predicted"),
        *("provenance", "reproduce"),
    ]
    assert 'http-equiv="refresh" content="7"' in text
    assert "<b>Expected:</b> nothing was stated" in text
    assert "<h1>Which rank?</h1>" in text
    assert written.answer is not None
    assert written.answer.startswith("Best eval loss of 2 confirmed cells")
    assert f"<b>Found:</b> {written.answer}" in text
    assert written.tables[:1] == ["confirmation"]
    assert {"search", "cost", "effects", "question_cost", "predicted_memory"} <= set(written.tables)
    assert "answer_" not in " ".join(page.drawn)
    assert (page.directory / "paper" / "main.tex").exists()
    assert "Which rank?" in (page.directory / "paper" / "main.tex").read_text()
    seen = {row["trial"]: row.get(SEARCH_VALUE) for row in found if row["role"] == "confirmation"}
    assert seen == {0: 1.0, 1: 2.0}, "what the search saw chooses"
    unasked = with_state(
        sweep_of([], question="", directory=tmp_path / "sweeps" / "empty"),
        tree | {"trials": [], "status": "running"},
    )
    nothing = report.report_sweep(tmp_path, "empty", source=Held(whole=unasked))
    text = nothing.index.read_text()
    assert sections_of(text) == ["lacks", "runs", "reproduce"]
    assert "<h1>small</h1>" in text
    assert nothing.answer is None
    assert "refresh" not in text.partition("<style>")[0]


def test_the_answer_is_its_figure_what_is_published_of_it_and_its_table(tmp_path: Path) -> None:
    losses = {2: around(1.0), 8: around(0.9, shift=1)}
    for published in ([], ["lora_e2e_loss"], ["no_such_table"]):
        out = tmp_path / str(len(published)) / "".join(published)
        saved(out, losses, compare={"lora.rank": "steps"}, published=published)
        sweep = load_sweep(out, "small")
        page = Kept(out / "report")
        answer = answer_of(sweep)
        assert answer is not None
        body = report._answer_body(page, sweep, answer)
        assert page.shown == ["contrasts"]
        assert body.startswith("<figures >")
        if not published:
            assert page.written.tables == ["contrasts"]
            assert page.written.ordering is None
            assert "Published:" not in body
            continue
        assert page.written.ordering is not None
        assert f"<b>Published:</b> {page.written.ordering}" in body
        own = ["published"] if published == ["lora_e2e_loss"] else []
        assert page.written.tables == ["contrasts", *own, "ordering"]
        places = [body.index(f'id="table-{name}"') for name in ("ordering", *own, "contrasts")]
        assert places == sorted(places)
        assert "Contrasts on fresh seeds." in body
        assert "Whether the published ordering appears." in body


def test_what_has_no_quality_among_its_objectives_has_no_answer_to_draw(tmp_path: Path) -> None:
    said = Answer(sentences=("One.",), expectation=None, answered=None)
    both = {"memory/peak_bytes": "minimize", "eval/loss": "minimize"}
    page = Kept(tmp_path)
    assert report._answer_body(page, sweep_of(confirmed_rows(), objectives=both), said)
    assert page.shown == ["answer_eval_loss_against_memory"], "the second is the quality"
