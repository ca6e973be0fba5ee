"""`harness report`: tables, figures and one html page from the records of sweeps, or of all runs."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from harness.config.compose import compose_run
from harness.config.schema import TrackerConfig
from harness.errors import RequestError, near_names
from harness.records.redact import message
from harness.sweeping.state import SweepDirectory, SweepStatus, read_state

if TYPE_CHECKING:
    from analysis.page.writer import Written
    from analysis.report import ReportLook
    from analysis.sources import Source

REPORT_HELP = """\
usage: harness report [NAME…] [paths.out=DIRECTORY] [--source records|wandb-offline|wandb] [--watch] [--json]
       harness report NAME --serve [--port 8765] [paths.out=DIRECTORY] [--json]

--source says where rows and curves come from; tables and figures are the same.
  records        the records under paths.out (the default)
  wandb-offline  the .wandb files below paths.out, wherever they lie there
  wandb          the project tracker.project of tracker.entity, by W&B's public API

--serve shows a sweep as it goes on, in a browser on this machine: progress, leaders, curves. There a run or
the sweep is stopped, trials or a value of an axis are added, a run is cloned with changes; each is written
into out/sweeps/NAME/instructions.jsonl and obeyed by whoever drives the sweep, now or when it goes on.
From elsewhere: ssh -L 8765:127.0.0.1:8765 HOST, with --port 8765 there.

table.width=column|text    how wide LaTeX tables may be     table.font=normal|small|footnote|script
figure.style=page|paper|slides                             figure.serif=true
"""

MAX_LACKS = 8
"""Sentences about what is missing that are printed; the page has all of them."""

WATCH_SECONDS = 5.0
"""Pause between two reports of a sweep that runs."""


class SourceName(Enum):
    """Where a report's rows and curves come from."""

    records = "records"
    wandb_offline = "wandb-offline"
    wandb = "wandb"


def report_command(
    words: Sequence[str],
    *,
    watch: bool,
    as_json: bool = False,
    source: SourceName = SourceName.records,
) -> int:
    """Write the report of each named sweep, or of all runs, and print where it is.

    `paths.out=` says where the records are; `table.width=column|text`, `table.font=small|footnote|script` and
    `figure.style=page|paper|slides`, `figure.serif=true` how it looks. With `watch` the reports of running
    sweeps are written again and again until none of them runs. With `as_json` one document at the end: the
    pages, their tables and figures, and what the records do not support.

    Raises:
        RequestError: there is no such sweep, or no record; `watch` without a sweep.
    """
    from analysis.report import report_runs, report_sweep  # matplotlib: 0.4 s

    look, words = _look(words)
    names = list(dict.fromkeys(word for word in words if "=" not in word))
    config = compose_run([word for word in words if "=" in word])
    out = Path(config.paths.out)
    origin = _source(source, out, config.tracker)
    if watch and source is not SourceName.records:
        raise RequestError(f"--watch goes by the records, and --source says {source.value}")
    if not names:
        if watch:
            raise RequestError("harness report --watch needs the name of a sweep")
        written = {"": report_runs(out, origin, look=look)}
        _print(written, as_json)
        return 0
    written = {}
    while names:
        # All are there, or none is written.
        from_records = source is SourceName.records
        running = [name for name in names if from_records and _is_running(out, name)]
        for name in names:
            refresh = round(WATCH_SECONDS) if watch and name in running else None
            written[name] = report_sweep(
                out, name, refresh_seconds=refresh, source=origin, look=look
            )
            if not as_json:
                _print({name: written[name]}, as_json)
        names = running if watch else []  # those that ran before their report was made
        if names:
            time.sleep(WATCH_SECONDS)
    if as_json:
        _print(written, as_json)
    return 0


