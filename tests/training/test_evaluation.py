"""Copies of a base side by side: each row by its own adapter, and no copy waits for another's answers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from harness.config.schema import LoraConfig
from harness.engine.adapter import Adapter
from harness.engine.shared_base import SharedBase
from harness.evals import generation
from harness.evals.copies import Copies
from harness.evals.generation import Decoding, Generated, generate_copies
from harness.evals.token_loss import score_copies
from harness.training import evaluation
from tests.training.conftest import MakeBase, MakeJob

CPU = torch.device("cpu")


def adapters(shared: SharedBase, count: int) -> list[Adapter]:
    """Attach adapters that change what the base says, each in its own way."""
    made = []
    for seed in range(count):
        adapter = shared.attach(LoraConfig(rank=[2, 4][seed % 2], alpha_over_rank=2.0), seed)
        noise = torch.randn(adapter.flat_P.shape, generator=torch.Generator().manual_seed(seed))
        adapter.flat_P.add_(noise, alpha=0.04 * (seed + 1))
        made.append(adapter)
    return made


def copies_of(shared: SharedBase, made: Sequence[Adapter], seen: list[list[int]]) -> Copies:
    """Return the copies, writing down which of them share a batch."""

    def sharing(chosen: Sequence[int], rows: int) -> AbstractContextManager[None]:
        seen.append(list(chosen))
        return shared.side_by_side([made[index] for index in chosen], rows)

    return Copies(len(made), sharing)


def answers(shared: SharedBase, copies: Copies) -> list[Generated]:
    tokenizer = shared.base.tokenizer
    texts = ["Once upon a time", "The dog", "Lily and Tom saw a", "It was", "One day"]
    return generate_copies(
        shared.model,
        tokenizer,
        [tokenizer(text)["input_ids"] for text in texts],
        Decoding(batch_size=3, max_new_tokens=20, extra_stop_ids=range(400, 512)),
        CPU,
        copies,
    )


def test_answers_side_by_side_are_those_alone_and_a_copy_that_has_answered_leaves(
    make_base: MakeBase,
) -> None:
    shared, seen = make_base(), []
    made = adapters(shared, 4)
    together = answers(shared, copies_of(shared, made, seen))
    alone = [answers(shared, copies_of(shared, [adapter], []))[0] for adapter in made]
    assert together == alone
    assert len({tuple(each.num_new_tokens) for each in alone}) > 1
    assert [0, 1, 2, 3] in seen
    assert any(0 < len(chosen) < 4 for chosen in seen)


def test_the_cache_of_keys_and_values_bounds_how_many_decode_together(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, seen = make_base(), []
    made = adapters(shared, 4)
    at_once = answers(shared, copies_of(shared, made, []))
    monkeypatch.setattr(generation, "_CACHE_BYTES", 1)
    assert answers(shared, copies_of(shared, made, seen)) == at_once
    assert all(len(chosen) == 1 for chosen in seen)


def test_losses_side_by_side_are_those_alone_in_batches_no_larger_than_an_uncut_one(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared, seen = make_base(), []
    rows = make_job(shared, "data").data.train
    made = adapters(shared, 4)
    together = score_copies(shared.model, rows, 8, CPU, copies_of(shared, made, seen))
    for adapter, sums in zip(made, together, strict=True):
        (alone,) = score_copies(shared.model, rows, 8, CPU, copies_of(shared, [adapter], []))
        torch.testing.assert_close(sums.loss_sum_N, alone.loss_sum_N, rtol=1e-6, atol=1e-6)
        assert torch.equal(sums.correct_N, alone.correct_N)
        assert torch.equal(sums.tokens_N, alone.tokens_N)
    assert len(rows) % 8 == 4  # two copies of the half batch are as many rows as a whole one
    assert [len(chosen) for chosen in seen] == [1] * 4 * (len(rows) // 8) + [2, 2]


@pytest.mark.parametrize(
    ("error", "most", "tried"),
    [
        (torch.OutOfMemoryError("no room"), 2, [5, 3, 2, 1, 2]),  # the larger half first
        (torch.OutOfMemoryError("no room"), 0, [5, 3, 2, 1, 1, 1, 2, 1, 1]),
        (ValueError("one of them"), 1, [5, 1, 1, 1, 1, 1]),
        (ValueError("one of them"), 5, [5]),
    ],
)
def test_runs_that_cannot_be_evaluated_together_are_in_halves_or_else_one_by_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception, most: int, tried: list[int]
) -> None:
    sizes: list[int] = []

    def evaluate(shared: Any, entries: Sequence[Any], *, loss_only: bool) -> list[Any]:
        sizes.append(len(entries))
        if len(entries) > most:
            raise error
        return [f"results of {entry}" for entry in entries]

    monkeypatch.setattr(evaluation, "_evaluate", evaluate)
    entries: Any = ["a", "b", "c", "d", "e"]
    found = evaluation._outcomes(None, entries, loss_only=True)  # pyright: ignore[reportArgumentType]
    assert sizes == tried
    assert found == [f"results of {each}" if most else error for each in entries]
