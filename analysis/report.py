"""`harness report`: from the records of a sweep, or of all runs, to tables, figures and one html page."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from analysis.answer import Answer, answer_of
from analysis.calibration import calibration_table
from analysis.contrasts import Answered, contrasts_table
from analysis.edges import edge_notes
from analysis.effects import effects_table
from analysis.figures.cells import (
    SEARCH_VALUE,
    best_first,
    cells_of,
    counts,
    runs_of,
    value_of,
)
from analysis.figures.choose import (
    CURVES,
    Draw,
    configuration_figures,
    cost_figures,
    curve_figures,
    quality_figures,
)
from analysis.figures.contrasts import contrast_intervals
from analysis.figures.costs import STEP_SERIES, runs_with_series
from analysis.figures.dependence import dependence_panels
from analysis.figures.factors import printed, varying_factors
from analysis.figures.learning import runs_with_curves
from analysis.figures.memory import predicted_against_measured, setting_text
from analysis.figures.rate_law import best_rate_over_rank
from analysis.figures.search import importance_bars, parallel_coordinates, trial_points
from analysis.figures.style import Look, choose_look
from analysis.figures.trade_off import quality_against_memory
from analysis.frame import Role, Row
from analysis.page.document import Section, document
from analysis.page.parts import (
    answers_table,
    bullet_list,
    folded,
    provenance_list,
    reproduction,
    status_line,
)
from analysis.page.writer import ReportWriter, Written
from analysis.published_order import ordering, ordering_table, published_spec
from analysis.question_cost import cost_table
from analysis.rate_law import law_sentences, law_table, laws_of, saving_table, savings_of
from analysis.render.html import prose
from analysis.render.latex import LatexLayout
from analysis.sources import Records, Source, SweepData
from analysis.spec import Spec
from analysis.specs import specs_for
from analysis.task_scores import task_columns
from harness.records.metrics import METRICS
from harness.records.record import RunStatus

SCORES = ("eval/exact_match", "eval/choice_accuracy", "eval/rouge_l")
"""A task's own score, the first that was measured, is drawn beside the objectives."""
MAX_ANSWERING = 4
"""Cells whose answers stand side by side."""
MANY_SENTENCES = 4
"""From so many on they are a list."""
MAX_LINES = 60
"""Lines of a table of runs that no sweep asked for."""
MAX_GROUPS = 4
"""Groups of comparable runs that get figures of their own when all runs are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLook:
    """How a report's tables stand in LaTeX, and how its figures look."""

    table: LatexLayout = field(default_factory=LatexLayout)
    figure: Look = field(default_factory=Look)


def report_sweep(
    out: Path,
    name: str,
    *,
    refresh_seconds: int | None = None,
    source: Source | None = None,
    look: ReportLook | None = None,
) -> Written:
    """Write `<out>/sweeps/<name>/report/` and return what is in it.

    Args:
        refresh_seconds: let a browser load the page again so often, for a sweep that still runs.
        source: where rows and curves come from; None: the records under `out`.

    Raises:
        RequestError: no sweep of that name has run there, or its state cannot be read.
    """
    source = source or Records(out)
    sweep = source.sweep(name)
    _remember_search_values(sweep)
    look = look or ReportLook()
    choose_look(look.figure)
    page = ReportWriter(sweep.directory / source.report, look.table)
    page.written.lacks += _lacks(sweep)
    answer = answer_of(sweep)
    page.written.answer = None if answer is None else answer.text
    answered = "" if answer is None else _answer_body(page, sweep, answer)
    verdict, others = page.tables(specs_for(sweep), sweep.rows)
    figures = list(_sweep_figures(page, sweep, source))
    head = (
        f'<p class="over">{escape(sweep.name)}</p><h1>{prose(sweep.question or sweep.name)}</h1>'
        f'<p class="expect"><b>Expected:</b> {prose(sweep.expect or "nothing was stated")}</p>'
        f"{_found(answer)}"
        f'<p class="faint">{escape(status_line(sweep.state, sweep.rows))}</p>'
    )
    lacks = bullet_list(page.written.lacks, "What these records lack")
    sections = [
        Section(key="answer", title="The answer", body=answered),
        Section(key="lacks", title="What to know", body=lacks),
        Section(key="verdict", title="Confirmation: fresh seeds", body=verdict),
        *figures,
        _law(page, sweep),
        Section(key="tables", title="Tables", body=others),
        *_answers(sweep.rows_of(Role.confirmation) or sweep.rows, sweep.objectives, source),
        _cost(page, sweep),
        page.runs_section(sweep.rows, list(sweep.objectives), out),
        _predicted(page, sweep.rows),
        Section(key="provenance", title="Provenance", body=provenance_list(sweep.rows)),
        Section(key="reproduce", title="Reproduce", body=reproduction(sweep)),
    ]
    page.write(
        document(title=sweep.name, head=head, sections=sections, refresh_seconds=refresh_seconds)
    )
    page.write_paper(sweep.question or sweep.name, f"{sweep.question} {sweep.expect}")
    return page.written


