"""A reader adds nothing to what a file says, and names file and line of what it cannot read.

Text taken for a missing value: huggingface/datasets#4467, pandas-dev/pandas#24681 and #32084. Text taken for
a number: apache/arrow#46853, wireservice/csvkit#977. Keys that a record lacks, written out as null:
huggingface/datasets#7617.
"""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import DataConfig, DataForm
from harness.data.check import check_data, data_fingerprint
from harness.data.sources import read_splits
from harness.errors import DataError

ODD = ["NA", "null", "None", "nan", "N/A", "1e5", "007", "1.0", "true", "2024-01-01", " x ", "a,b",
       'say "no"', "two\nlines", "1_000", "-", "#c", "\u00e9\U0001f600"]  # fmt: skip
"""Answers that some reader makes something else of."""


def answers(**fields: Any) -> list[str]:
    """Return the responses of all rows as they were read, in the order of the source."""
    config = DataConfig(validation_rows=0, test_rows=0, **fields)
    check_data(config)
    return [example.response for example in read_splits(config).train]


def csv_text(rows: list[list[str]], separator: str = ",", line_end: str = "\r\n") -> str:
    import io

    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, lineterminator=line_end).writerows(rows)
    return out.getvalue()


TABLE = [["prompt", "response"], *([f"q{i}", answer] for i, answer in enumerate(ODD))]
LINES = "".join(
    json.dumps({"prompt": q, "response": a}, ensure_ascii=False) + "\n" for q, a in TABLE[1:]
)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_table(path: Path) -> Path:
    """Write the odd answers in the format that a file's name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        write_parquet(path, [{"prompt": q, "response": a} for q, a in TABLE[1:]])
        return path
    text = {
        "csv": csv_text(TABLE, line_end="\n"),
        "crlf.csv": csv_text(TABLE),
        "bom.csv": "\ufeff" + csv_text(TABLE),
        "tsv": csv_text(TABLE, "\t"),
        "jsonl": LINES,
        "crlf.jsonl": LINES.replace("\n", "\r\n"),
        "json": json.dumps([{"prompt": q, "response": a} for q, a in TABLE[1:]], indent=1),
    }[name.partition(".")[2]]
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


NAMES = ("csv", "crlf.csv", "bom.csv", "tsv", "jsonl", "crlf.jsonl", "json", "parquet")


@pytest.mark.parametrize("kind", [*NAMES, "csv.gz", "jsonl.gz", "json.gz", "tsv.gz"])
def test_answers_are_read_as_they_stand(kind: str, tmp_path: Path):
    assert answers(path=str(write_table(tmp_path / f"x.{kind}"))) == ODD


@pytest.fixture
def hub_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads"
    )
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", tmp_path / "cache" / "extracted")
    directory = tmp_path / "set"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    "name", ["train.csv", "train.tsv", "train.jsonl", "train.json", "train.parquet", "train.csv.gz"]
)
def test_a_directory_that_datasets_can_load_is_read_as_it_stands(name: str, hub_directory: Path):
    write_table(hub_directory / name)
    assert answers(hub=str(hub_directory)) == ODD


def test_parts_of_a_split_are_those_that_datasets_would_take(hub_directory: Path):
    import datasets

    plain = [["prompt", "response"], *([f"q{i}", f"r{i}"] for i in range(17))]  # of one type
    (hub_directory / "train-0.csv").write_text(csv_text(plain[:8]))
    (hub_directory / "train-1.csv").write_text(csv_text([plain[0], *plain[8:]]))
    (hub_directory / "test.csv").write_text(csv_text([plain[0], ["t", "last"]]))
    for split in ("train[:30%]", "train[2:-3]+test", "test"):
        loaded = datasets.load_dataset(str(hub_directory), split=split)
        assert answers(hub=str(hub_directory), hub_split=split) == list(loaded["response"])


def test_the_card_of_a_data_set_is_obeyed_or_refused(hub_directory: Path):
    def write(options: str) -> None:
        (hub_directory / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n{options}---\n"
        )

    (hub_directory / "rows.csv").write_bytes("q;r\u00e9ponse\n".encode("latin-1"))
    write("  sep: ;\n  column_names: [prompt, response]\n  encoding: latin-1\n")
    assert answers(hub=str(hub_directory)) == ["r\u00e9ponse"]
    write("  decimal: ','\n")
    with pytest.raises(DataError, match=r"rows\.csv: the data set's card says decimal=','"):
        answers(hub=str(hub_directory))


def test_a_row_of_a_directory_is_named_by_file_and_line(hub_directory: Path):
    (hub_directory / "train.jsonl").write_text(LINES + '{"prompt": "a", "response": 7}\n')
    with pytest.raises(DataError, match=rf"train\.jsonl:{len(ODD) + 1}: column 'response' must"):
        answers(hub=str(hub_directory))


def test_keys_that_a_call_lacks_are_not_written_out_as_null(tmp_path: Path):
    def row(arguments: dict[str, str]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ]
        }

    rows = [row({"city": "Oslo"}), row({"day": "Monday"})]
    write_parquet(tmp_path / "x.parquet", rows)
    config = DataConfig(
        path=str(tmp_path / "x.parquet"), form=DataForm.messages, validation_rows=0, test_rows=0
    )
    calls = [json.loads(each.turns[-1].further)["tool_calls"] for each in read_splits(config).train]
    assert calls == [each["messages"][1]["tool_calls"] for each in rows]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"prompt,response\na,b\na,b,c\n", r"x\.csv:3: has 3 values for 2 columns"),
        ("x.csv", b'prompt,response\n"a\nb",c\nd,"e\n', r"x\.csv:4: not CSV"),
        ("x.csv", b'prompt,response\n"a"b,c\n', r"x\.csv:2: not CSV"),
        ("x.csv", b"prompt,response,prompt\na,b,c\n", r"x\.csv:1: several columns .* 'prompt'"),
        ("x.csv", b"prompt;response\na;b\n", r"x\.csv:2: column 'prompt' is missing"),
        ("x.csv", "prompt,response\na,\u00e9\n".encode("latin-1"), r"x\.csv:2: not UTF-8"),
        ("x.csv", "prompt,response\na,b\n".encode("utf-16"), r"x\.csv:1: not UTF-8"),
        ("x.csv", b"prompt,response\n", "it is empty"),
        ("x.csv", b"", "it is empty"),
        ("x.parquet", b"PAR1 and nothing more", r"x\.parquet cannot be read as parquet"),
        ("x.jsonl.gz", LINES.encode(), r"x\.jsonl\.gz cannot be decompressed"),
        ("x.jsonl.gz", gzip.compress(LINES.encode())[:-9], r"x\.jsonl\.gz cannot be decompressed"),
        ("x.parquet.gz", b"", "the suffix must be"),
        ("x.jsonl", b'{"prompt": "a", "response": "b"}\n' + b"[" * 100_000, r"x\.jsonl:2: "),
        ("x.json", b"[\n" + b"9" * 5000 + b"]", r"x\.json:2: a number cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_in_file_and_line(
    name: str, content: bytes, says: str, tmp_path: Path
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        answers(path=str(tmp_path / name))


def test_a_long_value_and_an_empty_line_are_no_faults(tmp_path: Path):
    long = "x" * 200_000
    (tmp_path / "x.csv").write_text(csv_text([TABLE[0], [], ["q", long], [], ["q2", "a"]]))
    assert answers(path=str(tmp_path / "x.csv")) == [long, "a"]


def test_the_same_bytes_under_another_suffix_are_other_data(tmp_path: Path):
    content = gzip.compress(b"prompt,response\na,b\n")
    for name in ("x.csv.gz", "x.txt.gz"):
        (tmp_path / name).write_bytes(content)
    prints = {data_fingerprint(DataConfig(path=str(tmp_path / n))) for n in ("x.csv.gz",)}
    text = DataConfig(path=str(tmp_path / "x.txt.gz"), form=DataForm.text)
    assert data_fingerprint(text) not in prints
