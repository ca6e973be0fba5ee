"""Some rows as a model will be trained on them: which tokens carry loss, and what was cut off."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness.config.schema import DataConfig, Split
from harness.data.example import Example
from harness.data.prepare import PreparedData
from harness.data.rows import NO_LOSS, TokenRows
from harness.data.templates import piece_ids, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_CUT = 200
"""Characters that are shown of what was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Neighbouring tokens of one row that all carry loss, or none of which does."""

    text: str
    """Decoded with special tokens."""
    carries_loss: bool
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row of a split."""

    row: int
    """Its place in the split, from 0."""
    example: int
    """The place of its example in the split, from 0: in the order of the source."""
    stretches: tuple[Stretch, ...]
    cut_tokens: int
    """Tokens of its example that `max_length` has cut off."""
    cut_text: str
    """The beginning of what was cut off."""

    @property
    def tokens(self) -> int:
        """Positions of the row that are not padding."""
        return sum(each.tokens for each in self.stretches)

    @property
    def loss_tokens(self) -> int:
        """Tokens that the model learns to predict."""
        return sum(each.tokens for each in self.stretches if each.carries_loss)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {**asdict(self), "tokens": self.tokens, "loss_tokens": self.loss_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of the rows of a split, without padding."""

    shortest: int
    median: float
    ninth_tenth: int
    """Nine of ten rows have at most so many."""
    longest: int


def lengths(rows: TokenRows) -> Lengths | None:
    """Return how long the rows of a split are; None where it has none."""
    if not len(rows):
        return None
    found = sorted(rows.lengths_N.tolist())
    return Lengths(
        shortest=found[0],
        median=statistics.median(found),
        ninth_tenth=found[-(-9 * len(found) // 10) - 1],
        longest=found[-1],
    )


def shown_rows(
    data: PreparedData,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    count: int,
) -> list[ShownRow]:
    """Return the first row of a split, the longest, and others between them in length; one example each.

    `data` was prepared without packing.
    """
    rows, examples = data.rows(split), data.splits.of(split)
    assert rows.segments_NT is None, "a packed row has more than one example"
    return [_shown(rows, row, examples, config, tokenizer) for row in _chosen(rows, count)]


def _chosen(rows: TokenRows, count: int) -> list[int]:
    """Return the first row, and then rows from the longest down, evenly spread over their lengths."""
    by_length = sorted(range(1, len(rows)), key=lambda row: -int(rows.lengths_N[row]))
    others = min(count - 1, len(by_length))
    return [0, *(by_length[index * len(by_length) // others] for index in range(others))][:count]


def _shown(
    rows: TokenRows,
    row: int,
    examples: Sequence[Example],
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
) -> ShownRow:
    length, example = int(rows.lengths_N[row]), int(rows.source_N[row])
    ids = rows.input_ids_NT[row, :length].tolist()
    targets = rows.targets_NT[row, :length].tolist()
    cut: list[int] = []
    if examples[example].has_prompt:  # a plain text goes on in the next row
        pieces = render(examples[example], config, tokenizer)
        whole = [t for piece in piece_ids([p.text for p in pieces], tokenizer) for t in piece]
        cut = whole[length:]
    cut_text = _decoded(cut, tokenizer)
    return ShownRow(
        row=row,
        example=example,
        stretches=tuple(_stretches(ids, targets, tokenizer)),
        cut_tokens=len(cut),
        cut_text=cut_text[:_MOST_CUT] + ("…" if len(cut_text) > _MOST_CUT else ""),
    )


def _stretches(
    ids: list[int], targets: list[int], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[Stretch]:
    """Yield the stretches; a token carries loss where the position before it has to predict it."""
    learned = [False, *(target != NO_LOSS for target in targets[:-1])]
    for carries_loss, group in groupby(zip(learned, ids, strict=True), key=lambda each: each[0]):
        tokens = [token for _, token in group]
        yield Stretch(
            text=_decoded(tokens, tokenizer), carries_loss=carries_loss, tokens=len(tokens)
        )


def _decoded(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
