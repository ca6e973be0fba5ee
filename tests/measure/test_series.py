"""A step's series, its work and its sizes by hand: sums, shares, peaks and the rate it is held against."""

import errno
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import RunFailed
from harness.measure.memory import SavedBytes, distinct_bytes, is_out_of_memory
from harness.measure.meter import Reading
from harness.measure.nvml import GpuSample
from harness.measure.series import PassCost, StepCosts
from harness.measure.throughput import StepClock
from harness.measure.work import DENSE_BF16, Work, peak_rate, work_of

WORK = Work(per_input_token=10.0, per_loss_token=4.0, peak_per_second=1000.0)
NO_RATE = Work(per_input_token=10.0, per_loss_token=4.0, peak_per_second=None)


def cost(runs: int, tokens: int, *, saved: int | None = None, **reading: Any) -> PassCost:
    joules = reading.pop("joules", None)
    said = Reading(resident_bytes=reading.pop("resident", 7), **reading)
    return PassCost(runs=runs, input_tokens=tokens, reading=said, saved_bytes=saved, joules=joules)


def clock_of(seconds: float, inputs: int, losses: int) -> StepClock:
    clock = StepClock()
    clock.add(99.0, 1, 1)
    clock.add(seconds, inputs, losses)
    return clock


def test_a_step_on_a_processor_is_the_sum_of_its_passes() -> None:
    costs = StepCosts()
    costs.add(cost(2, 40, saved=300), 10)
    costs.add(cost(3, 60, saved=200, resident=9), 20)
    assert costs.end_step(clock_of(0.5, 30, 12), 1000, WORK) == {
        "throughput/step_ms": 500.0,
        "throughput/input_tokens_per_second": 60.0,
        "throughput/loss_tokens_per_second": 24.0,
        "throughput/model_flops_utilisation": (10 * 30 + 4 * 12) / 0.5 / 1000,
        "memory/allocated_bytes": 1000,
        "memory/peak_bytes": 1300,  # what lasts, and the most that a pass has saved
        "memory/resident_bytes": 9,  # after the last pass
        "cohort/runs": 3,
        "cohort/token_share": 30 / 100,
    }
    assert costs.joules is None


def test_a_step_on_a_device_has_what_the_device_counted() -> None:
    costs = StepCosts()
    device = {"allocated_bytes": 500, "reserved_bytes": 900, "utilization": 0.5}
    costs.add(cost(1, 40, peak_bytes=800, power_watts=90.0, joules=6.0, **device), 40)
    costs.add(cost(2, 60, peak_bytes=700, power_watts=80.0, joules=3.0, saved=10**6, **device), 20)
    found = costs.end_step(clock_of(1.0, 60, 30), 1000, NO_RATE)
    assert found["memory/allocated_bytes"] == 500
    assert found["memory/peak_bytes"] == 800
    assert found["memory/reserved_bytes"] == 900
    assert found["device/utilisation"] == 0.5
    assert found["device/power_watts"] == 80.0
    assert "throughput/model_flops_utilisation" not in found
    assert costs.joules == 6.0 + 3.0 * 20 / 60


def test_the_next_step_begins_anew_and_a_peak_only_rises() -> None:
    costs = StepCosts()
    costs.add(cost(4, 40, saved=300), 40)
    costs.end_step(clock_of(1.0, 40, 40), 1000, WORK)
    costs.add(cost(1, 10, saved=5), 10)
    found = costs.end_step(clock_of(1.0, 10, 10), 900, WORK)
    assert (found["cohort/runs"], found["cohort/token_share"]) == (1, 1.0)
    assert found["memory/peak_bytes"] == 1300
    assert found["memory/allocated_bytes"] == 900


def test_what_nothing_tells_is_missing() -> None:
    costs = StepCosts()
    costs.add(cost(1, 0, joules=5.0), 0)
    found = costs.end_step(clock_of(0.0, 0, 0), 10, WORK)
    assert found == {
        "throughput/step_ms": 0.0,
        "memory/allocated_bytes": 10,
        "memory/resident_bytes": 7,
        "cohort/runs": 1,
    }
    assert costs.joules is None, "of no tokens there is no share"


# Work ---------------------------------------------------------------------------------------------


def base_of(*, tied: bool, experts: int = 1, device: str = "cpu") -> Any:
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    if tied:
        head.weight = embedding.weight
    model = SimpleNamespace(
        get_input_embeddings=lambda: embedding, get_output_embeddings=lambda: head
    )
    linears = [SimpleNamespace(experts=1), SimpleNamespace(experts=experts)]
    return SimpleNamespace(model=model, linears=linears, device=torch.device(device))