def serve_command(words: Sequence[str], flags: Mapping[str, str]) -> int:
    """Serve the live page of one sweep until a signal ends it.

    Raises RequestError for what does not go with it.
    """
    others = sorted(set(flags) - {"--serve", "--port", "--json"})
    if "--serve" not in flags or others:
        raise RequestError(
            f"--serve goes with --port and --json only, got {', '.join(others) or '--port alone'}"
        )
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise RequestError(
            f"harness report --serve takes one sweep's name, got {', '.join(names) or 'none'}"
        )
    port = flags.get("--port", "0")
    if not (port.isascii() and port.isdigit() and int(port[:6]) < 65536):
        raise RequestError(
            f"--port {port} is no port: a number from 1 to 65535; left out: a free one"
        )
    out = Path(compose_run([word for word in words if "=" in word]).paths.out)
    from harness.commands.live import serve

    return serve(out, names[0], port=int(port), as_json="--json" in flags)


def _look(words: Sequence[str]) -> "tuple[ReportLook, list[str]]":
    """Return what the words say of the look of tables and figures, and the other words."""
    from analysis.figures.style import FigureStyle, Look
    from analysis.render.latex import FontSize, LatexLayout, TableWidth
    from analysis.report import ReportLook

    choices: dict[str, dict[str, Any]] = {
        "table.width": {each.name: each for each in TableWidth},
        "table.font": {each.name: each for each in FontSize},
        "figure.style": {each.name: each for each in FigureStyle},
        "figure.serif": {"true": True, "false": False},
    }
    chosen, others = dict[str, dict[str, Any]](), []
    for word in words:
        key, equals, value = word.partition("=")
        section, _, name = key.partition(".")
        if not equals or section not in ("table", "figure"):
            others.append(word)
            continue
        if key not in choices:
            raise RequestError(
                f"unknown key {key!r}{near_names(key, choices)}; there are {', '.join(choices)}"
            )
        if value not in choices[key]:
            known = choices[key]
            raise RequestError(f"{word} is none of {', '.join(known)}{near_names(value, known)}")
        chosen.setdefault(section, {})[name] = choices[key][value]
    table, figure = LatexLayout(**chosen.get("table", {})), Look(**chosen.get("figure", {}))
    return ReportLook(table=table, figure=figure), others


def source_of(word: str | None) -> SourceName:
    """Return the source that `--source` names. Raises RequestError for a word that is none."""
    if word is None:
        return SourceName.records
    known = [each.value for each in SourceName]
    if word not in known:
        raise RequestError(
            f"--source takes one of {', '.join(known)}, got {word or 'nothing'}{near_names(word, known)}"
        )
    return SourceName(word)


def _source(name: SourceName, out: Path, tracker: TrackerConfig) -> "Source":
    from analysis.sources import Records
    from analysis.wandb_runs import WandbFiles, WandbProject

    match name:
        case SourceName.records:
            return Records(out)
        case SourceName.wandb_offline:
            return WandbFiles(out)
        case SourceName.wandb:
            entity = [] if tracker.entity is None else [tracker.entity]
            return WandbProject("/".join([*entity, tracker.project]), out)
        case unknown:
            assert_never(unknown)


def _is_running(out: Path, name: str) -> bool:
    return read_state(SweepDirectory(out, name)).status is SweepStatus.running


def _print(written: "Mapping[str, Written]", as_json: bool) -> None:
    if as_json:
        found = [
            {
                "name": name or None,
                "index": str(each.index),
                "tables": each.tables,
                "figures": each.figures,
                "answer": each.answer,
                "ordering": each.ordering,
                "laws": each.laws,
                "lacks": each.lacks,
            }
            for name, each in written.items()
        ]
        print(json.dumps(found))
        return
    for each in written.values():
        if each.answer is not None:
            print(message(f"Found: {each.answer}"))
        if each.ordering is not None:
            print(message(f"Published: {each.ordering}"))
        for law in each.laws:
            print(message(f"Law: {law}"))
        for lack in each.lacks[:MAX_LACKS]:
            print(message(f"harness: {lack}"), file=sys.stderr)
        if (more := len(each.lacks) - MAX_LACKS) > 0:
            print(f"harness: and {more} more; the page lists them", file=sys.stderr)
        counts = f"({len(each.tables)} tables, {len(each.figures)} figures)"
        print(f"{each.index}  {counts}", flush=True)
