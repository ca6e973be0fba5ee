"""Folding moves examples into fewer rows and loses none; trimming cuts what no row needs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.compact import (
    MAX_FOLDED_LENGTH,
    example_lengths,
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


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=24))
def test_every_position_knows_its_place_in_the_padded_batch(lengths: list[int]) -> None:
    batch = padded(lengths, 40)
    for out in (folded(batch), trimmed(batch)):
        is_example = out.targets_BT != NO_LOSS
        places = out.places[is_example]
        assert torch.equal(batch.input_ids_BT.view(-1)[places], out.input_ids_BT[is_example])
        assert len(set(places.tolist())) == sum(lengths) - len(lengths)


def test_what_no_example_lies_on_is_padding() -> None:
    """9 + 9 + 1 and 9 of 20 positions in two rows: what is left carries nothing and is of no example."""
    out = folded(padded([10, 10, 10, 2], 20))
    assert out.segments_BT is not None
    assert out.segments_BT.tolist() == [[1] * 9 + [2] * 9 + [3, 0], [1] * 9 + [0] * 11]
    padding = out.segments_BT == 0
    assert set(out.targets_BT[padding].tolist()) == {NO_LOSS}
    assert set(out.input_ids_BT[padding].tolist()) == set(out.places[padding].tolist()) == {0}


@pytest.mark.parametrize(
    ("lengths", "length", "shape"),
    [
        ([9, 17], 40, (2, 16)),  # 8 and 16 positions that are useful
        ([10, 18], 40, (2, 24)),
        ([2, 3], 40, (2, 8)),
        ([2, 20], 20, (2, 20)),  # no longer than it was
        ([1, 1], 40, (2, 8)),
    ],
)
def test_rows_are_cut_at_the_next_eighth_position(
    lengths: list[int], length: int, shape: tuple[int, int]
) -> None:
    batch = padded(lengths, length)
    out = trimmed(batch)
    assert out.input_ids_BT.shape == shape
    assert torch.equal(out.input_ids_BT, batch.input_ids_BT[:, : shape[1]])
    assert torch.equal(out.places, batch.places[:, : shape[1]])


@pytest.mark.parametrize(("full", "is_folded"), [(7, True), (8, True), (9, False)])
def test_folding_has_to_save_a_tenth(full: int, is_folded: bool) -> None:
    """Full rows, and two halves that make one of two: 9 of 10 rows is a tenth less, 10 of 11 is not."""
    out = folded(padded([40] * full + [21] * 2, 40))
    assert out.input_ids_BT.shape == (full + 1 if is_folded else full + 2, 40)
    assert (out.segments_BT is not None) is is_folded


def test_rows_of_the_longest_length_are_still_folded() -> None:
    lengths = [200] * 2 + [10] * 10
    assert folded(padded(lengths, MAX_FOLDED_LENGTH)).segments_BT is not None
    assert folded(padded(lengths, MAX_FOLDED_LENGTH + 1)).segments_BT is None
    assert MAX_FOLDED_LENGTH == 512


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12))
def test_an_examples_length_is_the_same_wherever_it_lies(lengths: list[int]) -> None:
    batch = padded(lengths, 40)
    for out in (batch, trimmed(batch), folded(batch)):
        found = example_lengths(out)
        here = out.targets_BT != NO_LOSS
        rows = out.input_ids_BT[here] // 1000 - 1
        expected = torch.tensor(lengths)[rows] - 1
        assert torch.equal(found[here], expected)
        if out.segments_BT is not None:
            assert set(found[out.segments_BT == 0].tolist()) <= {1}
