"""Multiple choice by likelihood: the choice that a model finds most likely after the prompt.

Shape suffixes: N rows (one per choice), T positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.data.rows import NO_LOSS, TokenRows
from harness.data.templates import piece_ids
from harness.evals.choices import Question, ShotQuestion, answers, prompt_text, score_divisors
from harness.evals.context import context_length
from harness.evals.token_loss import score_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTIONS_AT_A_TIME = 512
"""Tokenized together: enough to sort rows by length, and little memory whatever the file's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRow:
    """A prompt with one choice: the positions from `start` on are the choice's."""

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenAnswers:
    """What a model chose."""

    chosen: list[int]
    """Index of the choice with the highest score, for each question."""
    chosen_raw: list[int]
    """Index of the choice with the highest log-likelihood, whatever its length."""
    num_with_fewer_shots: int
    """Questions whose prompt fits the model's context only with fewer shots than asked for."""
    num_cut: int
    """Questions that do not fit even without shots; their start was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One question as rows."""

    rows: list[ChoiceRow]
    fewer_shots: bool
    cut: bool


def choose_answers(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[ShotQuestion],
    *,
    batch_size: int,
    device: torch.device,
) -> ChosenAnswers:
    """Score every choice of every question; `model` is in evaluation mode, batches hold `batch_size` rows.

    The score is the sum of the log-likelihoods of the choice's tokens, over
    `harness.evals.choices.score_divisors`. Of equal scores the first wins.
    """
    context = context_length(model)
    chosen: list[tuple[int, int]] = []
    fewer = cut = 0
    for first in range(0, len(questions), _QUESTIONS_AT_A_TIME):
        part = questions[first : first + _QUESTIONS_AT_A_TIME]
        asked = [_ask(item, tokenizer, context) for item in part]
        rows = [row for item in asked for row in item.rows]
        scores = score_rows(model, choice_rows(rows), batch_size, device)
        likelihoods = iter((-scores.loss_sum_N).tolist())
        chosen += [_best(item.question, likelihoods) for item in part]
        fewer += sum(item.fewer_shots for item in asked)
        cut += sum(item.cut for item in asked)
    return ChosenAnswers(
        chosen=[best for best, _ in chosen],
        chosen_raw=[raw for _, raw in chosen],
        num_with_fewer_shots=fewer,
        num_cut=cut,
    )


def _best(question: Question, likelihoods: Iterator[float]) -> tuple[int, int]:
    """Return the choices with the highest score and with the highest likelihood; takes one of each choice."""
    divisors = score_divisors(question)
    raw = [next(likelihoods) for _ in divisors]
    scores = [value / divisor for value, divisor in zip(raw, divisors, strict=True)]
    return scores.index(max(scores)), raw.index(max(raw))


def _ask(item: ShotQuestion, tokenizer: "PreTrainedTokenizerBase", context: int | None) -> _Asked:
    """Return the rows of one question, with as many of its last shots as fit the context."""
    rows: list[ChoiceRow] = []
    for dropped in range(len(item.shots) + 1):
        rows = _rows(item.question, item.shots[dropped:], tokenizer)
        if context is None or max(len(row.ids) for row in rows) <= context:
            return _Asked(rows=rows, fewer_shots=dropped > 0, cut=False)
    assert context is not None
    return _Asked(
        rows=[_ending(row, context) for row in rows], fewer_shots=bool(item.shots), cut=True
    )


def _ending(row: ChoiceRow, length: int) -> ChoiceRow:
    """Return the last `length` positions of a row, of which the first is context at least."""
    excess = max(0, len(row.ids) - length)
    return ChoiceRow(ids=row.ids[excess:], start=max(1, row.start - excess))


def _rows(
    question: Question, shots: Sequence[Question], tokenizer: "PreTrainedTokenizerBase"
) -> list[ChoiceRow]:
    """Return one row per choice, tokenized as one text: prompt and choice may share a token.

    All choices start behind what the prompt and every row have in common, so that they are compared
    given the same tokens.
    """
    prompt = prompt_text(question, shots)
    texts = [prompt, *(prompt + answer for answer in answers(question))]
    bos = tokenizer.bos_token_id
    head = [bos] if isinstance(bos, int) else []
    encoded = [head + ids for ids in piece_ids(texts, tokenizer)]
    start = max(1, _num_shared(encoded))
    return [ChoiceRow(ids=ids, start=start) for ids in encoded[1:]]


def _num_shared(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with alike."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def choice_rows(rows: Sequence[ChoiceRow]) -> TokenRows:
    """Return rows padded at their end, with loss on each choice's tokens alone."""
    length = max(len(row.ids) for row in rows)
    ids_NT = torch.zeros(len(rows), length, dtype=torch.int32)
    targets_NT = torch.full((len(rows), length), NO_LOSS, dtype=torch.int32)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids, dtype=torch.int32)
        ids_NT[index, : len(ids)] = ids
        targets_NT[index, row.start - 1 : len(ids) - 1] = ids[row.start :]
    return TokenRows(
        input_ids_NT=ids_NT,
        targets_NT=targets_NT,
        segments_NT=None,
        lengths_N=torch.tensor([len(row.ids) for row in rows], dtype=torch.int32),
        source_N=torch.arange(len(rows), dtype=torch.int32),
    )
