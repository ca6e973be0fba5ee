"""Loss and token accuracy of a model over tokenized rows.

Shape suffixes: N rows of a set, B rows of a batch, T positions of a row, M positions of a batch that carry
loss, V vocabulary, C clusters.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from harness.data.compact import trimmed
from harness.data.rows import NO_LOSS, Batch, TokenRows
from harness.engine.forward import target_logits
from harness.evals.copies import ALONE, Copies
from harness.evals.result import EvalResult, ratio_result, token_loss_results
from harness.records.scores import RowScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_ELEMENTS = 2**24
"""Logits in float32 at a time, 64 MiB: the rest stays in the model's own type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSums:
    """Sums over the positions of each row that carry loss, on the CPU, in the order of the rows."""

    loss_sum_N: torch.Tensor
    """Cross-entropy in nats, float64."""
    correct_N: torch.Tensor
    """Positions whose most likely token is the right one, int64."""
    tokens_N: torch.Tensor
    """Positions that carry loss, int64."""


def score_rows(model: nn.Module, rows: TokenRows, batch_size: int, device: torch.device) -> RowSums:
    """Score every row; `model` is in evaluation mode."""
    return score_copies(model, rows, batch_size, device, ALONE)[0]


@torch.no_grad()
def score_copies(
    model: nn.Module, rows: TokenRows, batch_size: int, device: torch.device, copies: Copies
) -> list[RowSums]:
    """Score every row with every copy of the model.

    Rows of similar length share a batch, which is cut to the longest of them: padding at the end changes
    no logit before it, and often is most of the positions. Copies share a forward pass as far as it then
    has no more positions than an uncut batch. `no_grad` rather than `inference_mode`: what a model caches
    during an evaluation (quantization state, rotary tables) must stay usable by autograd.
    """
    order_N = torch.argsort(rows.lengths_N, stable=True)
    parts: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in range(copies.count)]
    for chosen_B in order_N.split(batch_size):
        batch = trimmed(rows.batch(chosen_B))
        for some in copies.parts(batch_size * rows.row_length // batch.num_input_tokens):
            for copy, sums in zip(
                some, _sums_of_copies(model, batch, device, copies, some), strict=True
            ):
                parts[copy].append(sums)
    back_N = torch.argsort(order_N)
    columns = (zip(*part, strict=True) for part in parts)
    sums = ([torch.cat(column).cpu()[back_N] for column in of_copy] for of_copy in columns)
    return [
        RowSums(loss_sum_N=loss_sum_N, correct_N=correct_N, tokens_N=tokens_N)
        for loss_sum_N, correct_N, tokens_N in sums
    ]


def _sums_of_copies(
    model: nn.Module, batch: Batch, device: torch.device, copies: Copies, some: Sequence[int]
) -> Iterable[tuple[torch.Tensor, ...]]:
    """Return what `_row_sums` does of one batch for each of some copies."""
    rows = len(batch.input_ids_BT)
    if copies.quick is not None:
        scores = copies.quick.score(some, batch)
        there = batch.to(device)
        return [_row_sums(there, of_copy[0].double(), of_copy[1].long()) for of_copy in scores]
    with copies.sharing(some, rows):
        columns = _score_batch(model, repeated(batch, len(some)).to(device))
    return zip(*(column.split(rows) for column in columns), strict=True)


def bytes_with_loss(rows: TokenRows, tokenizer: "PreTrainedTokenizerBase") -> torch.Tensor:
    """Return the UTF-8 bytes of the text in each row's positions that carry loss, int64.

    By decoding them, so that what a row was cut to counts; special tokens, EOS among them, have none.
    """
    texts = tokenizer.batch_decode(
        [targets_T[targets_T != NO_LOSS].tolist() for targets_T in rows.targets_NT],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return torch.tensor([len(text.encode()) for text in texts], dtype=torch.int64)


def loss_results(
    sums: RowSums, cluster_N: torch.Tensor, bytes_N: torch.Tensor | None = None
) -> dict[str, EvalResult]:
    """Return loss, perplexity, bits per byte (given the bytes) and token accuracy, with clustered errors.

    `cluster_N` numbers what was sampled independently: the rows of one long text are one cluster.
    """
    _, per_cluster = _clusters(cluster_N)
    results = token_loss_results(
        per_cluster(sums.loss_sum_N), per_cluster(sums.correct_N), per_cluster(sums.tokens_N)
    )
    named = {f"eval/{name}": result for name, result in results.items()}
    if bytes_N is not None and int(bytes_N.sum()):
        bits_N = sums.loss_sum_N / math.log(2)
        named["eval/bits_per_byte"] = ratio_result(per_cluster(bits_N), per_cluster(bytes_N))
    return named


def loss_scores(sums: RowSums, cluster_N: torch.Tensor) -> dict[str, RowScores]:
    """Return the sums of loss and of right tokens over each cluster; perplexity follows from them."""
    clusters, per_cluster = _clusters(cluster_N)
    tokens = tuple(per_cluster(sums.tokens_N))
    found = {"eval/loss": sums.loss_sum_N, "eval/token_accuracy": sums.correct_N}
    return {
        name: RowScores(rows=clusters, sums=tuple(per_cluster(values_N)), weights=tokens)
        for name, values_N in found.items()
    }


def summed(values_N: torch.Tensor, weights_N: torch.Tensor, cluster_N: torch.Tensor) -> RowScores:
    """Return a value of each row and its weight, summed over each cluster."""
    clusters, per_cluster = _clusters(cluster_N)
    return RowScores(
        rows=clusters, sums=tuple(per_cluster(values_N)), weights=tuple(per_cluster(weights_N))
    )


def _clusters(cluster_N: torch.Tensor) -> tuple[tuple[int, ...], Callable[[torch.Tensor], list]]:
    """Return the clusters' numbers, and what sums a value of each row over each of them."""
    clusters, index_N = torch.unique(cluster_N.long(), return_inverse=True)

    def per_cluster(values_N: torch.Tensor) -> list:
        return values_N.new_zeros(len(clusters)).index_add(0, index_N, values_N).tolist()

    return tuple(clusters.tolist()), per_cluster


def repeated(batch: Batch, times: int) -> Batch:
    """Return the rows of a batch `times` times, one after the other."""
    if times == 1:
        return batch
    segments_BT = batch.segments_BT
    return Batch.of(
        batch.input_ids_BT.repeat(times, 1),
        batch.targets_BT.repeat(times, 1),
        None if segments_BT is None else segments_BT.repeat(times, 1),
    )


def _score_batch(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sums [B] of loss, correct positions and positions of each row, on the device."""
    logits_MV, targets_M = target_logits(model, batch)
    return _row_sums(batch, *_token_scores(logits_MV, targets_M))


def _row_sums(
    batch: Batch, loss_M: torch.Tensor, correct_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sums [B] of loss, correct positions and positions of each row."""
    positions_M = batch.loss_positions_N

    def per_row(values_M: torch.Tensor) -> torch.Tensor:
        values_BT = values_M.new_zeros(batch.targets_BT.shape)
        values_BT.view(-1)[positions_M] = values_M
        return values_BT.sum(
            dim=1
        )  # a dense sum: its order does not depend on the device's scheduler

    return per_row(loss_M), per_row(correct_M), per_row(torch.ones_like(correct_M))


def _token_scores(
    logits_MV: torch.Tensor, targets_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross-entropy in float32, widened to float64, and whether the top token is right, as int64."""
    chunk = max(1, _CHUNK_ELEMENTS // logits_MV.shape[-1])
    losses, hits = [], []
    for logits, targets in zip(logits_MV.split(chunk), targets_M.split(chunk), strict=True):
        losses.append(F.cross_entropy(logits.float(), targets, reduction="none").double())
        hits.append((logits.argmax(dim=-1) == targets).long())
    return torch.cat(losses), torch.cat(hits)
