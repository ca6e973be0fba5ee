"""Requests of lm-evaluation-harness as rows, positions and scores, by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")

from harness.data.rows import NO_LOSS
from harness.errors import RequestError
from harness.evals import packed_lm
from harness.evals.packed_lm import PackedLM, _asked, _batch, _of_tokens, _Row

Request = tuple[None, list[int], list[int]]


def rows_of(max_length: int, *requests: Request) -> list[_Row]:
    of_length: Any = SimpleNamespace(max_length=max_length)
    return PackedLM._rows(of_length, requests)


def test_continuations_that_differ_in_their_last_token_share_a_row_and_long_ones_come_first() -> (
    None
):
    rows = rows_of(
        *(8, (None, [5, 6], [7, 8]), (None, [5, 6], [7, 9]), (None, [1], [2])),
        *((None, [5, 6, 7], [4]), (None, [3], [2])),
    )
    assert [(row.ids, row.ends) for row in rows] == [
        ([5, 6, 7], [(0, 2, 8), (1, 2, 9), (3, 1, 4)]),
        ([1], [(2, 1, 2)]),
        ([3], [(4, 1, 2)]),
    ]
    assert [row.scored for row in rows] == [2, 1, 1]


def test_a_row_keeps_its_end_and_a_continuation_fills_the_context_at_most() -> None:
    (row,) = rows_of(4, (None, [1, 2, 3, 4], [5, 6]))
    assert row.ids == [2, 3, 4, 5]
    (whole,) = rows_of(4, (None, [1, 2], [3, 4, 5, 6]))
    assert (whole.ids, whole.scored) == ([2, 3, 4, 5], 4)
    with pytest.raises(
        RequestError, match="a continuation has 5 tokens, and the model's context 4"
    ):
        rows_of(4, (None, [1], [2, 3, 4, 5, 6]))
    with pytest.raises(RequestError, match="a continuation has 0 tokens"):
        rows_of(4, (None, [1], []))


def test_loss_is_on_the_positions_that_are_scored_and_tokens_are_asked_end_after_end() -> None:
    rows = [_Row([5, 6, 7], [(0, 2, 8), (1, 1, 9)]), _Row([1, 2], [(2, 2, 3)])]
    batch = _batch(rows)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [1, 2, 0]]
    assert batch.targets_BT.tolist() == [[NO_LOSS, 7, 8], [2, 3, NO_LOSS]]
    asked = _asked(rows)
    assert asked.position_Q.tolist() == [0, 1, 1, 2, 3]
    assert asked.token_Q.tolist() == [7, 8, 9, 2, 3]
    assert (asked.lengths, asked.one_each) == ([2, 1, 2], False)
    assert _asked(rows[1:]).one_each


@pytest.mark.parametrize("elements", [1, 7, 8, 100])
def test_tokens_are_scored_alike_in_chunks_of_any_size(monkeypatch, elements: int) -> None:
    monkeypatch.setattr(packed_lm, "_CHUNK_ELEMENTS", elements)
    logits_MV = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.5, 0.0], [1.0, 1.0, 4.0]])
    rows = [_Row([5, 6, 7], [(0, 2, 0), (1, 1, 1)]), _Row([1, 2], [(2, 2, 2)])]
    rows[0].ids, rows[1].ids = [0, 1, 2], [0, 1]
    likelihood_Q, greedy_Q = _of_tokens(logits_MV, _asked(rows))
    places, tokens = [0, 1, 1, 2, 3], [2, 0, 1, 1, 2]
    expected = [
        float(logits_MV[p, t]) - math.log(sum(map(math.exp, logits_MV[p].tolist())))
        for p, t in zip(places, tokens, strict=True)
    ]
    assert likelihood_Q.tolist() == pytest.approx(expected, rel=1e-6)
    assert greedy_Q.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(("most", "kept"), [(7, [3, 4, 5]), (9, [5])])
def test_a_prompt_leaves_room_for_the_answer(monkeypatch, most: int, kept: list[int]) -> None:
    given: list[Any] = []

    def generate(model, tokenizer, prompts, decoding, device, copies) -> list[Any]:
        given.append((prompts, decoding.max_new_tokens, decoding.batch_size))
        return [SimpleNamespace(texts=["a. b"]), SimpleNamespace(texts=["c"])]

    monkeypatch.setattr(packed_lm, "generate_copies", generate)
    lm: Any = SimpleNamespace(
        max_length=10,
        batch_size="3",
        tok_batch_encode=lambda texts: (torch.tensor([[1, 2, 3, 4, 5]]), None),
        tokenizer=None,
        device=None,
        _network=None,
        _copies=None,
    )
    assert list(PackedLM._continued(lm, ["x"], most, ["."])) == [("a", "c")]
    assert given == [([kept], most, 3)]
    with pytest.raises(RequestError, match="leave no room for a prompt"):
        list(PackedLM._continued(lm, ["x"], 10, ["."]))
