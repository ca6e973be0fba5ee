"""Captured steps on a GPU against the reference's eager ones, in bfloat16."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.base.build import build_base
from harness.base.source import find_model, model_fingerprint
from harness.config.resources import BackendName
from harness.config.schema import (
    FloatType,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.engine.cuda import ops
from harness.engine.cuda.backend import CudaBackend
from harness.engine.cuda.decoding import DecodingSize
from harness.engine.cuda.seats import Moments
from harness.engine.forward import target_logits
from harness.engine.micro_step import packed_gradients
from harness.engine.shared_base import SharedBase
from harness.training.loss_scale import LossScale
from harness.training.slot import Slot, clip
from tests.base.test_storage import PACKED, name
from tests.engine.test_backends import FAMILIES
from tests.engine.test_cpu import base_of, trained, work_of
from tests.training.rows import job_on_random_rows, random_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


def built(
    cache: Path,
    quant: QuantConfig,
    backend: BackendName,
    compute: FloatType = FloatType.bfloat16,
) -> SharedBase:
    quant.compute_dtype = compute
    source = find_model(ModelConfig())
    base = build_base(
        source,
        ModelConfig(),
        quant,
        fingerprint=model_fingerprint(source, cache / "memo.json"),
        device=CUDA,
        cache=cache,
    )
    return SharedBase(base, backend=backend)


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_the_kernel_decodes_what_the_storage_does(tmp_path: Path, quant: QuantConfig) -> None:
    shared = built(tmp_path, quant, BackendName.reference)
    layer = shared.model.model.layers[0].mlp.up_proj
    expected = layer.dense_weight(torch.bfloat16)
    found = torch.full_like(expected, float("nan"))
    ops.decode_into(layer, found)
    torch.testing.assert_close(found, expected, rtol=8e-3, atol=1e-6)


def runs(shared: SharedBase, dropout: float) -> list[Slot]:
    slots = []
    for seed, (rank, alpha) in enumerate(((2, 3.0), (8, 16.0), (20, 20.0))):
        config = RunConfig(seed=seed)
        config.lora = LoraConfig(rank=rank, alpha=alpha, dropout=dropout * (seed % 2))
        config.optim = OptimConfig(
            lr=5e-4, steps=10, batch_size=4
        )  # higher ones diverge from themselves
        slot = Slot(job_on_random_rows(config), shared)
        noise = torch.randn(
            slot.adapter.flat_P.shape, generator=torch.Generator().manual_seed(seed)
        )
        slot.adapter.flat_P.add_(noise.to(CUDA), alpha=0.02)
        slots.append(slot)
    return slots


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("quant_format", [QuantFormat.nf4, QuantFormat.int8, QuantFormat.none])
def test_gradients_are_the_references(
    tmp_path: Path, quant_format: QuantFormat, dropout: float, count: int
) -> None:
    shared = built(tmp_path, QuantConfig(format=quant_format), BackendName.reference)
    backend = CudaBackend(shared)
    slots = runs(shared, dropout)[-count:] if count == 1 else runs(shared, dropout)
    work = [slot.next_work() for slot in slots]
    expected = [
        (g.loss.item(), g.of_adapter.flat_P.clone()) for g in packed_gradients(shared, work)
    ]
    for slot in slots:
        backend.sit(slot.adapter, None)
    for _ in range(3):  # as it is, captured, replayed
        backend.discard([slot.adapter for slot in slots])
        backend.add_pass(work)
        for slot, (loss, gradient) in zip(slots, expected, strict=True):
            found_loss, found = backend.progress_of(slot.adapter)
            assert abs(found_loss - loss) < backend.tolerance * abs(loss)
            assert (found - gradient).norm() < 3e-2 * gradient.norm()


@pytest.mark.parametrize("model", FAMILIES)
def test_every_model_that_is_written_out_has_the_references_gradients(model: str) -> None:
    shared = base_of(model, backend=BackendName.reference, compute=FloatType.bfloat16, device=CUDA)
    backend = CudaBackend(shared)
    adapters = [trained(shared, LoraConfig(rank=4, alpha=8.0), seed) for seed in range(2)]
    work = [work_of(each, seed, packed=True) for seed, each in enumerate(adapters)]
    expected = [
        (g.loss.item(), g.of_adapter.flat_P.clone()) for g in packed_gradients(shared, work)
    ]
    for adapter in adapters:
        backend.sit(adapter, None)
    for _ in range(3):  # as it is, captured, replayed
        backend.discard(adapters)
        backend.add_pass(work)
        for adapter, (loss, gradient) in zip(adapters, expected, strict=True):
            found_loss, found = backend.progress_of(adapter)
            assert abs(found_loss - loss) < backend.tolerance * abs(loss)
            assert (found - gradient).norm() < 3e-2 * gradient.norm()


def test_seats_train_as_the_reference_does(tmp_path: Path) -> None:
    curves = []
    for backend in (BackendName.reference, BackendName.cuda):
        shared = built(tmp_path, QuantConfig(format=QuantFormat.nf4), backend)
        slots, found = runs(shared, 0.3), []
        for _ in range(6):
            work = [slot.next_work() for slot in slots]
            if isinstance(shared.backend, CudaBackend):
                for slot in slots:
                    slot.sit(shared.backend)
                shared.backend.add_pass(work)
                for slot in slots:
                    slot.passed()
                numbers = shared.backend.update([slot.next_step() for slot in slots])
                found.append([number.read()[0] for number in numbers])
            else:
                for slot, gradient in zip(slots, shared.backend.gradients(work), strict=True):
                    slot.receive(gradient)
                found.append(clip(slots)[:, 0].tolist())
            for slot in slots:
                slot.update()
        curves.append(torch.tensor(found))
    assert (curves[0] - curves[1]).abs().max() < 3e-2


@pytest.mark.parametrize("compute", [FloatType.bfloat16, FloatType.float16])
def test_scores_are_the_references(tmp_path: Path, compute: FloatType) -> None:
    quant = QuantConfig(format=QuantFormat.nf4)
    shared = built(tmp_path, quant, BackendName.reference, compute)
    backend = CudaBackend(shared)
    slots = runs(shared, 0.3)
    batch = random_rows().batch(torch.arange(8))
    work = [
        replace(slot.next_work(), batch=batch, dropout_key=None, loss_tokens=1) for slot in slots
    ]
    for slot in slots:
        backend.sit(slot.adapter, None)
    for _ in range(3):  # as it is, captured, replayed
        for item, found_2M in zip(work, backend.score(work), strict=True):
            with torch.no_grad(), shared.only(item.adapter):
                logits_MV, targets_M = target_logits(shared.model, batch.to(CUDA))
            expected = torch.nn.functional.cross_entropy(
                logits_MV.float(), targets_M, reduction="none"
            )
            assert (found_2M[0] - expected).norm() < 1e-2 * expected.norm()
            assert abs(found_2M[0].mean() - expected.mean()) < 3e-3 * expected.mean()


def test_answers_are_the_references(tmp_path: Path) -> None:
    """In 16 bits two tokens may be as likely as each other, and an answer then goes on from the other one."""
    shared = built(tmp_path, QuantConfig(format=QuantFormat.nf4), BackendName.reference)
    shared.model.eval()
    backend = CudaBackend(shared)
    slots = runs(shared, 0.3)
    for slot in slots:
        backend.sit(slot.adapter, None)
    prompts = [row[: 3 + n].tolist() for n, row in enumerate(random_rows().input_ids_NT[:8])]
    size = DecodingSize(rows=8, length=30, new_tokens=16)
    found = backend.answers([slot.adapter for slot in slots], prompts, size, [])
    same = 0
    for slot, answers in zip(slots, found, strict=True):
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt], device=CUDA)
            with torch.no_grad(), shared.only(slot.adapter):
                for _ in range(16):
                    logits_1TV = shared.model(input_ids=ids, use_cache=False).logits
                    ids = torch.cat([ids, logits_1TV[:, -1:].argmax(dim=-1)], dim=1)
            same += ids[0, len(prompt) :].tolist() == answer
    assert same >= 12, same


def test_float16_skips_what_overflows_and_trains(tmp_path: Path) -> None:
    shared = built(
        tmp_path, QuantConfig(format=QuantFormat.nf4), BackendName.cuda, FloatType.float16
    )
    backend = shared.backend
    assert isinstance(backend, CudaBackend)
    (slot,) = runs(shared, 0.0)[:1]
    slot.progress.loss_scale = scale = LossScale(value=2.0**60)
    losses, skipped = [], 0
    for _ in range(8):
        slot.sit(backend)
        backend.add_pass([slot.next_work()])
        slot.passed()
        loss, norm = backend.update([slot.next_step()])[0].read()
        losses.append(loss)
        if norm < float("inf"):
            slot.update()
        else:
            slot.skip_update(scale)
            skipped += 1
            scale.value = 2.0**12
    assert skipped == 1
    assert losses[-1] < losses[0]


def test_seats_that_grow_are_not_in_memory_twice() -> None:
    shared = base_of(
        "llama", backend=BackendName.reference, compute=FloatType.bfloat16, device=CUDA
    )
    backend = CudaBackend(shared)
    adapters = [trained(shared, LoraConfig(rank=32, alpha=8.0), seed) for seed in range(3)]
    held = adapters[0].num_bytes
    moments = Moments(*(torch.ones_like(adapters[0].flat_P) for _ in range(2)))
    for adapter in adapters[:2]:
        backend.sit(adapter, moments)
    torch.cuda.reset_peak_memory_stats(CUDA)
    backend.sit(adapters[2], moments)  # four seats in place of two
    grown = torch.cuda.memory_allocated(CUDA)
    assert torch.cuda.max_memory_allocated(CUDA) <= grown + 3 * held
    assert torch.equal(backend.take(adapters[0]).mean_P, moments.mean_P)


def test_a_device_of_this_kind_gets_captured_steps(tmp_path: Path) -> None:
    shared = built(tmp_path, QuantConfig(format=QuantFormat.nf4), BackendName.auto)
    assert shared.backend.name is BackendName.cuda