def _found(answer: Answer | None) -> str:
    if answer is None:
        return '<p class="found"><b>Found:</b> nothing is confirmed yet.</p>'
    outcome = answer.expectation
    said = "" if outcome is None else f" <b>The expectation is {outcome.value}.</b>"
    if len(answer.sentences) < MANY_SENTENCES:
        return f'<p class="found"><b>Found:</b> {prose(" ".join(answer.sentences))}{said}</p>'
    listed = "".join(f"<li>{prose(sentence)}</li>" for sentence in answer.sentences)
    return f'<div class="found"><p><b>Found:</b>{said}</p><ul>{listed}</ul></div>'


def _answer_body(page: ReportWriter, sweep: SweepData, answer: Answer) -> str:
    """Return the one figure and the one table that show the answer; nothing where no contrast was named."""
    found = answer.answered
    if found is None:
        quality = next((metric for metric in sweep.objectives if metric.startswith("eval/")), None)
        if quality is None or len(sweep.objectives) < 2:
            return ""
        around = [*sweep.rows_of(Role.confirmation), *sweep.rows_of(Role.probe)]
        return page.figures(
            [lambda width: quality_against_memory(around, metric=quality, width=width)],
            prefix="answer_",
        )
    figure = page.figures([lambda width: contrast_intervals(found, width=width)], prefix="")
    table = page.table(
        contrasts_table(found, f"{sweep.question or sweep.name} Contrasts on fresh seeds.")
    )
    return figure + _published_body(page, sweep, found) + table


def _published_body(page: ReportWriter, sweep: SweepData, found: Answered) -> str:
    """Return what is published beside what was found; nothing where the question names nothing published."""
    placed = ordering(sweep, found)
    if placed is None:
        return ""
    page.written.ordering = placed.sentence
    title = f"{sweep.question or sweep.name} Whether the published ordering appears."
    spec = published_spec(sweep, found)
    values, _ = page.tables([] if spec is None else [spec], sweep.rows)
    said = f'<p class="found"><b>Published:</b> {prose(placed.sentence)}</p>'
    return said + page.table(ordering_table(placed, title)) + values


def report_runs(
    out: Path, source: Source | None = None, *, look: ReportLook | None = None
) -> Written:
    """Write `<out>/report/` about all runs under `<out>/runs`, or all that another source has.

    Runs on different models, data or evaluations never share a figure.

    Raises:
        RequestError: there is no record; the message says where it looked.
    """
    source, look = source or Records(out), look or ReportLook()
    choose_look(look.figure)
    rows, problems = source.runs()
    page = ReportWriter(out / source.report, look.table)
    page.written.lacks += problems + _failures(rows)
    sections = []
    groups = sorted(_comparable(rows), key=lambda group: -len(group[1]))
    for number, (label, group) in enumerate(groups[:MAX_GROUPS], start=1):
        metrics = _measured(group)
        if not metrics:
            continue
        draws = [*quality_figures(group, metrics), *cost_figures(group, metrics[0])]
        draws += configuration_figures(group)
        draws += _curve_draws(page, source, group, metrics[0])
        prefix = f"group{number}_" if len(groups) > 1 else ""
        table, more = page.tables([_spec_of_runs(group, f"{prefix}runs", label, metrics)], group)
        body = table + more + page.figures(draws, prefix=prefix)
        sections.append(Section(key=f"figures{number}", title=label, body=body))
    for label, group in groups[MAX_GROUPS:]:
        page.written.lacks.append(f"no figures of the {len(group)} runs with {label}")
    head = (
        f'<p class="over">all runs</p><h1>{len(rows)} runs under {escape(str(out / "runs"))}</h1>'
        f"{bullet_list(page.written.lacks, 'What these records lack')}"
    )
    sections += [
        *_answers(rows, _measured(rows), source),
        page.runs_section(rows, _measured(rows), out),
        _predicted(page, rows),
        Section(key="provenance", title="Provenance", body=provenance_list(rows)),
    ]
    page.write(document(title=f"{len(rows)} runs", head=head, sections=sections))
    return page.written


