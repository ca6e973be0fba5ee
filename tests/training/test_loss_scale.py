"""Training in float16: a run's own loss scale, by the reference and in seats."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config.resources import BackendName
from harness.config.schema import FloatType, LoraConfig, OptimConfig, QuantConfig, RunConfig
from harness.engine.cuda.backend import CudaBackend
from harness.engine.shared_base import SharedBase
from harness.training.loss_scale import LossScale
from harness.training.session import Diverged, _move
from harness.training.slot import Slot, clip
from tests.engine.test_grouped_lora import random_base
from tests.training.rows import job_on_random_rows


@pytest.mark.parametrize("overflows", [[], [0, 1, 5], [1999], [2000, 2001], [100, 2099, 2100]])
def test_the_scale_follows_torchs_grad_scaler(overflows: list[int]) -> None:
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for step in range(2200):
        theirs.scale(parameter.sum()).backward()
        assert parameter.grad is not None
        if step in overflows:
            parameter.grad.fill_(float("inf"))
            ours.overflowed()
        else:
            ours.moved()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert ours.value == theirs.get_scale(), step
    assert ours.skipped_steps == len(overflows)


def test_a_scale_below_one_helps_no_more() -> None:
    scale = LossScale(value=2.0)
    found = []
    for _ in range(3):
        found.append(scale.is_exhausted)
        scale.overflowed()
    assert found == [False, False, True]  # of 2, 1 and a half


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "outcome"),
    [
        (1.0, 2.0, None, "moved"),
        (1.0, 2.0, 4.0, "moved"),
        (1.0, math.inf, 2.0, "left out"),
        (1.0, math.nan, 2.0, "left out"),
        (1.0, math.inf, 1.0, "diverged"),  # although nothing is multiplied any more
        (1.0, math.inf, None, "diverged"),
        (math.nan, 2.0, None, "diverged"),
        (math.inf, math.inf, 4.0, "diverged"),
    ],
)
def test_a_step_moves_a_run_or_is_left_out_or_is_its_last(
    loss: float, norm: float, scale: float | None, outcome: str
) -> None:
    kept = None if scale is None else LossScale(value=scale)
    moved: list[str] = []
    logged: list[int] = []
    slot = SimpleNamespace(
        progress=SimpleNamespace(step=4, loss_scale=kept),
        update=lambda: moved.append("moved"),
        skip_update=lambda own: own.overflowed(),
    )
    values = {"train/loss": loss}
    entry: Any = SimpleNamespace(
        loss=loss,
        grad_norm=norm,
        slot=slot,
        step_values=lambda lasting: values,
        log=lambda step, _: logged.append(step),
    )
    if outcome == "diverged":
        with pytest.raises(Diverged, match=f"^step 5: loss {loss}, gradient norm {norm}$"):
            _move(entry, 0)
        assert logged == [5]
    else:
        assert _move(entry, 0) is values
        assert logged == []
    assert moved == (["moved"] if outcome == "moved" else [])
    if kept is not None:
        assert kept.skipped_steps == (math.isfinite(loss) and not math.isfinite(norm))


def slot_of(compute: FloatType, backend: type[CudaBackend] | None) -> Slot:
    quant = QuantConfig(compute_dtype=compute)
    shared = SharedBase(random_base(quant), backend=BackendName.reference)
    if backend is not None:
        shared.backend = backend(shared)
    config = RunConfig(
        quant=quant,
        lora=LoraConfig(rank=4, alpha=8.0, compute_dtype=compute),
        optim=OptimConfig(lr=5e-3, steps=20, batch_size=4, micro_batch_size=2),
    )
    return Slot(job_on_random_rows(config), shared)


def step(slot: Slot) -> tuple[float, float]:
    """Make a step as the loop does; return loss and norm."""
    backend = slot.shared.backend
    if isinstance(backend, CudaBackend):
        slot.sit(backend)
    for _ in range(2):
        work = [slot.next_work()]
        if isinstance(backend, CudaBackend):
            backend.add_pass(work)
            slot.passed()
        else:
            slot.receive(backend.gradients(work)[0])
    if isinstance(backend, CudaBackend):
        loss, norm = backend.update([slot.next_step()])[0].read()
    else:
        loss, norm = clip([slot])[0].tolist()
    scale = slot.progress.loss_scale
    if scale is not None and not math.isfinite(norm):
        slot.skip_update(scale)
    else:
        slot.update()
    return loss, norm


@pytest.mark.parametrize("backend", [None, CudaBackend], ids=["reference", "in seats"])
def test_a_run_in_float16_learns_what_it_does_in_float32(
    backend: type[CudaBackend] | None,
) -> None:
    plain, scaled = slot_of(FloatType.float32, None), slot_of(FloatType.float16, backend)
    for _ in range(5):
        expected, found = step(plain), step(scaled)
        assert found == pytest.approx(expected, rel=5e-3)
    scaled.bring()
    moved = (scaled.adapter.flat_P - plain.adapter.flat_P).norm()
    assert moved < 0.05 * plain.adapter.flat_P.norm()


@pytest.mark.parametrize("backend", [None, CudaBackend], ids=["reference", "in seats"])
def test_a_step_that_overflows_moves_nothing_and_halves_the_scale(
    backend: type[CudaBackend] | None,
) -> None:
    slot = slot_of(FloatType.float16, backend)
    scale = slot.progress.loss_scale
    assert scale is not None
    step(slot)
    before, moments = slot.tensors()["flat_P"], slot.optimizer.moments()
    scale.value = 2.0**60
    loss, norm = step(slot)
    assert not math.isfinite(norm)
    assert (scale.value, slot.progress.step) == (2.0**59, 2)
    assert loss == pytest.approx(step(slot_of(FloatType.float16, None))[0], rel=0.2)
    assert torch.equal(slot.tensors()["flat_P"], before)
    after = slot.optimizer.moments()
    assert moments is not None
    assert after is not None
    assert torch.equal(after.mean_P, moments.mean_P)
    scale.value = 2.0**16
    step(slot)
    assert slot.progress.moves == 2
    assert not torch.equal(slot.tensors()["flat_P"], before)


def test_the_adapters_steps_are_counted_without_those_left_out() -> None:
    """AdamW's correction of its averages' start counts moves: else the next one would be too small."""
    seated, plain = slot_of(FloatType.float16, CudaBackend), slot_of(FloatType.float16, None)
    for slot in (seated, plain):
        assert slot.progress.loss_scale is not None
        slot.progress.loss_scale.value = 2.0**60
        step(slot)
        slot.progress.loss_scale.value = 2.0**10
        step(slot)
    difference = (seated.tensors()["flat_P"] - plain.tensors()["flat_P"]).norm()
    assert difference < 1e-2 * plain.tensors()["flat_P"].norm()
