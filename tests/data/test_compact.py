"""Folding moves examples into fewer rows and loses none; trimming cuts what no row needs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.compact import (
    MAX_FOLDED_LENGTH,
    folded,
    trimmed,
    useful_lengths,
    without_padding,
)
from harness.data.rows import NO_LOSS, Batch


def padded(lengths: list[int], length: int, first_loss: int = 0) -> Batch:
    """Return rows of distinct tokens; the last position of an example has nothing to predict."""
    ids = torch.zeros(len(lengths), length, dtype=torch.int64)
    targets = torch.full_like(ids, NO_LOSS)
    for row, used in enumerate(lengths):
        ids[row, :used] = 1000 * (row + 1) + torch.arange(used)
        targets[row, first_loss : used - 1] = ids[row, first_loss + 1 : used]
    return Batch.of(ids, targets)


def examples(batch: Batch) -> list[list[tuple[int, int]]]:
    """Return the (token, target) pairs of each example, up to its last target, in no order."""
    found = []
    for row in range(batch.input_ids_BT.shape[0]):
        numbers = (
            [1] if batch.segments_BT is None else range(1, 1 + int(batch.segments_BT[row].max()))
        )
        for number in numbers:
            here = (
                torch.ones_like(batch.input_ids_BT[row], dtype=torch.bool)
                if batch.segments_BT is None
                else batch.segments_BT[row] == number
            )
            pairs = list(
                zip(
                    batch.input_ids_BT[row][here].tolist(),
                    batch.targets_BT[row][here].tolist(),
                    strict=True,
                )
            )
            while len(pairs) > 1 and pairs[-1][1] == NO_LOSS:
                pairs.pop()
            found.append(pairs)
    return sorted(found)


def test_positions_after_the_last_target_are_not_useful() -> None:
    assert useful_lengths(padded([5, 3, 9], 12)).tolist() == [4, 2, 8]
    assert useful_lengths(padded([1], 4)).tolist() == [1]  # carries no loss at all


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=24), first_loss=st.integers(0, 3))
def test_folding_keeps_every_example_whole(lengths: list[int], first_loss: int) -> None:
    batch = padded(lengths, 40, first_loss=first_loss)
    out = folded(batch)
    assert examples(out) == examples(batch)
    assert out.num_loss_tokens == batch.num_loss_tokens
    assert out.num_input_tokens <= batch.num_input_tokens


def test_short_examples_share_rows_of_the_same_length() -> None:
    out = folded(padded([10] * 8, 40))
    assert out.input_ids_BT.shape == (2, 40)
    assert out.segments_BT is not None
    assert out.segments_BT.amax(dim=1).tolist() == [4, 4]


def test_what_saves_little_is_trimmed_only() -> None:
    out = folded(padded([21, 22, 23, 24], 40))
    assert out.segments_BT is None
    assert out.input_ids_BT.shape == (4, 24)


def test_long_rows_are_trimmed_only() -> None:
    length = 2 * MAX_FOLDED_LENGTH
    out = folded(padded([100] * 4, length))
    assert out.segments_BT is None
    assert out.input_ids_BT.shape == (4, 104)


def test_packed_rows_stay_as_they_are() -> None:
    packed = folded(padded([10] * 8, 40))
    assert folded(packed) is packed
    assert trimmed(packed) is packed


def test_examples_that_have_to_lie_apart_keep_a_row_each_and_others_share() -> None:
    batch = padded([22, 3, 4, 5], 40)
    assert without_padding(batch, apart=True).input_ids_BT.shape == (4, 24)
    shared = without_padding(batch, apart=False)
    assert shared.input_ids_BT.shape == (1, 40)
    assert examples(shared) == examples(batch)
