"""Packing: nothing lost, nothing too long, close to the fewest rows."""

import random
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.packing import pack


def _fewest(lengths: list[int], row_length: int) -> int:
    """The optimum, by next-fit over every order: some order fills rows as the best packing does."""
    best = len(lengths)
    for order in permutations(lengths):
        rows, room = 1, row_length
        for length in order:
            if length > room:
                rows, room = rows + 1, row_length
            room -= length
        best = min(best, rows)
    return best


@pytest.mark.parametrize("seed", range(10))
def test_small_cases_are_near_the_optimum(seed):
    draws = random.Random(seed)
    lengths = [draws.randint(1, 10) for _ in range(7)]
    assert len(pack(lengths, 10)) <= 11 / 9 * _fewest(lengths, 10) + 6 / 9


def test_every_sequence_stands_in_one_row_that_holds_it():
    draws = random.Random(0)
    lengths = [draws.randint(1, 128) for _ in range(3000)]
    rows = pack(lengths, 128)
    assert sorted(index for row in rows for index in row) == list(range(3000))
    assert all(sum(lengths[index] for index in row) <= 128 for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert rows == sorted(rows)
    assert len(rows) <= 1.02 * sum(lengths) / 128  # uniform lengths pack almost without gaps


@given(lengths=st.lists(st.integers(1, 64), max_size=80), room=st.integers(64, 200))
def test_whatever_the_lengths_nothing_is_lost_and_nothing_too_long(lengths, room):
    rows = pack(lengths, room)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert all(used <= room for used in filled)
    # Of two rows that could be one, the later would have been put into the earlier.
    assert all(a + b > room for a, b in combinations(sorted(filled)[:2], 2))


def test_a_hand_packed_case():
    assert pack([4, 8, 1, 4, 2, 1], 10) == [[0, 2, 3, 5], [1, 4]]
    assert pack([5, 5, 5], 5) == [[0], [1], [2]]
    assert pack([], 5) == []
