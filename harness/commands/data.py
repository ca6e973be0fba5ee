"""`harness data`: what a run would be trained on, row by row, before anything is trained."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from harness.base.quick_imports import quick_imports
from harness.base.source import find_model, model_fingerprint
from harness.commands.export import free_place
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, Split
from harness.errors import RequestError, near_names
from harness.parsing import home_path
from harness.records.redact import printable
from harness.request import check
from harness.sweeping.display import WatchedConsole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.prepare import PreparedData
    from harness.data.preview import Lengths, ShownRow

DATA_HELP = """\
usage: harness data [override…] [--rows 3] [--split train] [--json]
       harness data [override…] --out DIR [--license NAME] [--json]

Rows of a run as its model is trained on them: rendered, tokenized and cut, with the tokens that carry loss
marked; how long the rows of each split are, and what was cut, left out or changed. Trains nothing, loads no
weights, leaves nothing behind. Overrides are those of `harness run`:

  harness data data=chat data.path=rows.jsonl model=DIRECTORY data.template=tokenizer

  --rows N         how many rows to show: the first, the longest, and others between them in length
  --split NAME     train, validation or test
  --json           one JSON document
  --out DIR        write the rows instead: a JSONL file for each split and a card, for `harness push --data`
  --license NAME   the license that the card names; without it the card says unknown
  --config-dir DIR groups and options of your own: DIR/GROUP/OPTION.yaml
