"""A run's place, asked step by step: which rows, keys and numbers its micro-batches have."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config.schema import FloatType, LoraConfig, QuantConfig
from harness.data.order import batch_rows, steps_for
from harness.data.rows import Batch
from harness.engine.adapter import FlatGradient
from harness.engine.dropout import dropout_key, noise_key
from harness.engine.micro_step import Gradient, Work
from harness.engine.shared_base import SharedBase
from harness.measure.throughput import WARMUP_STEPS
from harness.training import slot as slot_module
from harness.training.slot import Slot, clip
from tests.training.conftest import MakeBase, MakeJob

MakeSlot = Callable[..., Slot]


@pytest.fixture(scope="module")
def shared(make_base: MakeBase) -> SharedBase:
    return make_base()


@pytest.fixture
def make_slot(shared: SharedBase, make_job: MakeJob) -> MakeSlot:
    """Return a function that gives a place to a run whose settings are given as `make_job` takes them."""

    def make(**sections: Any) -> Slot:
        is_probe = sections.pop("is_probe", False)
        job = make_job(shared, "run", **sections)
        job.is_probe = is_probe
        return Slot(job, shared)

    return make


def gradient(slot: Slot, value: float, loss: float = 1.0) -> Gradient:
    flat = torch.full_like(slot.adapter.flat_P, value)
    return Gradient(
        loss=torch.tensor(loss, dtype=torch.float64), of_adapter=FlatGradient.of(slot.adapter, flat)
    )


def step(slot: Slot) -> list[Work]:
    """Make a step with gradients of zero; returns the micro-batches that it had."""
    works = [slot.next_work()]
    slot.receive(gradient(slot, 0.0))
    while not slot.step_is_complete:
        works.append(slot.next_work())
        slot.receive(gradient(slot, 0.0))
    slot.update()
    return works


def loss_tokens(batches: list[Batch]) -> int:
    return sum(batch.num_loss_tokens for batch in batches)


def test_a_step_is_its_rows_in_micro_batches_that_are_numbered_over_the_whole_run(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot(
        optim={"batch_size": 6, "micro_batch_size": 2, "steps": 4, "neftune_alpha": 5.0},
        lora=LoraConfig(rank=2, alpha=4.0, dropout=0.1),
        seed=7,
    )
    rows = slot.job.data.train
    for number in range(3):
        works = step(slot)
        chosen = batch_rows(len(rows), 6, 7, number)
        whole = [rows.batch(part) for part in chosen.split(2)]
        assert [w.dropout_key for w in works] == [dropout_key(7, 3 * number + i) for i in range(3)]
        noises = [w.noise for w in works]
        assert [n.key for n in noises if n] == [noise_key(7, 3 * number + i) for i in range(3)]
        assert {n.alpha for n in noises if n} == {5.0}
        assert {w.loss_tokens for w in works} == {loss_tokens(whole)}
        for work, padded in zip(works, whole, strict=True):
            tokens = padded.targets_BT.reshape(-1)[padded.loss_positions_N]
            own = work.batch.targets_BT.reshape(-1)[work.batch.loss_positions_N]
            assert torch.equal(own.sort().values, tokens.sort().values)


def test_what_a_run_does_not_ask_for_its_passes_do_not_have(make_slot: MakeSlot) -> None:
    slot = make_slot()
    work = slot.next_work()
    assert (work.dropout_key, work.noise, work.recompute, work.offload) == (
        None,
        None,
        False,
        False,
    )
    assert (work.loss_scale, slot.loss_scale) == (1.0, 1.0)
    asked = make_slot(optim={"gradient_checkpointing": True, "offload_activations": True})
    assert (asked.next_work().recompute, asked.next_work().offload) == (True, True)


@pytest.mark.parametrize(("micro", "dropout"), [(4, 0.0), (2, 0.1)])
def test_the_pass_that_goes_ahead_is_the_next_steps_first(
    make_slot: MakeSlot, micro: int, dropout: float
) -> None:
    slot = make_slot(
        optim={"micro_batch_size": micro, "steps": 3},
        lora=LoraConfig(rank=2, alpha=4.0, dropout=dropout),
    )
    assert slot.work_ahead() is None
    for _ in range(2):
        while True:
            slot.next_work()
            slot.receive(gradient(slot, 0.0))
            if slot.step_is_complete:
                break
        slot.prepare_next()
        ahead = slot.work_ahead()
        assert ahead is not None
        slot.update()
        work = slot.next_work()
        assert ahead.batch is work.batch
        assert (ahead.dropout_key, ahead.loss_tokens) == (work.dropout_key, work.loss_tokens)
    while not slot.step_is_complete:
        slot.receive(gradient(slot, 0.0))
    slot.prepare_next()  # there is none: the last step is being made
    assert slot.work_ahead() is None


def test_what_was_prepared_is_not_used_by_another_step_or_in_other_parts(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot(optim={"steps": 5})
    slot.prepare_next()
    prepared = slot.work_ahead()
    assert prepared is not None
    assert slot.next_work().batch is not prepared.batch  # that is step 0
    slot.shrink_micro_batch()
    assert slot.work_ahead() is None
    slot.prepare_next()
    slot.progress.loss_scale = SimpleNamespace(value=2.0)  # pyright: ignore[reportAttributeAccessIssue]
    assert slot.work_ahead() is None  # in float16 the scale depends on the step in progress


def test_shares_of_a_micro_batch_are_as_equal_as_they_can_be_and_all_of_it(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot(optim={"batch_size": 18, "micro_batch_size": 6})
    work = slot.next_work()
    for count, sizes in ((1, [6]), (2, [3, 3]), (4, [1, 2, 1, 2]), (7, [0, 1, 1, 1, 1, 1, 1])):
        parts = slot.shares(count)
        padded = slot._waiting[0].padded
        edges = [sum(sizes[:number]) for number in range(count)]
        for part, start, size in zip(parts, edges, sizes, strict=True):
            own = padded.rows(start, start + size)
            assert part.num_loss_tokens == own.num_loss_tokens
        assert loss_tokens(parts) == work.batch.num_loss_tokens


def test_activations_are_counted_again_for_more_positions_or_more_loss(make_slot: MakeSlot) -> None:
    slot = make_slot()

    def counts(inputs: int, losses: int) -> bool:
        slot._waiting.clear()
        for sizes in ((inputs, losses), (99, 99), (999, 999)):  # the next, and those after it
            batch = SimpleNamespace(num_input_tokens=sizes[0], num_loss_tokens=sizes[1])
            slot._waiting.append(SimpleNamespace(batch=batch))  # pyright: ignore[reportArgumentType]
        assert slot.pass_tokens == inputs
        return slot.counts_activations()

    asked = [(10, 5), (10, 5), (9, 4), (11, 4), (10, 6), (11, 6), (12, 7)]
    assert [counts(*each) for each in asked] == [True, False, False, True, True, False, True]
    for saved in (300, 500, 400):
        slot.count_activations(saved)
    assert slot.activation_bytes == 500
    slot._waiting.clear()
    assert slot.shrink_micro_batch() is True
    assert slot.activation_bytes is None
    assert counts(1, 1)


@pytest.mark.parametrize(("size", "sizes"), [(12, [6, 3, 1]), (7, [1]), (9, [3, 1]), (1, [])])
def test_a_micro_batch_is_divided_as_long_as_it_has_rows(
    make_slot: MakeSlot, size: int, sizes: list[int]
) -> None:
    slot = make_slot(optim={"batch_size": size})
    slot.next_work()
    before = sorted(loss_tokens([each.padded for each in slot._waiting]) for _ in (0,))
    found = []
    while slot.shrink_micro_batch():
        found.append(slot.micro_batch_size)
        assert [len(each.padded.input_ids_BT) for each in slot._waiting] == [found[-1]] * (
            size // found[-1]
        )
        assert [loss_tokens([each.padded for each in slot._waiting])] == before
    assert found == sizes


def test_gradients_of_micro_batches_are_added_up_and_one_alone_is_kept_as_it_is(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot(optim={"batch_size": 6, "micro_batch_size": 2, "max_grad_norm": None})
    slot.next_work()
    passing = gradient(slot, 0.0)  # a pass writes into the same tensor each time
    for value, loss in ((1.0, 0.5), (2.0, 0.25), (4.0, 1.0)):
        assert not slot.step_is_complete
        passing.of_adapter.flat_P.fill_(value)
        slot.receive(Gradient(loss=torch.tensor(loss).double(), of_adapter=passing.of_adapter))
    assert slot.step_is_complete
    ((loss, norm),) = clip([slot]).tolist()
    assert loss == 1.75
    assert norm == pytest.approx(7 * math.sqrt(slot.adapter.num_parameters), rel=1e-6)
    whole = make_slot(optim={"batch_size": 6})
    whole.next_work()
    only = gradient(whole, 3.0)
    whole.receive(only)
    assert whole._gradient is only.of_adapter


def test_a_scaled_gradient_is_brought_back_before_it_is_clipped(
    shared: SharedBase, make_job: MakeJob
) -> None:
    job = make_job(shared, "half", optim={"max_grad_norm": 1.0})
    job.config.quant = QuantConfig(compute_dtype=FloatType.float16)
    slot = Slot(job, shared)
    assert slot.loss_scale == slot.next_work().loss_scale == 2.0**16
    slot.receive(gradient(slot, 2.0**16))
    ((_, norm),) = clip([slot]).tolist()
    expected = math.sqrt(slot.adapter.num_parameters)
    assert norm == pytest.approx(expected, rel=1e-6)
    assert slot._gradient is not None
    assert float(slot._gradient.flat_P[0]) == pytest.approx(1 / expected, rel=1e-5)


def test_a_step_for_a_backend_has_the_runs_own_numbers(make_slot: MakeSlot) -> None:
    given = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "weight_decay": 0.1}
    slot = make_slot(
        optim={"lr": 1e-3, "loraplus_ratio": 4.0, "warmup_steps": 4, "max_grad_norm": 0.5, **given}
    )
    for _ in range(3):
        step(slot)
    found = slot.next_step()
    assert (found.number, found.loss_scale, found.max_grad_norm) == (4, 1.0, 0.5)
    assert found.rate_a == pytest.approx(0.75e-3)
    assert found.rate_b == pytest.approx(3e-3)
    assert {name: getattr(found, name) for name in given} == given
    assert found.adapter is slot.adapter


def test_a_steps_time_and_tokens_enter_the_clock_when_it_is_complete(make_slot: MakeSlot) -> None:
    slot = make_slot(optim={"micro_batch_size": 2})
    inputs = []
    for seconds in (0.25, 0.5):
        inputs.append(slot.next_work().batch.num_input_tokens)
        assert slot.pass_tokens == inputs[-1]
        slot.receive(gradient(slot, 0.0))
        slot.spend(seconds)
    assert slot.clock.seconds == [0.75]
    assert slot.clock.input_tokens == [sum(inputs)]
    assert slot.clock.loss_tokens == [slot._loss_tokens]
    assert slot.progress.wall_seconds == 0.75
    slot.update()
    slot.next_work()
    slot.spend(1.0)
    assert slot.clock.seconds == [0.75]


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3.0, 2.0, 2.5], 2), ([3.0, 3.0], 1), ([math.nan, 4.0, math.inf], 2), ([math.nan], None)],
)
def test_the_best_adapter_is_the_first_of_the_lowest_finite_loss(
    make_slot: MakeSlot, losses: list[float], best: int | None
) -> None:
    slot = make_slot(eval={"keep_best": True, "every_steps": 1})
    for number, loss in enumerate(losses, start=1):
        slot.progress.step = number
        slot.adapter.flat_P.fill_(float(number))
        slot.take_loss(loss)
    assert slot.progress.best_step == best
    assert slot.progress.losses == losses or math.isnan(losses[0])
    if best is None:
        assert slot.best_adapter is None
    else:
        assert slot.progress.best_loss == losses[best - 1]
        assert slot.best_adapter is not None
        assert set(slot.best_adapter["flat_P"].tolist()) == {float(best)}


def test_without_keeping_the_best_none_is_kept(make_slot: MakeSlot) -> None:
    slot = make_slot(eval={"every_steps": 1})
    slot.take_loss(1.0)
    assert slot.best_adapter is None
    assert slot.progress.losses == [1.0]


def test_epochs_are_as_many_steps_as_see_all_rows(make_slot: MakeSlot) -> None:
    slot = make_slot(optim={"steps": None, "epochs": 1.5})
    assert slot.total_steps == steps_for(1.5, 44, 4) == 17
    slot.progress.step = 16
    assert not slot.finished
    slot.progress.step = 17
    assert slot.finished


@pytest.mark.parametrize(("largest", "first"), [(0, 0), (WARMUP_STEPS, 0), (WARMUP_STEPS + 4, 4)])
def test_a_probe_warms_up_and_then_times_the_largest_micro_batch(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch, largest: int, first: int
) -> None:
    asked: list[Any] = []

    def found(config: Any, rows: Any, *, apart: bool) -> Any:
        asked.append(apart)
        return None, largest

    monkeypatch.setattr(slot_module, "largest_micro_batch", found)
    slot = make_slot(is_probe=True)
    rows = slot.job.data.train
    expected = rows.batch(batch_rows(len(rows), 4, slot.config.seed, first))
    slot.next_work()
    assert torch.equal(slot._waiting[0].padded.input_ids_BT, expected.input_ids_BT)
    assert asked == [False]
    make_slot()
    assert asked == [False]  # of a run that is no probe nobody asks
