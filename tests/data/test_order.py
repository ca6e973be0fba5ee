"""The order of rows: each epoch every row once, resumable from the step alone."""

import hashlib
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.order import batch_rows, ends_epochs, steps_for


@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_each_epoch_sees_every_row_once(num_rows, batch_size, seed):
    steps = [batch_rows(num_rows, batch_size, seed, step) for step in range(2 * num_rows)]
    assert all(len(rows) == batch_size and rows.dtype == torch.int64 for rows in steps)
    epochs = torch.cat(steps).reshape(-1, num_rows)
    assert (epochs.sort(dim=1).values == torch.arange(num_rows)).all()


@given(
    num_rows=st.integers(1, 10_000),
    batch_size=st.integers(1, 512),
    hundredths=st.integers(1, 1000),
)
def test_the_steps_of_epochs_see_so_many_rows_and_one_step_less_does_not(
    num_rows, batch_size, hundredths
):
    steps = steps_for(hundredths / 100, num_rows, batch_size)
    wanted = Fraction(hundredths, 100) * num_rows
    assert steps * batch_size >= wanted
    assert steps == 1 or (steps - 1) * batch_size < wanted


@given(num_rows=st.integers(1, 50), batch_size=st.integers(1, 60), hundredths=st.integers(1, 250))
def test_a_stretch_of_epochs_ends_with_the_first_step_that_has_seen_it(
    num_rows, batch_size, hundredths
):
    """By counting rows one by one: a step in which the end of one or more stretches lies."""
    ends, seen = [], 0
    for step in range(1, 30):
        rows = range(seen + 1, seen + batch_size + 1)
        if any(
            100 * row // (hundredths * num_rows) > 100 * (row - 1) // (hundredths * num_rows)
            for row in rows
        ):
            ends.append(step)
        seen += batch_size
    found = [s for s in range(1, 30) if ends_epochs(s, hundredths / 100, num_rows, batch_size)]
    assert found == ends


def test_a_step_depends_on_nothing_but_its_arguments():
    forward = [batch_rows(100, 16, 1, step) for step in range(20)]
    for step in (19, 3, 11):
        batch_rows(50, 16, 2, step)
        assert torch.equal(batch_rows(100, 16, 1, step), forward[step])


def test_the_order_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    batch_rows(1234, 16, 99, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_seeds_have_different_orders():
    orders = [batch_rows(64, 64, seed, step) for seed in range(4) for step in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) == 16


@pytest.mark.parametrize(
    ("epochs", "num_rows", "batch_size", "steps"),
    [(1, 100, 10, 10), (1, 101, 10, 11), (3, 10, 16, 2), (0.07, 100, 1, 7), (0.001, 10, 16, 1)],
)
def test_steps_for_epochs(epochs, num_rows, batch_size, steps):
    assert steps_for(epochs, num_rows, batch_size) == steps


def test_an_order_is_drawn_from_63_bits_of_a_hash_of_seed_and_epoch():
    """Runs of a version see the rows that they saw."""
    for seed, epoch in ((0, 0), (3, 0), (0, 3), (2**52, 11)):
        digest = hashlib.sha256(f"order/{seed}/{epoch}".encode()).hexdigest()
        generator = torch.Generator().manual_seed(int(digest[:16], 16) // 2)
        expected = torch.randperm(20, generator=generator)
        assert torch.equal(batch_rows(20, 20, seed, epoch), expected)
