"""Held-out text as the field scores it: documents joined to one text, read in overlapping windows.

Shape suffixes: N windows, T positions.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.data.rows import NO_LOSS, TokenRows
from harness.data.templates import piece_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.example import Example

BETWEEN_DOCUMENTS = "\n\n"


def strided_rows(
    examples: Sequence["Example"],
    tokenizer: "PreTrainedTokenizerBase",
    window: int,
    stride: int,
) -> TokenRows:
    """Return windows of `window` tokens, `stride` apart, in which only tokens not yet scored carry loss.

    The documents are joined by blank lines and tokenized once, with BOS in front where the model has one, as
    in transformers' guide to the perplexity of fixed-length models: every token is scored once, all but the
    first window's with at least `window - stride` tokens before it.
    """
    text = "".join(
        example.text + (BETWEEN_DOCUMENTS if example.complete else "") for example in examples
    ).removesuffix(BETWEEN_DOCUMENTS)
    (ids,) = piece_ids([text], tokenizer)
    bos = tokenizer.bos_token_id
    ids = [bos, *ids] if isinstance(bos, int) else ids
    starts = range(0, max(1, len(ids) - window + stride), stride)
    ids_NT = torch.zeros(len(starts), window, dtype=torch.int32)
    targets_NT = torch.full((len(starts), window), NO_LOSS, dtype=torch.int32)
    lengths, scored = [], 1  # the first token is predicted by nothing
    for row, start in enumerate(starts):
        part = torch.tensor(ids[start : start + window], dtype=torch.int32)
        ids_NT[row, : len(part)] = part
        first = scored - start
        targets_NT[row, first - 1 : len(part) - 1] = part[first:]
        scored = start + len(part)
        lengths.append(len(part))
    return TokenRows(
        input_ids_NT=ids_NT,
        targets_NT=targets_NT,
        segments_NT=None,
        lengths_N=torch.tensor(lengths, dtype=torch.int32),
        source_N=torch.arange(len(starts), dtype=torch.int32),
    )
