"""The rows of a run as a data set that others load: a JSONL file for each split, and a card."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import DataConfig, DataForm, Split
from harness.data.example import Example, Role
from harness.export.card import ROWS_MADE_HERE, bullets, front_matter, table
from harness.records.redact import redact
from harness.records.run_directory import write_text

if TYPE_CHECKING:
    from harness.data.prepare import PreparedData
    from harness.data.preview import Lengths

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_COLUMNS = {
    "prompt": "what the model is given",
    "input": "the second part of what it is given; empty: none",
    "response": "what it learns to answer",
    "system": "a system message of the row's own",
    "messages": "the conversation; an answer with weight 0 is not learned",
    "tools": "the tools that the assistant may call",
    "text": "plain text",
    "rendered": "the row with template and special tokens, as the model of the run sees it before it is cut",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a data set is made from."""

    name: str
    config: DataConfig
    model: str
    """Whose template and tokenizer rendered the rows."""
    data: "PreparedData"
    rendered: Mapping[Split, Sequence[str]]
    lengths: Mapping[Split, "Lengths | None"]
    notes: Sequence[str]
    license_: str | None


def write_data(folder: Path, written: Written) -> list[str]:
    """Write the files of every split that has rows, and README.md; return their names."""
    splits = {split: examples for split, examples in _splits(written) if examples}
    columns: dict[str, None] = {}
    for split, examples in splits.items():
        rows = [_row(example, written.config) for example in examples]
        for row, rendered in zip(rows, written.rendered[split], strict=True):
            row["rendered"] = rendered
        columns |= {name: None for row in rows for name in row}
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "data").mkdir(exist_ok=True)
        write_text(folder / _file(split), lines)
    write_text(folder / "README.md", _card(written, list(splits), list(columns)))
    return [_file(split) for split in splits] + ["README.md"]


def _splits(written: Written) -> Iterator[tuple[Split, tuple[Example, ...]]]:
    splits = written.data.splits
    yield Split.train, splits.train
    yield Split.validation, splits.validation
    yield Split.test, splits.test


def _file(split: Split) -> str:
    return f"data/{split.value}.jsonl"


def _row(example: Example, config: DataConfig) -> dict[str, Any]:
    """Return an example under the columns' usual names, as `harness run` reads it back."""
    if not example.turns:
        return {"text": example.text}
    row: dict[str, Any] = {}
    if config.form is DataForm.messages:
        row["messages"] = [
            turn.message() | ({} if turn.carries_loss else {"weight": 0}) for turn in example.turns
        ]
    else:
        first, *_ = example.turns
        if first.role is Role.system:
            row["system"] = first.text
        row["prompt"] = example.turns[-2].text
        if config.input_column is not None:
            row["input"] = example.input
        row["response"] = example.response
    if example.tools:
        row["tools"] = json.loads(example.tools)
    return row


# The card ----------------------------------------------------------------------------------------


def _card(written: Written, splits: Sequence[Split], columns: Sequence[str]) -> str:
    parts = [
        _front_matter(written, splits),
        f"# {written.name}",
        f"{ROWS_MADE_HERE} `{written.model}` on: read, divided and rendered as a run has them, with no row "
        "in two splits.",
        "## Rows",
        table(
            ("split", "rows", "tokens", "that carry loss", "longest row", "cut"),
            _split_lines(written, splits),
        ),
        "## Columns",
        table(("column", "what"), ((name, _COLUMNS[name]) for name in columns)),
        "## Where they come from",
        table(("fact", "value"), _fact_lines(written)),
        *(["## Notes", *bullets(written.notes)] if written.notes else []),
        "## Use",
        _use(written, splits),
    ]
    return redact("\n\n".join(parts) + "\n")


def _front_matter(written: Written, splits: Sequence[Split]) -> str:
    reports = written.data.report.splits
    count = sum(reports[split].examples for split in splits)
    size = next((name for limit, name in _SIZES.items() if count < limit), "n>1M")
    files = [{"split": split.value, "path": _file(split)} for split in splits]
    tree = {
        "license": written.license_ or "unknown",
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": ["qlora"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return front_matter(tree)


def _split_lines(written: Written, splits: Sequence[Split]) -> Iterator[Sequence[str]]:
    for split in splits:
        report, lengths = written.data.report.splits[split], written.lengths[split]
        longest = "—" if lengths is None else f"{lengths.longest:,}"
        numbers = (report.examples, report.tokens, report.loss_tokens)
        yield split.value, *(f"{number:,}" for number in numbers), longest, f"{report.cut:,}"


def _fact_lines(written: Written) -> Iterator[Sequence[str]]:
    config, report = written.config, written.data.report
    yield "source", report.source.source
    yield "rows read", f"{report.source.rows_read:,}, {report.source.rows_empty:,} of them empty"
    yield "seed of the split", str(config.split_seed)
    yield "template", config.template.value
    yield "system message", config.system or "—"
    yield "loss on", config.loss_on.value
    yield "tokens in a row at most", f"{config.max_length:,}"
    yield "fingerprint", written.data.fingerprint


def _use(written: Written, splits: Sequence[Split]) -> str:
    words = ["harness run", f"data={_GROUPS[written.config.form]}", f"data.path={_file(splits[0])}"]
    if written.config.form is DataForm.pairs and written.config.input_column is not None:
        words.append("data.input_column=input")
    words += [
        f"data.template={written.config.template.value}",
        f"data.max_length={written.config.max_length}",
    ]
    for split in (Split.validation, Split.test):
        if split in splits:
            words.append(f"data.{split.value}_path={_file(split)}")
        rows = written.data.report.splits[split].examples
        words.append(f"data.{split.value}_rows={rows}")  # 0: none are split off
    python = [
        "```python",
        "from datasets import load_dataset",
        "",
        "rows = load_dataset(FOLDER)",
        "```",
    ]
    return "\n".join([*python, "", "```bash", " ".join(words), "```"])


_GROUPS = {DataForm.pairs: "pairs", DataForm.messages: "chat", DataForm.text: "text"}
