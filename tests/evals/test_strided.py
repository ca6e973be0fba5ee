"""Strided windows against a plain loop over the same tokens, one window at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from harness.config.schema import DataConfig, DataForm, EvalConfig, Split
from harness.data.example import Example
from harness.data.prepare import prepare_data
from harness.data.rows import NO_LOSS
from harness.evals.evaluate import evaluate_model
from harness.evals.strided import strided_rows

STORY = (
    "Once upon a time there was a little cat. She liked to run in the park with her friend Tim. "
)


def by_hand(model, ids: list[int], window: int, stride: int) -> tuple[float, int]:
    """Score as transformers' guide does: targets that an earlier window had are masked."""
    total, count, end_before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        row = torch.tensor([ids[begin:end]])
        new = end - end_before if begin else end - 1
        logits = model(row).logits[0, -new - 1 : -1].float()
        total += float(F.cross_entropy(logits, row[0, -new:], reduction="sum"))
        count += new
        end_before = end
        if end == len(ids):
            return total, count
    raise AssertionError("the last window ends the text")


@pytest.mark.parametrize(("window", "stride"), [(64, 63), (64, 16), (512, 100)])
def test_every_token_is_scored_once_with_the_context_that_the_stride_leaves(
    model, tokenizer, tmp_path, window, stride
):
    file = tmp_path / "stories.txt"
    file.write_text("\n\n".join([STORY * 3, STORY, STORY * 2]))
    other = tmp_path / "train.txt"
    other.write_text("\n\n".join(f"A dog had {number} bones." for number in range(9)))
    data = DataConfig(
        form=DataForm.text,
        path=str(other),
        test_path=str(file),
        validation_rows=1,
        test_rows=3,
        max_length=window,
    )
    config = EvalConfig(split=Split.test, stride=stride, generate=False)
    prepared = prepare_data(data, tokenizer, "stories", tmp_path / "cache")
    results = evaluate_model(model, tokenizer, prepared, config, data)

    text = file.read_text().replace(" \n", "\n").strip()
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        total, count = by_hand(model, ids, window, stride)
    assert count == len(ids) - 1
    assert results["eval/loss"].value == pytest.approx(total / count, rel=1e-5)
    assert results["eval/bits_per_byte"].value == pytest.approx(
        total / math.log(2) / len(text.encode()), rel=0.01
    )


def test_pieces_of_one_document_are_joined_as_they_were(tokenizer):
    whole = [Example(text=STORY * 2)]
    pieces = [Example(text=STORY, complete=False), Example(text=STORY)]
    assert torch.equal(
        strided_rows(whole, tokenizer, 32, 16).input_ids_NT,
        strided_rows(pieces, tokenizer, 32, 16).input_ids_NT,
    )


@pytest.mark.parametrize(("window", "stride"), [(8, 7), (8, 3), (8, 1), (16, 5)])
def test_windows_end_with_the_text_and_score_what_no_earlier_one_has(tokenizer, window, stride):
    for characters in (1, 5, 9, 20, 23, 41, 60, 90):
        text = STORY[:characters]
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        rows = strided_rows([Example(text=text)], tokenizer, window, stride)
        begins = [0]
        while begins[-1] + window < len(ids):
            begins.append(begins[-1] + stride)
        assert len(rows) == len(begins)
        scored = 1
        for row, begin in enumerate(begins):
            part = ids[begin : begin + window]
            assert rows.lengths_N[row] == len(part)
            assert rows.source_N[row] == row
            padding = window - len(part)
            assert rows.input_ids_NT[row].tolist() == part + [0] * padding
            after = [
                token if begin + place >= scored else NO_LOSS
                for place, token in enumerate(part)
                if place
            ]
            assert rows.targets_NT[row].tolist() == after + [NO_LOSS] * (padding + 1)
            scored = begin + len(part)
        assert scored == len(ids)
