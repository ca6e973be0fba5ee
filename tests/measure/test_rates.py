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
