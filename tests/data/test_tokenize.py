"""Tokenized rows: cutting, continuing, padding, and packing that changes no loss."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.config.schema import DataConfig, DataForm, LossOn
from harness.data.example import Example, pair
from harness.data.files import text_examples
from harness.data.rows import NO_LOSS, TokenRows
from harness.data.tokenize import _windows, encode, padded_length, tokenize
from harness.engine.forward import target_logits

TEXT = DataConfig(form=DataForm.text)
PAIRS = [pair(f"Count to {n}.", " ".join(map(str, range(n)))) for n in (3, 30, 1, 12, 5, 20, 2)]


def test_a_text_is_what_the_tokenizer_makes_of_it(spm_tokenizer):
    text = "Once upon a time, there was a girl.\nShe liked it."
    (row,) = encode([Example(text=text)], TEXT, spm_tokenizer).rows
    assert row.ids == [*spm_tokenizer(text)["input_ids"], spm_tokenizer.eos_token_id]
    assert row.targets == [*row.ids[1:], NO_LOSS]


def test_a_prompt_is_what_the_tokenizer_makes_of_it(spm_tokenizer):
    (row,) = encode([pair("Hello there", "Lily")], DataConfig(), spm_tokenizer).rows
    prompt = spm_tokenizer("Hello there\n")["input_ids"]
    response = spm_tokenizer("Lily", add_special_tokens=False)["input_ids"]
    end = [spm_tokenizer.eos_token_id]
    assert row.ids == prompt + response + end
    assert row.targets == [NO_LOSS] * (len(prompt) - 1) + response + end + [NO_LOSS]


@pytest.mark.parametrize("tokenizer_name", ["spm_tokenizer", "byte_tokenizer"])
@pytest.mark.parametrize("max_length", [8, 13, 64, 4096])
def test_a_long_text_goes_on_and_every_token_is_predicted_once(request, tokenizer_name, max_length):
    tokenizer = request.getfixturevalue(tokenizer_name)
    text = " ".join(f"The sky is blue {i}." for i in range(40))
    config = replace(TEXT, max_length=max_length)
    encoded = encode([Example(text=text)], config, tokenizer)
    whole = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    predicted = [t for row in encoded.rows for t in row.targets if t != NO_LOSS]
    assert predicted == whole[1:]
    assert encoded.num_continued == len(encoded.rows) - 1
    assert all(len(row) == max_length for row in encoded.rows[:-1])
    for row in encoded.rows:
        _assert_aligned(row.ids, row.targets)
        if tokenizer.bos_token_id is not None:
            assert row.ids[0] == tokenizer.bos_token_id


def test_the_parts_of_one_long_document_hold_one_end(spm_tokenizer):
    text = "Once upon a time there was a girl. " * 300
    examples = text_examples(text)
    assert len(examples) > 3
    rows = encode(examples, TEXT, spm_tokenizer).rows
    ends = [row.ids.count(spm_tokenizer.eos_token_id) for row in rows]
    assert ends == [0] * (len(rows) - 1) + [1]


def test_long_rows_are_cut_and_rows_without_loss_are_dropped(byte_tokenizer):
    fits, cut, dropped = pair("a", "b"), pair("a", "The sky is blue" * 9), pair("x" * 90, "b")
    encoded = encode([fits, cut, dropped], DataConfig(max_length=16), byte_tokenizer)
    assert (encoded.num_cut, encoded.num_dropped, encoded.num_continued) == (2, 1, 0)
    assert [row.source for row in encoded.rows] == [0, 1]
    whole = encode([cut], DataConfig(max_length=4096), byte_tokenizer).rows[0]
    row = encoded.rows[1]
    assert row.ids == whole.ids[:16]
    assert row.targets == [*whole.targets[:15], NO_LOSS]


def test_padded_rows_hold_each_example_at_the_start(spm_tokenizer):
    rows = tokenize(PAIRS, DataConfig(), spm_tokenizer)
    encoded = encode(PAIRS, DataConfig(), spm_tokenizer).rows
    longest = max(map(len, encoded))
    assert rows.row_length == (longest + 7) // 8 * 8
    assert rows.segments_NT is None
    assert rows.input_ids_NT.dtype == rows.targets_NT.dtype == torch.int32
    for index, row in enumerate(encoded):
        length = len(row)
        assert rows.lengths_N[index] == length
        assert rows.source_N[index] == index
        assert rows.input_ids_NT[index].tolist() == row.ids + [spm_tokenizer.pad_token_id] * (
            rows.row_length - length
        )
        assert rows.targets_NT[index].tolist() == row.targets + [NO_LOSS] * (
            rows.row_length - length
        )


def test_the_row_length_is_common_to_splits_and_never_above_max_length(byte_tokenizer):
    short = encode([pair("a", "b")], DataConfig(), byte_tokenizer)
    long = encode([pair("a", "x" * 97)], DataConfig(), byte_tokenizer)
    assert padded_length([short, long], DataConfig()) == 104
    assert padded_length([short, long], DataConfig(max_length=101)) == 101
    assert padded_length([], DataConfig()) == 8


@pytest.mark.parametrize("loss_on", LossOn)
def test_packed_segments_are_the_examples(spm_tokenizer, loss_on):
    config = DataConfig(packing=True, max_length=200, loss_on=loss_on)
    rows = tokenize(PAIRS, config, spm_tokenizer)
    assert rows.row_length == 200
    assert len(rows) < len(PAIRS)
    found = []
    for index in range(len(rows)):
        found += _segments(rows, index)
    encoded = encode(PAIRS, config, spm_tokenizer).rows
    assert sorted(found) == sorted((row.ids, row.targets) for row in encoded)
    first = [_segments(rows, index)[0] for index in range(len(rows))]
    sources = [encoded[source] for source in rows.source_N.tolist()]
    assert first == [(row.ids, row.targets) for row in sources]


def _segments(rows: TokenRows, index: int) -> list[tuple[list[int], list[int]]]:
    assert rows.segments_NT is not None
    segments = rows.segments_NT[index]
    length = int(rows.lengths_N[index])
    assert (segments[:length] > 0).all()
    assert (segments[length:] == 0).all()
    assert (rows.targets_NT[index, length:] == NO_LOSS).all()
    assert segments[:length].tolist() == sorted(segments[:length].tolist())
    parts = []
    for number in range(1, int(segments.max()) + 1):
        inside = segments == number
        ids = rows.input_ids_NT[index][inside].tolist()
        targets = rows.targets_NT[index][inside].tolist()
        _assert_aligned(ids, targets)
        parts.append((ids, targets))
    return parts


def _assert_aligned(ids: list[int], targets: list[int]) -> None:
    """Each target is the next token of the same example, and the last position has none."""
    assert targets[-1] == NO_LOSS
    assert all(t in (NO_LOSS, i) for i, t in zip(ids[1:], targets[:-1], strict=True))


def test_packing_changes_no_loss_of_a_real_model(pretrained):
    """The summed loss of the embedded model over packed rows is that over padded rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()
    sums = []
    for packing in (False, True):
        config = DataConfig(packing=packing, max_length=200)
        rows = tokenize(PAIRS, config, tokenizer)
        with torch.no_grad():
            logits_NV, targets_N = target_logits(model, rows.batch(slice(None)))
        sums.append(cross_entropy(logits_NV, targets_N, reduction="sum").item())
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)


def test_no_examples_make_no_rows(spm_tokenizer):
    for packing in (False, True):
        rows = tokenize([], DataConfig(packing=packing), spm_tokenizer)
        assert len(rows) == 0


@pytest.mark.parametrize("length", [3, 4, 5, 8])
def test_a_text_that_just_fits_is_one_row_and_a_token_more_a_second(length: int) -> None:
    ids = list(range(length + 1))
    targets = [*ids[1:], NO_LOSS]
    assert _windows(ids[:-1], [*ids[1:-1], NO_LOSS], length, None) == [
        (ids[:-1], [*ids[1:-1], NO_LOSS])
    ]
    one, other = _windows(ids, targets, length, None)
    assert one == (ids[:-1], [*ids[1:-1], NO_LOSS])
    assert other == (ids[-2:], [ids[-1], NO_LOSS])
