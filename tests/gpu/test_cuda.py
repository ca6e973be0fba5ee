"""The same promises on a CUDA device; run by `make test-gpu`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.base.build import build_base
from harness.base.quick_imports import quiet_libraries
from harness.base.source import find_model, model_fingerprint
from harness.base.storage import storage_of
from harness.config.schema import (
    FloatType,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.engine.micro_step import packed_gradients
from harness.engine.shared_base import SharedBase
from harness.measure.memory import SavedBytes
from harness.measure.meter import meter_of
from harness.training.slot import Slot, clip
from tests.base.test_storage import PACKED, name
from tests.random_models import LLAMA, save_random_model
from tests.training.rows import job_on_random_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("llama"), "llama", **LLAMA)


def build(model: Path, cache: Path, quant: QuantConfig) -> SharedBase:
    config = ModelConfig(name=str(model))
    source = find_model(config)
    fingerprint = model_fingerprint(source, cache / "memo.json")
    return SharedBase(
        build_base(source, config, quant, fingerprint=fingerprint, device=CUDA, cache=cache)
    )


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_equal_codes_decode_equally(quant: QuantConfig) -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) / 20
    storage = storage_of(quant)
    layer = storage.quantize(weight, None, CPU)
    decoded = [
        storage.decode(storage.tensors(each), (256, 512), torch.float32).cpu()
        for each in (layer, storage.moved(layer, CUDA))
    ]
    torch.testing.assert_close(decoded[0], decoded[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_encoders_differ_in_few_codes_by_one_level(quant: QuantConfig) -> None:
    """A weight on a tie, or a constant on one, may fall to another side on another device."""
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) / 20
    storage = storage_of(quant)
    one, other = (
        storage.decode(
            storage.tensors(storage.quantize(weight, None, each)), (256, 512), torch.float32
        )
        for each in (CPU, CUDA)
    )
    differing = ~torch.isclose(one, other.cpu(), rtol=1e-5, atol=1e-7)
    assert int(differing.sum()) <= 512, "of 131,072"
    level = 2 * weight.abs().max() / 7  # the widest step of any format here
    assert (one - other.cpu()).abs().max() <= level


@pytest.mark.parametrize("quant", PACKED, ids=name)
@pytest.mark.parametrize("compute", [FloatType.float32, FloatType.bfloat16])
def test_gradient_is_that_of_the_decoded_dense_layer(
    quant: QuantConfig, compute: FloatType
) -> None:
    quant, dtype = replace(quant, compute_dtype=compute), getattr(torch, compute.value)
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) / 20
    layer = storage_of(quant).quantize(weight, None, CUDA)
    dense = layer(torch.eye(512, device=CUDA, dtype=dtype)).detach().T.float()
    x = torch.randn(64, 512, device=CUDA, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).float().sum(), x)
    expected = dense.sum(dim=0).expand(64, -1)
    tolerance = 1e-4 if compute is FloatType.float32 else 2e-2
    relative = (gradient.float() - expected).norm() / expected.norm()
    assert relative < tolerance


@pytest.mark.parametrize("quant", PACKED, ids=name)
def test_backward_keeps_no_dense_copy(quant: QuantConfig) -> None:
    layer = storage_of(quant).quantize(torch.randn(1024, 1024), None, CUDA)
    x = torch.randn(8, 1024, device=CUDA, requires_grad=True)
    counter = SavedBytes(layer)
    before = torch.cuda.memory_allocated()
    with counter.counting():
        out = layer(x)
    assert torch.cuda.memory_allocated() - before < 1024 * 1024
    assert counter.total <= x.numel() * 4
    assert out.shape == (8, 1024)


def curves(shared: SharedBase, configs: list[RunConfig], steps: int = 10) -> list[list[float]]:
    slots = [Slot(job_on_random_rows(config), shared) for config in configs]
    found: list[list[float]] = [[] for _ in slots]
    for _ in range(steps):
        results = packed_gradients(shared, [slot.next_work() for slot in slots])
        for slot, gradient, curve in zip(slots, results, found, strict=True):
            slot.receive(gradient)
            curve.append(clip([slot])[0, 0].item())
            slot.update()
    for slot in slots:
        shared.detach(slot.adapter)
    return found


def config(seed: int, optimizer: OptimizerName = OptimizerName.adamw) -> RunConfig:
    made = RunConfig(seed=seed)
    made.lora = LoraConfig(rank=[2, 8, 16, 4][seed % 4], alpha=8.0, dropout=[0.0, 0.2][seed % 2])
    made.optim = OptimConfig(name=optimizer, lr=5e-3, steps=10, batch_size=4)
    return made


@pytest.mark.parametrize("quant_format", [QuantFormat.none, QuantFormat.nf4, QuantFormat.int4])
def test_a_cohort_differs_from_solo_no_more_than_twice_solo_from_solo(
    model: Path, tmp_path: Path, quant_format: QuantFormat
) -> None:
    shared = build(model, tmp_path, QuantConfig(format=quant_format))
    solo, again = ([curves(shared, [config(i)])[0] for i in range(4)] for _ in range(2))
    together = curves(shared, [config(i) for i in range(4)])

    def worst(first: list[list[float]], second: list[list[float]]) -> float:
        pairs = zip(first, second, strict=True)
        return max(abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True))

    assert worst(solo, together) <= max(2 * worst(solo, again), 1e-5)


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_every_optimizer_trains(model: Path, tmp_path: Path, optimizer: OptimizerName) -> None:
    quant = QuantConfig(format=QuantFormat.nf4, compute_dtype=FloatType.bfloat16)
    (curve,) = curves(build(model, tmp_path, quant), [config(0, optimizer)])
    assert curve[-1] < curve[0]


def test_inputs_of_blocks_wait_on_the_host_and_come_back_as_they_were(
    model: Path, tmp_path: Path
) -> None:
    """Copies overlap with the passes: what was not waited for would show as another loss."""
    quant = QuantConfig(format=QuantFormat.nf4, compute_dtype=FloatType.bfloat16)
    shared, found, peaks = build(model, tmp_path, quant), [], []
    for offload in (False, True):
        made = config(0)
        made.optim.gradient_checkpointing, made.optim.offload_activations = True, offload
        curves(shared, [made], steps=2)
        meter_of(CUDA).begin()
        found.append(curves(shared, [made])[0])
        peaks.append(meter_of(CUDA).read())
    assert found[0] == found[1]
    assert peaks[1] < peaks[0]


def test_the_peak_is_the_allocators(model: Path, tmp_path: Path) -> None:
    meter = meter_of(CUDA)
    meter.begin()
    held = torch.empty(64 * 2**20, dtype=torch.uint8, device=CUDA)
    del held
    assert meter.read() >= 64 * 2**20
    assert meter.now().peak_bytes == meter.read()


def test_bytes_that_are_paged_out_and_in_are_counted() -> None:
    import bitsandbytes.functional as F

    from harness.measure.paging import paging_counters

    counters = paging_counters(CUDA)
    paged = F.get_paged(1 << 20, dtype=torch.float32, device=CUDA)
    F.fill(paged, 1.0)
    torch.cuda.synchronize()
    before = counters.moved_bytes()
    assert float(paged.sum(dtype=torch.float64)) == 1 << 20  # the host reads all of it
    read = counters.moved_bytes() - before
    assert read >= 4 << 20
    F.fill(paged, 2.0)
    assert counters.moved_bytes() - before >= read


def test_rates_are_below_what_is_published_and_floors_below_steps() -> None:
    from harness.measure.rates import DeviceRates, Product
    from harness.measure.work import peak_rate

    rates = DeviceRates(CUDA, None)
    large = Product(rows=4096, inputs=4096, outputs=4096, dtype=torch.bfloat16)
    published = peak_rate(CUDA)
    if published is not None:
        assert 0.3 * published < rates.operations_per_second(large) < published
    assert rates.bytes_per_second() > 1e11
