"""The floor of a step, against a count by hand at rates that are given; rates are measured once, and rise."""

import json
from pathlib import Path

import pytest
import torch

from harness.measure.floor import StepSize, step_floor
from harness.measure.rates import DeviceRates, Product
from tests.training.conftest import MakeBase

CPU = torch.device("cpu")


@pytest.fixture
def given(tmp_path: Path) -> DeviceRates:
    """Rates of a device that multiplies at 1e9 operations and copies at 1e6 bytes per second."""

    class Given(DeviceRates):
        def bytes_per_second(self) -> float:
            return 1e6

        def operations_per_second(self, product: Product) -> float:
            return 1e9

    return Given(CPU, None)


def test_the_floor_against_a_count_by_hand(make_base: MakeBase, given: DeviceRates) -> None:
    base = make_base().base
    weights = sum(m.in_features * m.out_features for m in base.linears)
    head = base.model.get_output_embeddings().weight.numel()
    step = StepSize(micro_batches=3, input_tokens=100, loss_tokens=40)
    floor = step_floor(base, given, step, decodes=True)
    # 2 operations for each weight and position, forward and backward.
    assert floor.products_ms == pytest.approx(1e3 * 3 * 4 * (100 * weights + 40 * head) / 1e9)
    decoded = weights * (base.storage.bits / 8 + 4)  # read packed, written in float32
    assert floor.decoding_ms == pytest.approx(1e3 * 3 * 2 * decoded / 1e6)
    assert floor.total_ms == floor.products_ms + floor.decoding_ms
    assert step_floor(base, given, step, decodes=False).decoding_ms == 0


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
