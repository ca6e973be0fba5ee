"""Pieces of the page as html: figures, tables with their copies, runs, provenance, how to reproduce."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from analysis.figures.cells import value_of
from analysis.figures.factors import MISSING
from analysis.frame import Row
from analysis.render.html import prose
from analysis.sources import SweepData
from harness.records.answers import SAMPLE_COLUMNS
from harness.records.metrics import METRICS, format_value

PROVENANCE = (
    ("commit", "provenance.commit"),
    ("machine", "provenance.host"),
    ("CPU", "provenance.cpu"),
    ("GPUs", "provenance.gpus"),
    ("packages", "provenance.packages"),
    ("command", "provenance.command"),
    ("model", "provenance.model_fingerprint"),
    ("data", "provenance.data_fingerprint"),
)
MAX_ITEMS = 8
"""Sentences of a note that are shown; the rest unfolds."""
MAX_VALUES = 8
"""Values of one fact of provenance that are listed; the rest is counted."""


def picture(*, title: str, caption: str, stem: str, svg: str, narrow_svg: str | None = None) -> str:
    """Return a figure; `narrow_svg` is shown on a phone in place of a wide one.

    `stem` is the path of its files from the page, without `.pdf` and `.png`.
    """
    image = f'<img src="{_data(svg)}" alt="{escape(f"{title}. {caption}")}">'
    if narrow_svg is not None:
        narrow = f'<source media="(max-width: 40rem)" srcset="{_data(narrow_svg)}">'
        image = f"<picture>{narrow}{image}</picture>"
    kind = ' class="wide"' if narrow_svg is not None else ""
    links = " ".join(f'<a href="{escape(stem)}.{s}">{s}</a>' for s in ("pdf", "png"))
    return (
        f"<figure{kind}><h3>{escape(title[:1].upper() + title[1:])}</h3>{image}"
        f"<figcaption>{prose(caption)} {links}</figcaption></figure>"
    )


def figure_grid(figures: Sequence[str]) -> str:
    """Return figures side by side where there is room."""
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def table_block(*, name: str, html: str, markdown: str, latex: str, directory: str) -> str:
    """Return a table with buttons that copy it as LaTeX and as Markdown, and links to its files."""
    buttons, sources = [], []
    for kind, label, text in (("tex", "LaTeX", latex), ("md", "Markdown", markdown)):
        key = f"{kind}-{name}"
        buttons.append(f'<button data-copy="{escape(key)}">Copy {label}</button>')
        sources.append(
            f'<textarea id="{escape(key)}" hidden readonly aria-label="{label}">{escape(text)}</textarea>'
        )
    links = " ".join(
        f'<a href="{escape(f"{directory}/{name}.{suffix}")}">{suffix}</a>'
        for suffix in ("tex", "md", "csv", "json")
    )
    return (
        f'<div class="scroll">{html}</div>'
        f'<div class="tools">{"".join(buttons)}<span class="faint">{links}</span></div>'
        f"{''.join(sources)}"
    )


def bullet_list(items: Sequence[str], heading: str) -> str:
    """Return a highlighted note, or nothing where there is nothing to say."""
    if not items:
        return ""
    listed = [f"<li>{prose(item)}</li>" for item in items]
    first, rest = "".join(listed[:MAX_ITEMS]), "".join(listed[MAX_ITEMS:])
    more = folded(f"and {len(items) - MAX_ITEMS} more", f"<ul>{rest}</ul>") if rest else ""
    return f'<div class="note"><strong>{escape(heading)}</strong><ul>{first}</ul>{more}</div>'


def folded(summary: str, body: str) -> str:
    """Return what is shown on a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def runs_table(rows: Sequence[Row], metrics: Sequence[str], to_runs: str) -> str:
    """Return every run with its status and a link to its directory.

    `to_runs` is the way from the page's directory to `runs/`.
    """
    labels = [METRICS[metric].label for metric in metrics]
    header = ["run", "role", "seed", "status", *labels, "seconds", "error"]
    numbers = {"seed", "seconds", *labels}
    head = "".join(
        f"<th{' class=number' if name in numbers else ''}>{escape(name)}</th>" for name in header
    )
    lines = []
    for row in rows:
        run_id = escape(row["run_id"])
        link = f'<a href="{escape(quote(to_runs))}/{run_id}/">{run_id}</a>'
        cells = [link, escape(row.get("role") or MISSING), _number(row.get("seed"))]
        cells.append(escape(row["status"].value.replace("_", " ")))
        cells += [_number(_shown(row, metric)) for metric in metrics]
        seconds = row["wall_seconds"]
        cells.append(_number(None if seconds is None else f"{seconds:.1f}"))
        cells.append(escape(row["error"] or ""))
        lines.append("<tr>" + "".join(map(_cell, cells, header)) + "</tr>")
    counted = Counter(row["status"].value.replace("_", " ") for row in rows)
    summary = f"{len(rows)} runs: " + ", ".join(f"{n} {s}" for s, n in counted.most_common())
    table = (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    return folded(summary, table)


def answers_table(labels: Sequence[str], samples: Sequence[Sequence[Sequence[str]]]) -> str:
    """Return generated answers beside their references, before training and after, as they are.

    `samples`: for each of `labels`, rows of prompt, reference, answer before and answer after.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in (*SAMPLE_COLUMNS[:3], *labels))
    after = [{row[0]: row[3] for row in of_cell} for of_cell in samples]
    lines = []
    for prompt, reference, before, _ in samples[0]:
        given = [before, *(of_cell.get(prompt, MISSING) for of_cell in after)]
        cells = "".join(_answer(text, reference) for text in given)
        lines.append(
            f'<tr><td class="text">{escape(prompt)}</td><td class="text">{escape(reference)}</td>{cells}</tr>'
        )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _answer(text: str, reference: str) -> str:
    shown = escape(text)
    shown = f"<b>{shown}</b>" if reference.strip() and text.strip() == reference.strip() else shown
    return f'<td class="text">{shown}</td>'


def provenance_list(rows: Sequence[Row]) -> str:
    """Return what the runs were made with: each fact's values, with how many runs have them."""
    items = []
    for label, key in PROVENANCE:
        counted = Counter(_provenance_text(row, key) for row in rows)
        if set(counted) <= {MISSING}:
            continue
        shown = [
            escape(value) + (f" ({n} runs)" if len(counted) > 1 else "")
            for value, n in counted.most_common(MAX_VALUES)
        ]
        if len(counted) > MAX_VALUES:
            shown.append(f"and {len(counted) - MAX_VALUES} more")
        items.append(f"<dt>{label}</dt><dd>{'<br>'.join(shown)}</dd>")
    times = sorted(row["started_at"] for row in rows)
    if times:
        items.append(f"<dt>started</dt><dd>{escape(times[0])} to {escape(times[-1])}</dd>")
    return f"<dl>{''.join(items)}</dl>" if items else ""


def reproduction(sweep: SweepData) -> str:
    """Return the commands that make the sweep and this page again, with the question's file."""
    asked = _asked_text(sweep)
    file = f"{sweep.name}.yaml"
    out = [override for override in sweep.base if override.startswith("paths.out=")]
    commands = f"harness sweep {file}\n{' '.join(['harness report', sweep.name, *out])}"
    return (
        f'<p>With the question below (<a href="../sweep.yaml">sweep.yaml</a>) as <code>{escape(file)}'
        "</code>, at the commit under Provenance:</p>"
        f"<pre>{escape(commands)}</pre>"
        f'<div class="tools"><button data-copy="sweep-yaml">Copy {escape(file)}</button></div>'
        f"<pre>{escape(asked)}</pre>"
        f'<textarea id="sweep-yaml" hidden readonly aria-label="{escape(file)}">{escape(asked)}</textarea>'
    )


def _asked_text(sweep: SweepData) -> str:
    """Return the question as its file has it, or, where the file is elsewhere, as it was read."""
    try:
        return (sweep.directory / "sweep.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        import yaml

        return yaml.safe_dump(sweep.asked, sort_keys=False, allow_unicode=True)


def status_line(state: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Say how the sweep stands: status, trials, runs, how it searched and for what."""
    trials = Counter(trial["status"] for trial in state["trials"])
    told = ", ".join(f"{n} {status}" for status, n in trials.most_common()) or "none asked"
    objectives = " and ".join(f"{m} ({d})" for m, d in state["objectives"].items())
    return (
        f"{state['status']} · {state['method']} · {state['trials_requested']} trials requested ({told})"
        f" · {len(rows)} runs with a record · {objectives} · updated {state['updated_at']}"
    )


def _shown(row: Row, metric: str) -> str | None:
    value = value_of(row, metric)
    return None if value is None else format_value(metric, value)


def _number(value: Any) -> str:
    return MISSING if value is None else escape(str(value))


def _cell(text: str, column: str) -> str:
    match column:
        case "run" | "role" | "status":
            return f"<td>{text}</td>"
        case "error":
            return f'<td class="text">{text}</td>'
        case _:
            return f'<td class="number">{text}</td>'


def _provenance_text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return MISSING
    if key == "provenance.commit" and row.get("provenance.dirty"):
        return f"{value} with local changes"
    if key == "provenance.gpus" and not value:
        return "none"
    return str(value)


def _data(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
