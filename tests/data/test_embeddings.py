"""A token without an embedding is refused by its text and number: the tokenizer's own, and those of rows."""

import copy
from dataclasses import replace

import pytest

from harness.config.schema import DataConfig
from harness.data.embeddings import check_special_tokens, check_tokens
from harness.data.prepare import PreparedData, prepare_data
from harness.errors import DataError


@pytest.mark.parametrize("name", ["bos", "eos", "pad"])
def test_start_end_and_padding_need_an_embedding_each(spm_tokenizer, name) -> None:
    tokenizer = copy.deepcopy(spm_tokenizer)
    setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(40))
    check_special_tokens("m", tokenizer, 41)
    with pytest.raises(DataError, match=rf"m has embeddings for 40 tokens, .* {name} token .* 40;"):
        check_special_tokens("m", tokenizer, 40)


def test_a_tokenizer_without_a_start_needs_none(byte_tokenizer) -> None:
    assert byte_tokenizer.bos_token_id is None
    last = byte_tokenizer.eos_token_id
    check_special_tokens("m", byte_tokenizer, last + 1)
    with pytest.raises(DataError, match=rf"embeddings for {last} tokens, .* is number {last};"):
        check_special_tokens("m", byte_tokenizer, last)


@pytest.fixture
def data(tmp_path, write_jsonl, byte_tokenizer) -> PreparedData:
    path = write_jsonl([{"prompt": f"{n} a", "response": "b" * (n % 5 + 1)} for n in range(12)])
    config = DataConfig(path=path, validation_rows=2, test_rows=0)
    return prepare_data(config, byte_tokenizer, "tokenizer", tmp_path / "cache")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_largest_token_of_every_split_needs_an_embedding(byte_tokenizer, data, split) -> None:
    largest = max(int(rows.input_ids_NT.max()) for rows in (data.train, data.validation))
    check_tokens("m", byte_tokenizer, largest + 1, data)
    changed = getattr(data, split)
    ids = changed.input_ids_NT.clone()
    ids[-1, 0] = largest + 7
    beyond = replace(data, **{split: replace(changed, input_ids_NT=ids)})
    check_tokens("m", byte_tokenizer, largest + 8, beyond)
    words = rf"for {largest + 7} tokens, and the {split} rows have .* number {largest + 7};"
    with pytest.raises(DataError, match=words):
        check_tokens("m", byte_tokenizer, largest + 7, beyond)
