"""Published files are read whole, by the options that are made for them."""

import json
from pathlib import Path

import pytest

from harness.config.compose import compose_run
from harness.config.schema import DataConfig, DataForm
from harness.data.check import check_data
from harness.data.example import pair
from harness.data.files import read_file
from harness.data.records import RecordForm
from harness.data.sources import read_splits
from harness.evals.choices import ChoiceForm, read_choices


@pytest.mark.parametrize(
    ("option", "file", "rows"),
    [
        ("alpaca", "instruct/alpaca_2k_seed0.jsonl", 2000),
        ("qa", "instruct/gsm8k_train1000_seed0.jsonl", 1000),
        ("comments", "instruct/shawgpt_qlora_comments.jsonl", 59),
        ("text", "eval/tinystories_sample_2MiB.txt", 2317),
    ],
)
def test_an_option_reads_the_file_of_its_kind(
    published: Path, option: str, file: str, rows: int
) -> None:
    config = compose_run([f"data={option}", f"data.path={published / file}"]).data
    check_data(config)
    assert read_splits(config).report.rows_read == rows


def test_alpaca_beside_its_evaluation_rows(published: Path) -> None:
    path = published / "instruct" / "alpaca_2k_seed0.jsonl"
    config = DataConfig(
        path=str(path),
        validation_path=str(published / "instruct" / "alpaca_eval500_seed0.jsonl"),
        prompt_column="instruction",
        input_column="input",
        response_column="output",
    )
    splits = read_splits(config)
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    expected = {pair(row["instruction"], row["output"], row["input"]) for row in raw}
    assert set(splits.train) | set(splits.test) == expected
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1800, 200, 200)
    assert not expected & set(splits.validation)


def test_every_document_of_the_texts_is_found(published: Path) -> None:
    form = RecordForm.of(DataConfig(form=DataForm.text))
    stories = published / "eval" / "tinystories_sample_2MiB.txt"
    expected = [part.strip() for part in stories.read_text().split("<|endoftext|>")]
    found = read_file(str(stories), form, "data.path").examples
    assert [e.text for e in found] == [part for part in expected if part]
    wikitext = published / "eval" / "wikitext2_test.txt"
    whole = "".join(e.text or "" for e in read_file(str(wikitext), form, "data.path").examples)
    assert "".join(whole.split()) == "".join(wikitext.read_text().split())


def test_mmlu_and_arc(published: Path) -> None:
    mmlu = read_choices(str(published / "eval" / "mmlu_test_10perSubject_seed0.jsonl"))
    arc = read_choices(str(published / "eval" / "ai2_arc_ARC_Easy_validation.jsonl"))
    assert (len(mmlu), {q.form for q in mmlu}) == (570, {ChoiceForm.mmlu})
    assert len({q.subject for q in mmlu}) == 57
    assert (len(arc), {q.form for q in arc}) == (570, {ChoiceForm.arc})
    assert arc[0].choices[arc[0].answer] == "cellular telephone"
