"""Whether a model has an embedding for every token that its tokenizer gives."""

from typing import TYPE_CHECKING, Any

from harness.config.schema import Split
from harness.data.prepare import PreparedData
from harness.data.tokenize import padding_id
from harness.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADVICE = (
    "give the tokenizer that the model came with, or a checkpoint whose embeddings were resized"
)


def check_special_tokens(
    model: str, tokenizer: "PreTrainedTokenizerBase", num_embeddings: int
) -> None:
    """Refuse a tokenizer whose start, end or padding token the model has no embedding for."""
    named: dict[str, Any] = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": padding_id(tokenizer),
    }
    for name, token in named.items():
        if isinstance(token, int) and token >= num_embeddings:
            raise DataError(
                f"model={model} has embeddings for {num_embeddings} tokens, and its tokenizer's {name} token "
                f"{tokenizer.convert_ids_to_tokens(token)!r} is number {token}; {_ADVICE}"
            )


def check_tokens(
    model: str, tokenizer: "PreTrainedTokenizerBase", num_embeddings: int, data: PreparedData
) -> None:
    """Refuse rows with a token, of the template or added to the tokenizer, without an embedding."""
    splits = {Split.train: data.train, Split.validation: data.validation, Split.test: data.test}
    for split, rows in splits.items():
        if not len(rows):
            continue
        largest = int(rows.input_ids_NT.max())
        if largest >= num_embeddings:
            raise DataError(
                f"model={model} has embeddings for {num_embeddings} tokens, and the {split.value} rows have "
                f"the token {tokenizer.convert_ids_to_tokens(largest)!r}, number {largest}; {_ADVICE}, or "
                "use a data.template without it"
            )
