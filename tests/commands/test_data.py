"""`harness data`: what is shown of rows, against what the tokenizer and hand-made rows say."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import dispatch
from harness.config.compose import compose_run
from harness.data.records import RecordForm, example_of
from harness.data.sources import read_splits
from harness.export.data_folder import _row
from tests.random_models import LLAMA, save_random_model
from tests.real_cases import write_rows

ROWS = [
    {"prompt": "one", "response": "eins"},
    {"prompt": "three", "response": "drei und noch viel mehr, was nicht mehr hineingeht"},
    {"prompt": "two", "response": "zwei"},
    {"prompt": "none", "response": ""},
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('#')[0] }};{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Overrides for a tiny model that reads bytes, and three usable rows."""
    model = save_random_model(tmp_path / "m", "llama", **LLAMA)
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    return [
        *(f"model={model}", "data=pairs", f"data.path={path}", "data.max_length=24"),
        *("data.validation_rows=0", "data.test_rows=0", "data.train_rows=3", "eval.split=train"),
    ]


def document(capsys: Any, *words: str) -> dict[str, Any]:
    assert dispatch(["data", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tokens_with_loss_are_those_of_the_answer_and_its_end(words: list[str], capsys: Any):
    found = document(capsys, *words)
    first, longest, _ = found["shown"]["rows"]
    assert [(s["text"], s["carries_loss"]) for s in first["stretches"]] == [
        ("<s>one\n", False),
        ("eins</s>", True),
    ]
    assert (first["tokens"], first["loss_tokens"], first["cut_tokens"]) == (10, 5, 0)
    whole = "<s>three\n" + ROWS[1]["response"] + "</s>"
    shown = "".join(s["text"] for s in longest["stretches"])
    assert len(shown) - len("<s>") + 1 == 24  # bytes, and the start as one token
    assert whole == shown + longest["cut_text"]
    assert longest["cut_tokens"] == len(longest["cut_text"]) - len("</s>") + 1
    assert found["rows_empty"] == 1
    assert found["lengths"]["train"] == {
        "shortest": 10, "median": 10, "ninth_tenth": 24, "longest": 24}  # fmt: skip
    assert found["lengths"]["test"] is None
    assert found["notes"] == ["1 of 3 train examples were cut at max_length"]


def test_what_is_shown_is_what_is_trained_also_where_rows_are_packed(words: list[str], capsys: Any):
    loose = document(capsys, *words)
    packed = document(capsys, *words, "data.packing=true", "data.max_length=64")
    assert packed["splits"]["train"]["rows"] < loose["splits"]["train"]["rows"]
    assert packed["shown"]["rows"][0] == loose["shown"]["rows"][0]


def test_text_shows_marks_cuts_and_what_a_template_changes(
    words: list[str], tmp_path: Path, capsys: Any
):
    (tmp_path / "m" / "chat_template.jinja").write_text(TEMPLATE)
    rows = [{"prompt": f"q{i}", "response": f"a{i}#gone"} for i in range(4)]
    path = write_rows(tmp_path / "hash.jsonl", rows)
    words = [*words, f"data.path={path}", "data.template=tokenizer", "data.max_length=64"]
    words += ["data.train_rows=4"]
    assert dispatch(["data", *words, "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 train examples have answers that the chat template renders" in shown
    assert "<s><user>q0;<assistant>⟦a0;</s>⟧" in shown
    assert "gone" not in shown.partition("rows of the train split")[2]
    assert max(map(len, shown.partition("note:")[0].splitlines())) <= 80


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--rows", "0"], "--rows takes a number"),
        (["--split", "trian"], "near names: train"),
        (["--split", "test"], "the test split of rows.jsonl is empty"),
        (["data.max_length=999"], "has 256 positions"),
    ],
)
def test_what_is_wrong_is_said(given: list[str], says: str, words: list[str], capsys: Any):
    long = [{"prompt": "x" * 400, "response": "y"}] * 3
    if "positions" in says:
        write_rows(Path(words[2].partition("=")[2]), long)
    assert dispatch(["data", *words, *given]) == 2
    assert says in capsys.readouterr().err


def test_nothing_is_left_behind(words: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    document(capsys, *words)
    assert sorted(tmp_path.rglob("*")) == before


# Rows as a data set ---------------------------------------------------------------------------------

CASES = Path(__file__).resolve().parents[1] / "cases"
WITH_INPUT = [
    {"instruction": f"do {i}", "input": "" if i % 2 else f"with {i}", "output": f"done {i}\n\n"}
    for i in range(24)
]


def splits_of(words: list[str]) -> Any:
    return read_splits(compose_run(words).data)


def as_the_card_says(folder: Path) -> list[str]:
    """Return the overrides of the command in a card, its files in the folder."""
    text = (folder / "README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("harness run "))
    return [
        f"{key}={folder / value}" if key.endswith("path") else word
        for word in shlex.split(line)[2:]
        for key, _, value in [word.partition("=")]
    ]


@pytest.mark.parametrize("case", ["weight.jsonl", "alpaca", "text", "task"])
def test_written_rows_are_read_back_as_they_were(case: str, tmp_path: Path):
    match case:
        case "alpaca":
            given = ["data=alpaca", f"data.path={write_rows(tmp_path / 'a.jsonl', WITH_INPUT)}"]
        case "text":
            rows = [{"text": f"story {i} \u2028 goes on\n"} for i in range(16)]
            given = ["data=text", f"data.path={write_rows(tmp_path / 't.jsonl', rows)}"]
        case "task":
            given = ["data=viewer_comments"]
        case _:
            given = ["data=chat", f"data.path={CASES / case}"]
    given += ["data.validation_rows=2", "data.test_rows=1", "data.max_length=200"]
    folder = tmp_path / "out" / "rows"
    assert dispatch(["data", *given, "--out", str(folder)]) == 0
    before, after = splits_of(given), splits_of(as_the_card_says(folder))
    for split in ("train", "validation", "test"):
        assert sorted(map(repr, getattr(after, split))) == sorted(map(repr, getattr(before, split)))


def test_tools_and_their_calls_are_written_as_they_were_read():
    config = compose_run(["data=chat", f"data.path={CASES / 'toolempty.jsonl'}"]).data
    splits = read_splits(config)
    examples = (*splits.train, *splits.validation, *splits.test)
    rows = [json.loads(json.dumps(_row(example, config))) for example in examples]
    assert tuple(example_of(row, RecordForm.of(config), "here") for row in rows) == examples
    assert any("tools" in row for row in rows)


def test_a_card_and_its_files_are_what_datasets_loads(
    words: list[str], tmp_path: Path, capsys: Any
):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "named"
    assert dispatch(["data", *words, "--out", str(folder), "--license", "cc0-1.0", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == [str(folder / "data/train.jsonl"), str(folder / "README.md")]
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"]["response"] == [row["response"] for row in ROWS if row["response"]]
    assert loaded["train"][0]["rendered"] == "<s>one\neins</s>"
    card = (folder / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "| train | 3 | 44 | 27 | 24 | 1 |" in card


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--license", "mit"], "ignored without --out"),
        (["--out", "{here}/rows", "--rows", "3"], "--out writes all rows"),
        (["--out", "{here}"], "no export has made"),
    ],
)
def test_what_cannot_be_written_is_refused(
    given: list[str], says: str, words: list[str], tmp_path: Path, capsys: Any
):
    assert dispatch(["data", *words, *(each.format(here=tmp_path) for each in given)]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()
