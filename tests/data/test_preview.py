"""Which rows are shown of a split, and how long its rows are."""

import numpy as np
import pytest
import torch

from harness.data.preview import Lengths, ShownRow, Stretch, _chosen, lengths
from harness.data.rows import TokenRows


def rows_of(*found: int) -> TokenRows:
    """Return rows of these lengths."""
    ids = torch.zeros(len(found), max(found, default=1), dtype=torch.int32)
    lengths_N = torch.tensor(found, dtype=torch.int32)
    return TokenRows(
        input_ids_NT=ids,
        targets_NT=ids,
        segments_NT=None,
        lengths_N=lengths_N,
        source_N=torch.arange(len(found)),
    )


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 20, 25, 101])
def test_nine_of_ten_rows_have_at_most_so_many_tokens(count: int) -> None:
    drawn = np.random.default_rng(count).permutation(np.arange(count) * 3 + 1)
    found = lengths(rows_of(*drawn.tolist()))
    assert isinstance(found, Lengths)
    assert (found.shortest, found.longest) == (1, 3 * count - 2)
    assert found.median == np.median(drawn)
    least = min(n for n in drawn if (drawn <= n).sum() >= 0.9 * count)
    assert found.ninth_tenth == least


def test_a_split_without_rows_has_no_lengths() -> None:
    assert lengths(rows_of()) is None


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (1, [0]),
        (2, [0, 2]),  # the longest of the others
        (3, [0, 2, 3]),  # by length 2 4 3 5 1: the first, and the one in the middle
        (6, [0, 2, 4, 3, 5, 1]),
        (9, [0, 2, 4, 3, 5, 1]),
    ],
)
def test_the_first_row_the_longest_and_others_between_them_are_shown(count, chosen) -> None:
    assert _chosen(rows_of(7, 1, 50, 20, 30, 10), count) == chosen


def test_one_row_is_all_there_is() -> None:
    assert _chosen(rows_of(7), 5) == [0]


def test_a_row_counts_its_tokens_and_those_that_are_learned() -> None:
    stretches = (
        Stretch(text="a", carries_loss=False, tokens=5),
        Stretch(text="b", carries_loss=True, tokens=3),
        Stretch(text="c", carries_loss=False, tokens=1),
        Stretch(text="d", carries_loss=True, tokens=4),
    )
    row = ShownRow(row=1, example=2, stretches=stretches, cut_tokens=0, cut_text="")
    assert (row.tokens, row.loss_tokens) == (13, 7)
    tree = row.as_dict()
    assert (tree["tokens"], tree["loss_tokens"], len(tree["stretches"])) == (13, 7, 4)
