"""From examples to tokenized rows of one length. N rows, T positions of a row.

Where a row is longer than `max_length`, a conversation is cut at its end, and a plain text goes on in
further rows, so that none of it is lost. A continued row starts with BOS (where there is one) and the last
token of the row before: every token of the text but the first is predicted exactly once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.config.schema import DataConfig
from harness.data.example import Example
from harness.data.packing import pack
from harness.data.rows import NO_LOSS, TokenRows
from harness.data.templates import Piece, piece_ids, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUND_TO = 8
"""Padded rows are a multiple of this long: matrix products on a GPU want it."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """The tokens of one row before padding; `targets[t]` is the token at t + 1 or NO_LOSS."""

    ids: list[int]
    targets: list[int]
    source: int
    """Index of the example in its split."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """The rows of one split, none longer than `max_length`, and what became of the others."""

    rows: list[EncodedRow]
    num_cut: int
    """Examples whose end was cut off, the dropped ones included."""
    num_dropped: int
    """Examples left out because no position that carries loss was left of them."""
    num_changed: int
    """Examples in whose answers the template dropped or added text."""
    num_continued: int
    """Rows that continue the text of the row before."""


def tokenize(
    examples: Sequence[Example], config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> TokenRows:
    """Return the rows of one split on its own: packed if `data.packing`, else padded to its longest row."""
    encoded = encode(examples, config, tokenizer)
    if config.packing:
        return packed_rows(encoded, config.max_length, padding_id(tokenizer))
    return padded_rows(encoded, padded_length([encoded], config), padding_id(tokenizer))


def encode(
    examples: Sequence[Example], config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> EncodedRows:
    """Render and tokenize all examples of a split in one batched call, and fit them to `max_length`.

    Raises DataError as `harness.data.templates.render` does.
    """
    rendered = [render(example, config, tokenizer) for example in examples]
    tokens = iter(piece_ids([piece.text for pieces in rendered for piece in pieces], tokenizer))
    rows: list[EncodedRow] = []
    num_cut = num_dropped = num_continued = 0
    num_changed = sum(any(piece.is_changed for piece in pieces) for pieces in rendered)
    for source, (example, pieces) in enumerate(zip(examples, rendered, strict=True)):
        ids, targets = _joined(pieces, tokens)
        if not example.has_prompt:
            first_id = ids[0] if ids and ids[0] == tokenizer.bos_token_id else None
            parts = _windows(ids, targets, config.max_length, first_id)
            rows += [EncodedRow(*part, source) for part in parts]
            num_continued += len(parts) - 1
            continue
        num_cut += len(ids) > config.max_length
        ids, targets = _cut(ids, targets, config.max_length)
        if all(target == NO_LOSS for target in targets):
            num_dropped += 1
        else:
            rows.append(EncodedRow(ids, targets, source))
    return EncodedRows(
        rows=rows,
        num_cut=num_cut,
        num_dropped=num_dropped,
        num_changed=num_changed,
        num_continued=num_continued,
    )


def _joined(pieces: list[Piece], tokens: Iterable[list[int]]) -> tuple[list[int], list[int]]:
    """Join the pieces' tokens, taken from `tokens`, into the ids and targets of one row."""
    ids: list[int] = []
    learned: list[int] = []
    for piece, piece_tokens in zip(pieces, tokens, strict=False):
        ids += piece_tokens
        learned += piece_tokens if piece.carries_loss else [NO_LOSS] * len(piece_tokens)
    return ids, [*learned[1:], NO_LOSS]


def _cut(ids: list[int], targets: list[int], length: int) -> tuple[list[int], list[int]]:
    """Keep the first `length` positions; the last of a cut row has nothing left to predict."""
    if len(ids) <= length:
        return ids, targets
    return ids[:length], [*targets[: length - 1], NO_LOSS]


def _windows(
    ids: list[int], targets: list[int], length: int, first_id: int | None
) -> list[tuple[list[int], list[int]]]:
    """Divide a plain text into rows, each after the first overlapping the one before by a token."""
    parts = [_cut(ids, targets, length)]
    head = [] if first_id is None else [first_id]
    start = length - 1
    while start + 1 < len(ids):
        window = _cut(ids[start:], targets[start:], length - len(head))
        parts.append((head + window[0], [NO_LOSS] * len(head) + window[1]))
        start += length - len(head) - 1
    return parts


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the token that fills rows up; no attention and no loss ever reach it."""
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in given if isinstance(token, int)), 0)


def padded_length(splits: Iterable[EncodedRows], config: DataConfig) -> int:
    """Return T: the longest row of all `splits` rounded up to a multiple of 8, at most `max_length`."""
    longest = max((len(row) for split in splits for row in split.rows), default=1)
    return min(config.max_length, -(-longest // _ROUND_TO) * _ROUND_TO)


def padded_rows(encoded: EncodedRows, length: int, padding: int) -> TokenRows:
    """Return one row [T = length] per encoded row, padded at its end."""
    return _laid_out([[row] for row in encoded.rows], length, padding, numbered=False)


def packed_rows(encoded: EncodedRows, length: int, padding: int) -> TokenRows:
    """Return rows of exactly `length`, several encoded rows in each, as segments numbered from 1."""
    groups = pack([len(row) for row in encoded.rows], length)
    members = [[encoded.rows[index] for index in group] for group in groups]
    return _laid_out(members, length, padding, numbered=True)


def _laid_out(
    groups: list[list[EncodedRow]], length: int, padding: int, *, numbered: bool
) -> TokenRows:
    shape = (len(groups), length)
    ids_NT = np.full(shape, padding, dtype=np.int32)
    targets_NT = np.full(shape, NO_LOSS, dtype=np.int32)
    segments_NT = np.zeros(shape if numbered else (0, 0), dtype=np.int32)
    lengths_N = np.zeros(len(groups), dtype=np.int32)
    for index, group in enumerate(groups):
        start = 0
        for segment, row in enumerate(group, 1):
            end = start + len(row)
            ids_NT[index, start:end] = row.ids
            targets_NT[index, start:end] = row.targets
            if numbered:
                segments_NT[index, start:end] = segment
            start = end
        lengths_N[index] = start
    source_N = np.array([group[0].source for group in groups], dtype=np.int32)
    return TokenRows(
        input_ids_NT=torch.from_numpy(ids_NT),
        targets_NT=torch.from_numpy(targets_NT),
        segments_NT=torch.from_numpy(segments_NT) if numbered else None,
        lengths_N=torch.from_numpy(lengths_N),
        source_N=torch.from_numpy(source_N),
    )