def _sweep_figures(page: ReportWriter, sweep: SweepData, source: Source) -> Iterator[Section]:
    """Yield the figures of the confirmation, of the cost, and of the search, apart."""
    probes = sweep.rows_of(Role.probe)
    confirmed, searched = sweep.rows_of(Role.confirmation), sweep.rows_of(Role.search)
    objectives = list(sweep.objectives)
    quality = next((metric for metric in objectives if metric.startswith("eval/")), None)
    if confirmed:
        metrics = _measured(confirmed, objectives)
        body = page.figures(quality_figures([*confirmed, *probes], metrics), prefix="")
        yield Section(key="figures", title="Figures of the confirmation", body=body)
    if searched:
        metrics = _measured(searched, objectives)
        draws = [*quality_figures([*searched, *probes], metrics), *_search_draws(page, sweep)]
        body = page.figures(draws, prefix="search_" if confirmed else "")
        note = (
            "<p>Trials of the search chose what was confirmed; their numbers are not results.</p>"
        )
        transfers = (sweep.asked.get("search") or {}).get("transfer") not in (None, "none")
        is_grid = (
            sweep.method == "grid" and not transfers
        )  # else levels met unlike others: a surrogate tells them apart
        effects = effects_table(searched, quality) if is_grid and quality is not None else None
        body += "" if effects is None else page.table(effects)
        yield Section(key="search", title="The search", body=note + body)
    results = confirmed or searched
    if results and quality is not None:
        draws = [*cost_figures([*results, *probes], quality)]
        draws += configuration_figures([*(searched or results), *probes])
        draws += _curve_draws(page, source, results, quality)
        body = page.figures(draws, prefix="")
        yield Section(key="cost", title="Memory and learning curves", body=body)


def _law(page: ReportWriter, sweep: SweepData) -> Section:
    """Return how the best learning rate moves with the rank, where the search has tried several of both."""
    laws = laws_of(sweep)
    if not laws:
        return Section(key="rate_law", title="Learning rate and rank", body="")
    asked = sweep.question or sweep.name
    page.written.laws = law_sentences(laws)
    body = bullet_list(page.written.laws, "What the search's best rates say")
    body += page.figures([lambda width: best_rate_over_rank(laws, width=width)], prefix="")
    body += page.table(law_table(laws, f"{asked} The best rate by rank."))
    savings = savings_of(sweep)
    if savings:
        metric = next(iter(sweep.objectives))
        body += page.table(saving_table(savings, metric, f"{asked} What transferring rates saves."))
    return Section(key="rate_law", title="Learning rate and rank", body=body)


def _cost(page: ReportWriter, sweep: SweepData) -> Section:
    """Return what the question cost."""
    table = cost_table(sweep.rows, len(sweep.state.get("devices") or ()))
    body = "" if table is None else page.table(table)
    return Section(key="question_cost", title="What it cost", body=body)


def _predicted(page: ReportWriter, rows: Sequence[Row]) -> Section:
    """Return what the planner had predicted, beside what was measured."""
    table = calibration_table(rows)
    if table is None:
        return Section(key="predicted", title="Predicted memory", body="")
    body = page.figures([lambda width: predicted_against_measured(rows, width=width)], prefix="")
    return Section(key="predicted", title="Predicted memory", body=body + page.table(table))


def _search_draws(page: ReportWriter, sweep: SweepData) -> Iterator[Draw]:
    for metric in sweep.objectives:
        trials = trial_points(sweep.state, metric)
        yield lambda width, trials=trials, metric=metric: parallel_coordinates(
            trials, metric=metric, width=width
        )
    if (
        sweep.method == "grid"
    ):  # every level met every other equally often: effects are in the tables
        return
    for metric in sweep.objectives:
        trials = trial_points(sweep.state, metric)
        yield lambda width, trials=trials, metric=metric: dependence_panels(
            trials, metric=metric, width=width
        )
    from analysis.statistics import importance

    try:
        shares = importance(sweep.storage_url, sweep.name)
    except ValueError as error:
        page.written.lacks.append(f"no importance: {error}")
    else:
        yield lambda width: importance_bars(shares, width=width)


def _curve_draws(
    page: ReportWriter, source: Source, rows: Sequence[Row], objective: str
) -> list[Draw]:
    run_ids = [*runs_with_curves(rows, objective), *runs_with_series(rows, objective)]
    histories = source.histories(run_ids, (*CURVES, *STEP_SERIES))
    damaged = sum(history.num_damaged_lines for history in histories.values())
    if damaged:
        page.written.lacks.append(f"{damaged} torn lines in metrics.jsonl were left out")
    return list(curve_figures(rows, histories, objective))


