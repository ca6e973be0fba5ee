"""A micro-batch without its padding gives the gradient that it has with it, or is left padded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.config.schema import LoraConfig
from harness.data.compact import folded, trimmed, without_padding
from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import FlatGradient
from harness.engine.dropout import dropout_key
from harness.engine.micro_step import Gradient, Work, packed_gradients
from harness.engine.shared_base import SharedBase
from harness.training.slot import Slot
from tests.random_models import save_random_model
from tests.training.conftest import MakeBase, MakeJob
from tests.training.rows import random_rows

CLOSE = 1e-6


def short_rows(count: int = 12) -> Batch:
    """Return padded rows that leave much of their length empty."""
    batch = random_rows(count=count).batch(slice(0, count))
    targets_BT = batch.targets_BT.clone()
    for row in range(count):
        targets_BT[row, 8 + 2 * row :] = NO_LOSS
        targets_BT[row, 2:6] = batch.input_ids_BT[row, 3:7]
    return Batch.of(batch.input_ids_BT, targets_BT)


def gradients(shared: SharedBase, batches: list[Batch]) -> list[Gradient]:
    work = []
    for seed, batch in enumerate(batches):
        adapter = shared.attach(LoraConfig(rank=4, alpha_over_rank=2.0), seed)
        noise = torch.randn(adapter.flat_P.shape, generator=torch.Generator().manual_seed(seed))
        adapter.flat_P.add_(noise, alpha=0.05)
        tokens = batch.num_loss_tokens
        work.append(
            Work(
                adapter=adapter,
                batch=batch,
                loss_tokens=tokens,
                dropout_key=None,
                recompute=False,
            )
        )
    return packed_gradients(shared, work)


def assert_same(one: Gradient, other: Gradient) -> None:
    torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=CLOSE)
    scale = other.of_adapter.flat_P.abs().max()
    difference = (one.of_adapter.flat_P - other.of_adapter.flat_P).abs().max()
    assert difference <= 10 * CLOSE * scale


@pytest.mark.parametrize("lay_out", [trimmed, folded])
def test_the_gradient_is_that_of_the_padded_rows(lay_out, make_base: MakeBase) -> None:
    batch = short_rows()
    assert lay_out(batch).num_input_tokens < batch.num_input_tokens
    (padded_result,) = gradients(make_base(), [batch])
    (result,) = gradients(make_base(), [lay_out(batch)])
    assert_same(result, padded_result)


def test_eager_attention_keeps_examples_apart_too(make_base: MakeBase) -> None:
    batch = short_rows()
    padded_base, folded_base = make_base(), make_base()
    for shared in (padded_base, folded_base):
        shared.model.set_attn_implementation("eager")
    (padded_result,) = gradients(padded_base, [batch])
    (result,) = gradients(folded_base, [folded(batch)])
    assert_same(result, padded_result)


def test_folded_trimmed_and_padded_batches_share_a_pass(make_base: MakeBase) -> None:
    batch = short_rows()
    batches = [folded(batch), trimmed(batch), batch]
    assert len({each.input_ids_BT.shape for each in batches}) == 3
    together = gradients(make_base(), batches)
    apart = gradients(make_base(), [batch, batch, batch])
    for one, other in zip(together, apart, strict=True):
        assert_same(one, other)


def test_a_model_that_does_not_keep_examples_apart_gets_rows_of_one_example(
    make_base: MakeBase, tmp_path: Path
) -> None:
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    alibi = make_base(model=save_random_model(tmp_path / "m", "falcon", alibi=True, **fields))
    batch = short_rows()
    out = without_padding(batch, apart=alibi.why_apart is not None)
    assert out.segments_BT is None
    assert out.input_ids_BT.shape == trimmed(batch).input_ids_BT.shape
    assert without_padding(batch, apart=make_base().why_apart is not None).segments_BT is not None


def test_no_batch_decides_for_those_after_it(make_base: MakeBase, tmp_path: Path) -> None:
    """A first batch within the window once said that rows may be joined, one beyond it that they may not."""
    fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6}
    model = save_random_model(tmp_path / "m", "mistral", **fields, **heads)
    within = replace(short_rows(3), targets_BT=short_rows(3).targets_BT.clone())
    within.targets_BT[:, 5:] = NO_LOSS
    one, other = make_base(model=model), make_base(model=model)
    without_padding(within, apart=one.why_apart is not None)
    rows = [
        without_padding(short_rows(), apart=each.why_apart is not None) for each in (one, other)
    ]
    (after_short,) = gradients(one, rows[:1])
    (at_once,) = gradients(other, rows[1:])
    (padded,) = gradients(make_base(model=model), [short_rows()])
    assert torch.equal(after_short.loss, at_once.loss)
    assert_same(at_once, padded)


def test_dropout_masks_follow_the_places_not_the_layout(make_base: MakeBase) -> None:
    """The gradient of folded rows is that of the padded ones, with the same elements dropped."""
    shared = make_base()
    adapter = shared.attach(LoraConfig(rank=4, alpha_over_rank=2.0, dropout=0.3), 0)
    adapter.flat_P.add_(
        torch.randn(adapter.flat_P.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05
    )
    padded = short_rows(8)

    def gradient(batch: Batch) -> Gradient:
        work = Work(
            adapter=adapter,
            batch=batch,
            loss_tokens=batch.num_loss_tokens,
            dropout_key=dropout_key(0, 3),
            recompute=False,
        )
        (found,) = packed_gradients(shared, [work])
        return replace(found, of_adapter=FlatGradient(found.of_adapter.flat_P.clone(), []))

    laid_out = folded(padded)
    assert laid_out.num_input_tokens < padded.num_input_tokens
    assert_same(gradient(laid_out), gradient(padded))


def test_the_largest_micro_batch_is_the_one_whose_activations_count(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    slot = Slot(make_job(shared, "counted"), shared)
    slot.next_work()
    assert slot.counts_activations()
    assert not slot.counts_activations()
    slot.count_activations(10)
    slot.count_activations(7)
    assert slot.activation_bytes == 10