@pytest.mark.parametrize(("tied", "blocks"), [(False, 1000 - 80), (True, 1000 - 40)])
def test_a_token_costs_four_operations_a_weight_of_the_blocks_and_six_of_the_adapter(
    tied: bool, blocks: int
) -> None:
    assert work_of(base_of(tied=tied), 1000, 7, devices=2) == Work(
        per_input_token=4.0 * blocks + 6.0 * 7, per_loss_token=4.0 * 40, peak_per_second=None
    )


def test_where_everything_is_trained_a_weight_costs_six_operations() -> None:
    found = work_of(base_of(tied=False), 1000, 0, devices=1, trains_all=True)
    assert (found.per_input_token, found.per_loss_token) == (6.0 * 920, 6.0 * 40)


def test_a_base_without_a_head_has_none_to_compute() -> None:
    base = base_of(tied=False)
    base.model.get_output_embeddings = lambda: None
    found = work_of(base, 1000, 0, devices=1)
    assert (found.per_input_token, found.per_loss_token) == (4.0 * 960, 0.0)


def test_the_rate_is_that_of_all_devices_and_experts_have_none(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    cuda = torch.device("cuda")
    assert peak_rate(cuda) == 121e12
    assert peak_rate(torch.device("cpu")) is None
    assert work_of(base_of(tied=True, device="cuda"), 99, 1, devices=3).peak_per_second == 363e12
    experts = base_of(tied=True, device="cuda", experts=2)
    assert work_of(experts, 99, 1, devices=3).peak_per_second is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4 MIG 1g.5gb")
    assert peak_rate(cuda) is None


def test_published_rates_are_those_of_the_data_sheets() -> None:
    """Tera-operations per second, dense, as printed; where a sheet prints them with sparsity, half."""
    sheets = {
        **dict.fromkeys(("NVIDIA H200", "NVIDIA H100 80GB HBM3"), 1979 / 2),
        "NVIDIA H100 PCIe": 1513 / 2,
        "NVIDIA H100 NVL": 1671 / 2,
        **dict.fromkeys((f"NVIDIA A100-SXM4-{gib}GB" for gib in (40, 80)), 312),
        **dict.fromkeys(("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312),
        "NVIDIA A30": 165,
        "NVIDIA A10": 125,
        "NVIDIA A40": 149.7,
        "NVIDIA L4": 242 / 2,
        "NVIDIA L40S": 362.05,
        "NVIDIA L40": 181.05,
        "NVIDIA GeForce RTX 4090": 165.2,
        "NVIDIA GeForce RTX 3090": 71,
    }
    assert {name: round(tera * 1e12) for name, tera in sheets.items()} == DENSE_BF16


def test_without_time_or_rate_there_is_no_utilisation() -> None:
    assert WORK.utilisation(20, 5, 0.1) == pytest.approx(220 / 0.1 / 1000)
    assert WORK.utilisation(20, 5, 0.0) is None
    assert NO_RATE.utilisation(20, 5, 0.1) is None


def test_an_energy_counter_goes_on_at_the_power_of_its_sample() -> None:
    """A sample of 100 s ago: what passes while this is asked is nothing beside it."""
    then = time.monotonic() - 100
    sample = GpuSample(at=then, utilization=None, power_watts=5.0, energy_joules=1000.0)
    assert sample.energy_now() == pytest.approx(1500, rel=0.05)
    quiet = GpuSample(at=then, utilization=None, power_watts=None, energy_joules=1000.0)
    assert quiet.energy_now() == 1000.0
    unknown = GpuSample(at=then, utilization=None, power_watts=5.0, energy_joules=None)
    assert unknown.energy_now() is None


# Memory -------------------------------------------------------------------------------------------


def test_bytes_are_those_of_distinct_storages() -> None:
    whole = torch.zeros(10)
    assert (
        distinct_bytes([whole, whole[2:], whole.view(2, 5), torch.zeros(3, dtype=torch.int8)]) == 43
    )
    assert distinct_bytes([]) == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (RunFailed("process 1: CUDA error: out of memory"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_allocation_that_failed_is_told_from_other_errors(error, expected) -> None:
    assert is_out_of_memory(error) is expected


def test_what_is_saved_for_backward_is_counted_once_and_without_parameters() -> None:
    layer = nn.Linear(4, 4)
    saved = SavedBytes(layer)
    x = torch.ones(2, 4, requires_grad=True)
    with saved.counting():
        hidden = layer(x)  # saves x, and its weight, which is a parameter
        (hidden.sigmoid() * x).sum()  # saves the sigmoid's result, and x again
    assert saved.total == x.nbytes + hidden.nbytes
    layer(x)
    assert saved.total == x.nbytes + hidden.nbytes, "outside nothing is counted"