def _answers(rows: Sequence[Row], objectives: Iterable[str], source: Source) -> Iterator[Section]:
    """Yield what the best cells that were asked to generate have answered, a column for each of a few."""
    objective = next((metric for metric in objectives if metric.startswith("eval/")), "eval/loss")
    asked = [
        row
        for row in runs_of(rows)
        if row.get("after.eval/exact_match") is not None or row.get("data.answers") is not None
    ]
    cells = best_first(cells_of(asked), objective)
    answered = [(cell, source.samples(cell.rows[0]["run_id"])) for cell in cells[:MAX_ANSWERING]]
    answered = [(cell, samples) for cell, samples in answered if samples]
    if not answered:
        return
    factors = varying_factors([cell.rows[0] for cell, _ in answered])
    labels = [
        ", ".join(setting_text(factor, cell) for factor in factors) or "after training"
        for cell, _ in answered
    ]
    runs = ", ".join(cell.rows[0]["run_id"] for cell, _ in answered)
    note = (
        f"<p>{len(answered[0][1])} prompts, a seed each of the {len(answered)} best cells; bold where an "
        "answer equals its reference.</p>" + folded("the runs", f"<p>{escape(runs)}</p>")
    )
    table = answers_table(labels, [samples for _, samples in answered])
    yield Section(key="answers", title="Answers", body=note + table)


def _lacks(sweep: SweepData) -> list[str]:
    """Say what a sweep does not have, a sentence each."""
    state, found = sweep.state, []
    told = sum(trial["status"] != "running" for trial in state["trials"])
    if state["status"] != "finished":
        found.append(
            f"state.json says {state['status']}: {told} of {state['trials_requested']} trials have ended"
        )
    if not sweep.rows_of(Role.confirmation):
        found.append("no confirmation: what stands below are the search's own numbers, not results")
    if not sweep.rows:
        found.append("no run has a record yet")
    is_over = state["status"] == "finished"
    counted = [row for row in sweep.rows if not (is_over and row["status"] is RunStatus.pruned)]
    return found + edge_notes(sweep) + _failures(counted) + sweep.problems


def _failures(rows: Iterable[Row]) -> list[str]:
    count: dict[RunStatus, int] = {}
    for row in rows:
        count[row["status"]] = count.get(row["status"], 0) + 1
    return [
        f"{count[status]} {'run' if count[status] == 1 else 'runs'} with status "
        + status.value.replace("_", " ")
        for status in RunStatus
        if status is not RunStatus.completed and status in count
    ]


def _remember_search_values(sweep: SweepData) -> None:
    """Write into a confirmation's rows what the search saw of their cell: it chooses, they are shown."""
    first = next(iter(sweep.objectives), None)
    values = {t["number"]: t["values"] for t in sweep.state["trials"] if t["values"] is not None}
    for row in sweep.rows_of(Role.confirmation):
        if first is not None and row["trial"] in values:
            row[SEARCH_VALUE] = float(values[row["trial"]][0])


def _measured(rows: Sequence[Row], wanted: Sequence[str] = ("eval/loss",)) -> list[str]:
    """Return the wanted metrics of quality that completed runs have, with the task's own score."""
    completed = [row for row in runs_of(rows) if row["status"] is RunStatus.completed]
    there = [
        metric
        for metric in METRICS
        if any(counts(row, metric) and value_of(row, metric) is not None for row in completed)
    ]
    kept = [metric for metric in wanted if metric in there and metric.startswith("eval/")]
    score = next((metric for metric in SCORES if metric in there), None)
    return kept if score is None or score in kept else [*kept, score]


def _spec_of_runs(rows: Sequence[Row], name: str, title: str, metrics: Sequence[str]) -> Spec:
    """Return the table of runs that no sweep asked for: a line for each configuration."""
    runs = runs_of(rows)
    keys = [
        "quant" if factor.name == "format" else key
        for factor in varying_factors(runs)
        for key in factor.keys
        if factor.name == "format" or len({repr(row.get(key)) for row in runs}) > 1
    ]
    costs = ("adapter/trainable_params", "memory/peak_bytes", "throughput/step_ms")
    columns = tuple(dict.fromkeys((*metrics, *task_columns(runs), *costs)))
    return Spec(
        name=name,
        title=title,
        rows=tuple(dict.fromkeys(keys)) or ("model.name",),
        columns=columns,
        limit=MAX_LINES,
    )


def _comparable(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Split rows into groups of one model, data, evaluation and role, each with what sets it apart."""
    apart = [
        factor
        for factor in varying_factors(rows)
        if factor.name.partition(".")[0] in ("model", "data", "eval")
    ]
    groups: dict[tuple[str, ...], list[Row]] = {}
    labels: dict[tuple[str, ...], str] = {}
    for row in rows:
        values = [printed(factor.value(row)) for factor in apart]
        key = (row.get("role") or "", *values)
        groups.setdefault(key, []).append(row)
        words = [f"{f.name}={value}" for f, value in zip(apart, values, strict=True)]
        labels[key] = ", ".join([*([key[0]] if key[0] else []), *words]) or "All runs"
    return [(labels[key], group) for key, group in groups.items()]
