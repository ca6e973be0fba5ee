"""Which rows are shown of a split, and how long its rows are."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.schema import DataConfig, DataForm, Split
from harness.data.prepare import PreparedData, prepare_data
from harness.data.preview import Lengths, ShownRow, Stretch, _chosen, lengths, shown_rows
from harness.data.rows import TokenRows


def rows_of(*found: int) -> TokenRows:
    """Return rows of these lengths."""
    ids = torch.zeros(len(found), max(found, default=1), dtype=torch.int32)
    lengths_N = torch.tensor(found, dtype=torch.int32)
    return TokenRows(
        input_ids_NT=ids,
        targets_NT=ids,
        segments_NT=None,
        lengths_N=lengths_N,
        source_N=torch.arange(len(found)),
    )


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 20, 25, 101])
def test_nine_of_ten_rows_have_at_most_so_many_tokens(count: int) -> None:
    drawn = np.random.default_rng(count).permutation(np.arange(count) * 3 + 1)
    found = lengths(rows_of(*drawn.tolist()))
    assert isinstance(found, Lengths)
    assert (found.shortest, found.longest) == (1, 3 * count - 2)
    assert found.median == np.median(drawn)
    least = min(n for n in drawn if (drawn <= n).sum() >= 0.9 * count)
    assert found.ninth_tenth == least


def test_a_split_without_rows_has_no_lengths() -> None:
    assert lengths(rows_of()) is None


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (1, [0]),
        (2, [0, 2]),  # the longest of the others
        (3, [0, 2, 3]),  # by length 2 4 3 5 1: the first, and the one in the middle
        (6, [0, 2, 4, 3, 5, 1]),
        (9, [0, 2, 4, 3, 5, 1]),
    ],
)
def test_the_first_row_the_longest_and_others_between_them_are_shown(count, chosen) -> None:
    assert _chosen(rows_of(7, 1, 50, 20, 30, 10), count) == chosen


def test_one_row_is_all_there_is() -> None:
    assert _chosen(rows_of(7), 5) == [0]


def test_a_row_counts_its_tokens_and_those_that_are_learned() -> None:
    stretches = (
        Stretch(text="a", carries_loss=False, tokens=5),
        Stretch(text="b", carries_loss=True, tokens=3),
        Stretch(text="c", carries_loss=False, tokens=1),
        Stretch(text="d", carries_loss=True, tokens=4),
    )
    row = ShownRow(row=1, example=2, stretches=stretches, cut_tokens=0, cut_text="")
    assert (row.tokens, row.loss_tokens) == (13, 7)
    tree = row.as_dict()
    assert (tree["tokens"], tree["loss_tokens"], len(tree["stretches"])) == (13, 7, 4)


@pytest.fixture
def prepared(tmp_path, spm_tokenizer):
    """Prepare rows of a kind, of at most so many tokens."""

    def prepare(rows: list[dict[str, str]], **settings: Any) -> tuple[PreparedData, DataConfig]:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        config = DataConfig(path=str(path), validation_rows=0, test_rows=0, **settings)
        return prepare_data(config, spm_tokenizer, "fingerprint", tmp_path / "cache"), config

    return prepare


def test_a_row_is_shown_as_its_prompt_and_what_is_learned_and_what_is_cut(
    prepared, spm_tokenizer
) -> None:
    answers = ["Lily", "the sun " * 200, "I do not know " * 4]
    data, config = prepared([{"prompt": "Hi", "response": a} for a in answers], max_length=32)
    prompt = spm_tokenizer("Hi\n")["input_ids"]
    shown = shown_rows(data, config, spm_tokenizer, Split.train, 3)
    assert shown[0].row == 0
    assert [row.tokens for row in shown[1:]] == sorted((r.tokens for r in shown[1:]), reverse=True)
    for row in shown:
        answer = [*spm_tokenizer(answers[row.example], add_special_tokens=False)["input_ids"]]
        whole = [*prompt, *answer, spm_tokenizer.eos_token_id]
        kept, cut = whole[:32], whole[32:]
        decode = lambda ids: spm_tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # noqa: E731
        assert row.stretches == (
            Stretch(text=decode(prompt), carries_loss=False, tokens=len(prompt)),
            Stretch(
                text=decode(kept[len(prompt) :]), carries_loss=True, tokens=len(kept) - len(prompt)
            ),
        )
        assert row.cut_tokens == len(cut)
        text = decode(cut)
        assert row.cut_text == (text[:200] + "…" if len(text) > 200 else text)
    assert {row.cut_text[-1:] for row in shown} > {"", "…"}


def test_a_plain_text_goes_on_and_is_not_cut(prepared, spm_tokenizer) -> None:
    rows = [{"text": "Once upon a time there was a girl. " * 9}, {"text": "The end."}]
    data, config = prepared(rows, max_length=16, form=DataForm.text)
    shown = shown_rows(data, config, spm_tokenizer, Split.train, 99)
    assert len(shown) == len(data.train) > 2
    assert {(row.cut_tokens, row.cut_text) for row in shown} == {(0, "")}
    assert {row.example for row in shown} == {0, 1}
