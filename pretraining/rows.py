"""Packing whole documents into rows of tokens. Shapes: R rows, T tokens of a row."""

import enum
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.embedded.corpus import Document
from harness.embedded.tokenizer import EOS_ID, PAD_ID

ROW_TOKENS = 128
_POOL_DOCUMENTS = 64
_ENCODE_AT_ONCE = 128


class TokenKind(enum.IntEnum):
    """What a token is for, so that losses can be reported apart."""

    UNSCORED = 0  # Padding, and BOS, which follows nothing of its own document.
    PROMPT = 1
    RESPONSE = 2
    STORY = 3


class PackedRows(NamedTuple):
    """Rows of whole documents, all [R, T] int64.

    Token ids, their `TokenKind`, and the index in its row of the document that a token is of; the
    padding at a row's end counts as one more document.
    """

    tokens_RT: Tensor
    kinds_RT: Tensor
    documents_RT: Tensor

    def rows(self, chosen: slice) -> "PackedRows":
        """Some of the rows."""
        return PackedRows(*(tensor[chosen] for tensor in self))

    def attention_mask(self) -> Tensor:
        """What to add to attention scores so that a token sees its own document alone: [R, 1, T, T].

        Zero or the least float32, in the form that transformers takes as a ready-made mask.
        """
        same_RTT = self.documents_RT[:, :, None] == self.documents_RT[:, None, :]
        blocked_RTT = ~same_RTT.tril()
        mask_RTT = torch.zeros(blocked_RTT.shape).masked_fill_(
            blocked_RTT, torch.finfo(torch.float32).min
        )
        return mask_RTT[:, None]


def _encoded(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[TokenKind]]]:
    """Each document as BOS, its tokens, EOS, and the kind of every token."""
    newline_id = tokenizer.encode("\n", add_special_tokens=False)[0]
    while True:
        batch = [next(documents) for _ in range(_ENCODE_AT_ONCE)]
        encoded = tokenizer([document.text for document in batch])["input_ids"]
        for document, ids in zip(batch, encoded, strict=True):
            ids = [*ids, EOS_ID]
            if document.prompt is None:
                yield ids, [TokenKind.UNSCORED] + [TokenKind.STORY] * (len(ids) - 1)
                continue
            prompt_length = ids.index(newline_id) + 1  # Prompts hold no newline of their own.
            response_length = len(ids) - prompt_length
            kinds = [TokenKind.UNSCORED] + [TokenKind.PROMPT] * (prompt_length - 1)
            yield ids, kinds + [TokenKind.RESPONSE] * response_length


def pack(
    documents: Iterator[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_rows: int,
    row_tokens: int,
) -> PackedRows:
    """Fill `num_rows` rows of `row_tokens` tokens with whole documents; pad what is left.

    A row takes, in turn, the oldest of 64 waiting documents that still fits. No document is cut.
    `documents` must be endless.
    """
    source = _encoded(documents, tokenizer)
    pool = [next(source) for _ in range(_POOL_DOCUMENTS)]
    tokens_RT = torch.full((num_rows, row_tokens), PAD_ID, dtype=torch.int64)
    kinds_RT = torch.full_like(tokens_RT, TokenKind.UNSCORED)
    documents_RT = torch.zeros_like(tokens_RT)
    for row in range(num_rows):
        start = 0
        while True:
            room = row_tokens - start
            chosen = next((i for i, (ids, _) in enumerate(pool) if len(ids) <= room), None)
            if chosen is None:
                break
            ids, kinds = pool.pop(chosen)
            pool.append(next(source))
            end = start + len(ids)
            tokens_RT[row, start:end] = torch.tensor(ids)
            kinds_RT[row, start:end] = torch.tensor(kinds)
            documents_RT[row, end:] += 1
            start = end
    return PackedRows(tokens_RT, kinds_RT, documents_RT)
