"""Rates of a device: measured once, kept, and only raised."""

import json
from pathlib import Path

import pytest
import torch

from harness.measure.rates import DeviceRates, Product

CPU = torch.device("cpu")


def test_rates_are_measured_once_kept_and_only_rise(tmp_path: Path, monkeypatch) -> None:
    product = Product(rows=30, inputs=48, outputs=64, dtype=torch.float32)
    seconds = iter([3e-6, 2e-6, 1e-3, 5e-6])
    measured = []

    def take(self, work) -> float:
        work()
        measured.append(self)
        return next(seconds)

    monkeypatch.setattr(DeviceRates, "_seconds", take)
    monkeypatch.setattr("harness.measure.rates._onednn", lambda left, right: None)
    first = DeviceRates(CPU, tmp_path)
    rate = first.operations_per_second(product)
    assert rate == pytest.approx(2 * 32 * 48 * 64 / 3e-6)  # 32 rows stand for 30
    assert DeviceRates(CPU, tmp_path).operations_per_second(product) == rate
    assert len(measured) == 1

    again = DeviceRates(CPU, tmp_path)
    again.measure_again()
    assert again.operations_per_second(product) == pytest.approx(rate * 3 / 2)
    assert again.operations_per_second(product) == pytest.approx(rate * 3 / 2)
    again.measure_again()  # the machine is busy now
    assert again.operations_per_second(product) == pytest.approx(rate * 3 / 2)
    assert len(measured) == 3

    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:-20])
    assert DeviceRates(CPU, tmp_path).operations_per_second(product) < rate  # measured anew
    tree = json.loads(kept.read_text())
    tree["rates"] = dict.fromkeys(tree["rates"], "NaN")
    kept.write_text(json.dumps(tree))
    assert DeviceRates(CPU, tmp_path).known() == {}


def test_what_this_machine_reaches_is_measured() -> None:
    rates = DeviceRates(CPU, None)
    assert 1e8 < rates.bytes_per_second() < 1e13
    assert 1e8 < rates.operations_per_second(
        Product(rows=64, inputs=256, outputs=256, dtype=torch.float32)
    ) < 1e14  # fmt: skip
    state = torch.get_rng_state()
    rates.operations_per_second(Product(rows=8, inputs=32, outputs=32, dtype=torch.float32))
    assert torch.equal(state, torch.get_rng_state())  # runs draw from theirs as before


@pytest.mark.parametrize(
    ("rows", "cpu", "cuda"),
    [(0.5, 1, 1), (1, 1, 1), (2.9, 4, 4), (30, 32, 32), (45, 32, 32), (46, 64, 64),
     (511, 512, 512), (700, 512, 512), (5000, 512, 4096), (40_000, 512, 16_384)],
)  # fmt: skip
def test_a_power_of_two_of_rows_stands_for_near_ones(rows: float, cpu: int, cuda: int) -> None:
    """The nearest by its logarithm: 45 lies below 32 times the root of 2, 46 above."""
    product = Product(rows=rows, inputs=3, outputs=5, dtype=torch.float32)
    assert product.measured_rows(CPU) == cpu
    assert product.measured_rows(torch.device("cuda")) == cuda
    assert product.operations == 2 * rows * 3 * 5


def test_a_rate_is_that_of_the_quickest_of_several_tries(monkeypatch) -> None:
    """A clock that stands still but for the work: 3, 1, 2, … seconds."""
    now = [0.0]
    took = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr("harness.measure.rates.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("harness.measure.rates._SETTLING_SECONDS", 0.0)

    def work() -> None:
        now[0] += next(took)

    rates = DeviceRates(CPU, None)
    assert rates._seconds(work) == 1.0
    assert next(took, None) is None, "five tries"


def test_a_copy_moves_its_bytes_twice_and_float32_takes_the_quicker_library(monkeypatch) -> None:
    seconds = iter([0.5, 4.0, 2.0])
    monkeypatch.setattr(DeviceRates, "_seconds", lambda self, work: work() is None or next(seconds))
    monkeypatch.setattr("harness.measure.rates._COPIED_BYTES", {"cpu": 1000})
    rates = DeviceRates(CPU, None)
    assert rates.bytes_per_second() == 2 * 1000 / 0.5
    product = Product(rows=8, inputs=4, outputs=16, dtype=torch.float32)
    assert rates.operations_per_second(product) == 2 * 8 * 4 * 16 / 2.0
    assert rates.known() == {"copy": 4000.0, "float32 8x4x16": 512.0}


def test_what_another_process_has_measured_meanwhile_is_kept_too(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(DeviceRates, "_seconds", lambda self, work: 1.0)
    one, other = DeviceRates(CPU, tmp_path), DeviceRates(CPU, tmp_path)
    first = Product(rows=4, inputs=4, outputs=4, dtype=torch.bfloat16)
    one.operations_per_second(first)
    other.operations_per_second(Product(rows=8, inputs=4, outputs=4, dtype=torch.bfloat16))
    expected = {"bfloat16 4x4x4": 128.0, "bfloat16 8x4x4": 256.0}
    assert DeviceRates(CPU, tmp_path).known() == other.known() == expected
    assert one.path is not None
    tree = json.loads(one.path.read_text())
    tree["rates"] = {"bfloat16 4x4x4": 500.0, "bfloat16 8x4x4": 1.0, "copy": 0.0, "x": -1.0}
    one.path.write_text(json.dumps(tree))
    assert DeviceRates(CPU, tmp_path).known().keys() == expected.keys(), "no rate is 0 or less"
    other.bytes_per_second()
    kept = DeviceRates(CPU, tmp_path).known()
    assert (kept["bfloat16 4x4x4"], kept["bfloat16 8x4x4"]) == (500.0, 256.0)
    assert "x" not in kept