"""

_MOST_ROWS = 1000
_OPEN, _CLOSE = "⟦", "⟧"
"""Around the tokens that carry loss, where there are no colours."""


def data_command(
    overrides: Sequence[str],
    *,
    rows: str | None,
    split: str | None,
    as_json: bool,
    out: str | None = None,
    license_: str | None = None,
) -> int:
    """Print rows, lengths and losses of the data that `overrides` describe; return the exit code."""
    if out is not None:
        return _write(overrides, rows or split, home_path(out), license_, as_json=as_json)
    if license_ is not None:
        raise RequestError(f"--license {license_} would be ignored without --out DIR")
    count, part = _count(rows), _split(split)
    config = compose_run(overrides)
    check(config)
    with quick_imports():
        data, shown = _prepared(config, part, count)
        from harness.data.preview import lengths
        from harness.training.launch import data_notes

        found = {each: lengths(_rows_of(data, each)) for each in Split}
        notes = data_notes(data)
    if as_json:
        print(json.dumps(_document(data, shown, found, part, notes), ensure_ascii=False))
        return 0
    _print(data, shown, found, part, notes)
    return 0


def _count(text: str | None) -> int:
    if text is None:
        return 3
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= _MOST_ROWS:
        raise RequestError(f"--rows takes a number from 1 to {_MOST_ROWS}, got {text or 'nothing'}")
    return int(text)


def _split(text: str | None) -> Split:
    known = [each.value for each in Split]
    if text is None:
        return Split.train
    if text not in known:
        raise RequestError(
            f"--split takes one of {', '.join(known)}, got {text or 'nothing'}{near_names(text, known)}"
        )
    return Split(text)


def _prepared(config: RunConfig, split: Split, count: int) -> "tuple[PreparedData, list[ShownRow]]":
    """Return the data of a run, and some rows of it; of packed ones, the examples that are packed."""
    from harness.data.preview import shown_rows

    data, tokenizer = _data_and_tokenizer(config)
    loose = data
    if config.data.packing:
        loose, _ = _data_and_tokenizer(replace(config, data=replace(config.data, packing=False)))
    return data, shown_rows(loose, config.data, tokenizer, split, count)


def _data_and_tokenizer(config: RunConfig) -> "tuple[PreparedData, PreTrainedTokenizerBase]":
    from harness.training.launch import outline_and_tokenizer, prepare

    source = find_model(config.model)
    with tempfile.TemporaryDirectory(prefix="harness-") as memo:
        fingerprint = model_fingerprint(source, Path(memo) / "fingerprints.json", keep=False)
    data = prepare(config, source, fingerprint, keep=False)
    _, tokenizer = outline_and_tokenizer(source, config.model, fingerprint)
    return data, tokenizer


def _write(
    overrides: Sequence[str], shown: str | None, out: Path, license_: str | None, *, as_json: bool
) -> int:
    """Write the rows as a data set in a directory of their own."""
    if shown is not None:
        raise RequestError("--rows and --split say what is shown; --out writes all rows")
    place = free_place(out)
    config = compose_run(overrides)
    check(config)
    with quick_imports():
        from harness.data.preview import lengths
        from harness.data.templates import render
        from harness.export.data_folder import Written, write_data
        from harness.training.launch import data_notes

        data, tokenizer = _data_and_tokenizer(config)
        examples = {each: data.splits.of(each) for each in Split if len(_rows_of(data, each))}
        written = Written(
            name=place.name,
            config=config.data,
            model=config.model.name,
            data=data,
            rendered={
                each: ["".join(p.text for p in render(row, config.data, tokenizer)) for row in rows]
                for each, rows in examples.items()
            },
            lengths={each: lengths(_rows_of(data, each)) for each in Split},
            notes=data_notes(data),
            license_=license_,
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as name:
        made = Path(name) / place.name
        made.mkdir()
        files = write_data(made, written)
        if place.exists():
            place.rename(
                Path(name) / "before"
            )  # goes with the directory, once the new one has its place
        made.rename(place)
    shown_files = [str(place / file) for file in files]
    print(json.dumps({"files": shown_files}) if as_json else printable("\n".join(shown_files)))
    return 0


def _rows_of(data: "PreparedData", split: Split) -> Any:
    return {Split.train: data.train, Split.validation: data.validation, Split.test: data.test}[
        split
    ]


def _document(
    data: "PreparedData",
    shown: "list[ShownRow]",
    found: "dict[Split, Lengths | None]",
    split: Split,
    notes: list[str],
) -> dict[str, Any]:
    return {
        **data.report.as_dict(),
        "lengths": {each.value: asdict(of) if of else None for each, of in found.items()},
        "notes": notes,
        "shown": {"split": split.value, "rows": [row.as_dict() for row in shown]},
    }


def _print(
    data: "PreparedData",
    shown: "list[ShownRow]",
    found: "dict[Split, Lengths | None]",
    split: Split,
    notes: list[str],
) -> None:
    console = WatchedConsole(highlight=False, soft_wrap=True)
    source = data.report.source
    left_out = f", {source.rows_empty} of them empty" if source.rows_empty else ""
    console.print(
        printable(f"{source.source}: {source.rows_read} rows read{left_out}"), markup=False
    )
    console.print(_table(data, found))
    for note in notes:
        console.print(printable(f"note: {note}"), markup=False)
    marked = "green" if console.is_terminal else f"between {_OPEN} and {_CLOSE}"
    console.print(
        f"\n{len(shown)} rows of the {split.value} split; tokens that carry loss are {marked}:"
    )
    for row in shown:
        cut = f", {row.cut_tokens} more cut off" if row.cut_tokens else ""
        console.print(
            Text(
                f"\nrow {row.row}: {row.tokens} tokens, {row.loss_tokens} with loss{cut}",
                style="bold",
            )
        )
        console.print(_text(row, coloured=console.is_terminal))
        if row.cut_tokens:
            console.print(Text(printable(f"cut off: {row.cut_text}"), style="red"))


def _table(data: "PreparedData", found: "dict[Split, Lengths | None]") -> Table:
    """Return a column for each split, and a line for each fact."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    columns: list[list[str]] = []
    for split, report in data.report.splits.items():
        table.add_column(split.value, justify="right")
        of, share = found[split], report.padding_share
        columns.append(
            [
                *map(str, (report.examples, report.rows, report.tokens, report.loss_tokens)),
                "—" if share is None else f"{share:.0%}",
                "—" if of is None else f"{of.shortest} to {of.longest}",
                "—" if of is None else f"{of.median:g}, {of.ninth_tenth}",
                *map(str, (report.cut, report.dropped, report.changed)),
            ]
        )
    facts = (
        "examples",
        "rows",
        "tokens",
        "tokens that carry loss",
        "padding",
        "tokens in a row",
        "median, nine tenths at most",
        f"examples cut at {data.report.max_length}",
        "left out: no loss is left",
        "answers changed by the template",
    )
    for fact, *values in zip(facts, *columns, strict=True):
        table.add_row(fact, *values)
    return table


def _text(row: "ShownRow", *, coloured: bool) -> Text:
    text = Text()
    for each in row.stretches:
        shown = printable(each.text)  # a terminal would obey what a row may hold
        if coloured:
            text.append(shown, style="green" if each.carries_loss else "dim")
        else:
            text.append(f"{_OPEN}{shown}{_CLOSE}" if each.carries_loss else shown)
    return text
