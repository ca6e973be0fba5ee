"""The comparison with other tools: pairs are judged as neighbours, and unlike work is never compared."""

import math

import pytest
import torch
import torch.nn.functional as F

from bench.peers.ratios import SAME_LOSS, agreement, is_as_good, ratio_of
from bench.peers.rows import labels_of
from harness.data.rows import NO_LOSS, TokenRows


def test_a_slow_stretch_that_falls_on_both_neighbours_leaves_the_ratio():
    ratio = ratio_of([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert (ratio.low, ratio.median, ratio.high, ratio.pairs) == (2.0, 2.0, 2.0, 3)


def test_pairs_must_be_complete():
    with pytest.raises(ValueError, match="shorter"):
        ratio_of([1.0, 2.0], [1.0])


def test_a_curve_of_means_is_compared_with_the_means_of_our_steps():
    ours = [4.0, 2.0, 1.0, 1.0]
    same = agreement(ours, 0.5, {"2": 3.0, "4": 1.0}, 0.5)
    assert same.curve_difference == 0
    assert same.is_same
    other = agreement(ours, 0.5, {"2": 3.0, "4": 1.0 + 2 * SAME_LOSS}, 0.5)
    assert not other.is_same


def test_a_loss_on_held_out_rows_may_differ_by_how_batches_are_averaged_and_no_more():
    curve = {"1": 1.0}
    assert agreement([1.0], 2.0, curve, 2.01).is_same
    assert not agreement([1.0], 2.0, curve, 2.1).is_same


@pytest.mark.parametrize("curve", [{"1": math.nan, "2": 1.0}, {"1": 1.0, "2": math.nan}])
def test_a_nan_anywhere_is_not_the_same_work(curve: dict[str, float]):
    assert not agreement([1.0, 1.0], 1.0, curve, 1.0).is_same


def test_a_cell_is_as_good_where_fresh_seeds_do_not_say_otherwise():
    assert is_as_good([1.0, 1.1, 0.9], [1.0, 1.1, 0.9])
    assert is_as_good([1.3, 0.8, 1.0], [1.0, 1.1, 0.9])  # 0.03 higher, with an error of 0.17
    assert not is_as_good([1.3, 1.4, 1.2], [1.0, 1.1, 0.9])


def test_labels_give_transformers_the_loss_of_our_targets():
    from transformers.loss.loss_utils import ForCausalLMLoss

    generator = torch.Generator().manual_seed(0)
    ids_NT = torch.randint(0, 11, (3, 7), generator=generator)
    targets_NT = torch.cat([ids_NT[:, 1:], torch.full((3, 1), NO_LOSS)], dim=1)
    targets_NT[:, :2] = NO_LOSS
    rows = TokenRows(
        input_ids_NT=ids_NT.int(),
        targets_NT=targets_NT.int(),
        segments_NT=None,
        lengths_N=torch.full((3,), 7),
        source_N=torch.arange(3),
    )
    logits_NTV = torch.randn(3, 7, 11, generator=generator)
    ours = F.cross_entropy(logits_NTV.flatten(0, 1), targets_NT.flatten())
    theirs = ForCausalLMLoss(logits_NTV, labels_of(rows).long(), vocab_size=11)
    assert torch.equal(ours, theirs)
