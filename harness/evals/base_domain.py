"""What a base knew before: its loss on text of its own domain, and how much of it a run has forgotten.

Forgetting is here the rise of the cross-entropy on held-out text of what the base was trained on, in bits per
byte and paired by document: before and after training the same ones are read. Others measure it against the
base's own predictions (Kalajdzievski 2024, arXiv 2401.05605) or by tasks of the source (Biderman et al.
2024, arXiv 2405.09673).
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from harness.config.schema import DataConfig, DataForm, EvalConfig
from harness.data.files import FileVersion
from harness.data.rows import TokenRows
from harness.data.tokenize import encode, padded_length, padded_rows, padding_id
from harness.evals.copies import Copies
from harness.evals.domain_text import domain_documents, domain_version
from harness.evals.result import EvalResult, ratio_result
from harness.evals.token_loss import RowSums, bytes_with_loss, loss_results, score_copies, summed
from harness.records.scores import RowScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOSS, BITS = "eval/base_domain_loss", "eval/base_domain_bits_per_byte"
FORGETTING = "eval/forgetting_bits_per_byte"


def score_base_domain(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    config: EvalConfig,
    max_length: int,
    device: torch.device,
    copies: Copies,
) -> list[tuple[dict[str, EvalResult], dict[str, RowScores]]]:
    """Return results and scores by document of every copy; a document goes on in rows of `max_length`."""
    assert config.base_domain is not None
    version = domain_version(config.base_domain)
    rows, bytes_N = _rows(
        config.base_domain, config.base_domain_rows, version, tokenizer, max_length
    )
    sums = score_copies(model, rows, config.batch_size, device, copies)
    return [_found(of_copy, rows, bytes_N) for of_copy in sums]


def forgetting(before: RowScores, after: RowScores) -> tuple[EvalResult, RowScores] | None:
    """Return after - before in bits per byte, with its standard error over documents, and by document.

    None where these are not the same.
    """
    if (before.rows, before.weights) != (after.rows, after.weights):
        return None
    risen = tuple(b - a for a, b in zip(before.sums, after.sums, strict=True))
    scores = RowScores(rows=after.rows, sums=risen, weights=after.weights)
    return ratio_result(risen, after.weights), scores


def _found(
    sums: RowSums, rows: TokenRows, bytes_N: torch.Tensor
) -> tuple[dict[str, EvalResult], dict[str, RowScores]]:
    named = loss_results(sums, rows.source_N, bytes_N)
    results = {LOSS: named["eval/loss"], BITS: named["eval/bits_per_byte"]}
    bits = summed(sums.loss_sum_N / math.log(2), bytes_N, rows.source_N)
    return results, {BITS: bits}


@lru_cache(maxsize=4)
def _rows(
    place: str,
    count: int | None,
    version: FileVersion | None,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> tuple[TokenRows, torch.Tensor]:
    """Return the rows, and the bytes of text that each of them scores."""
    config = DataConfig(form=DataForm.text, max_length=max_length)
    encoded = encode(domain_documents(place, count, version), config, tokenizer)
    rows = padded_rows(encoded, padded_length([encoded], config), padding_id(tokenizer))
    return rows, bytes_with_loss(rows, tokenizer)
