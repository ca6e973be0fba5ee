"""The floor of a step by hand: products at the rates of their shapes, packed weights at that of a copy."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from harness.config.schema import QuantFormat
from harness.measure.floor import Floor, StepSize, step_floor
from harness.measure.rates import DeviceRates, Product

HALF = torch.bfloat16


@dataclass
class Rates:
    """Rates that are said, not measured: of products by their inputs, and of a copy."""

    asked: list[Product] = field(default_factory=list)

    def operations_per_second(self, product: Product) -> float:
        self.asked.append(product)
        return 1e3 * product.inputs

    def bytes_per_second(self) -> float:
        return 100.0


def base_of(quant: QuantFormat, *, head: bool = True, bits: int = 4) -> Any:
    """Return two linear layers, 4 to 6 and 6 to 5, and a head of 4 to 11."""
    weight = torch.zeros(11, 4)
    output = SimpleNamespace(weight=weight) if head else None
    return SimpleNamespace(
        linears=[
            SimpleNamespace(in_features=4, out_features=6),
            SimpleNamespace(in_features=6, out_features=5),
        ],
        model=SimpleNamespace(get_output_embeddings=lambda: output),
        storage=SimpleNamespace(dtype=HALF, bits=bits),
        quant=SimpleNamespace(format=quant),
    )


def floor_of(
    base: Any, rates: Rates, *, losses: float = 3.0, micro: int = 5, **what: bool
) -> Floor:
    step = StepSize(micro_batches=micro, input_tokens=7.0, loss_tokens=losses)
    return step_floor(base, cast(DeviceRates, rates), step, **{"decodes": True, **what})


def test_products_are_taken_forward_and_back_and_weights_decoded_for_both() -> None:
    rates = Rates()
    found = floor_of(base_of(QuantFormat.nf4), rates)
    # 2 x rows x inputs x outputs operations at 1000 x inputs a second: 2 x rows x outputs ms.
    forward = 2 * 7 * 6 + 2 * 7 * 5 + 2 * 3 * 11
    assert found.products_ms == pytest.approx(5 * 2 * forward)
    weights = 4 * 6 + 6 * 5
    assert found.decoding_ms == pytest.approx(5 * 2 * weights * (4 / 8 + 2) / 100 * 1e3)
    assert found.total_ms == found.products_ms + found.decoding_ms
    assert rates.asked == [
        Product(rows=7.0, inputs=4, outputs=6, dtype=HALF),
        Product(rows=7.0, inputs=6, outputs=5, dtype=HALF),
        Product(rows=3.0, inputs=4, outputs=11, dtype=HALF),
    ]


def test_full_fine_tuning_has_a_third_product_and_nothing_to_decode() -> None:
    base = base_of(QuantFormat.none, bits=16)
    two, three = floor_of(base, Rates()), floor_of(base, Rates(), trains_all=True)
    assert three.products_ms == pytest.approx(1.5 * two.products_ms)
    assert two.decoding_ms == three.decoding_ms == 0


def test_weights_that_stay_decoded_cost_nothing_and_a_head_costs_where_there_is_loss() -> None:
    whole = floor_of(base_of(QuantFormat.int8, bits=8), Rates(), decodes=False)
    assert whole.decoding_ms == 0
    without = floor_of(base_of(QuantFormat.int8, bits=8), Rates(), losses=0.0)
    headless = floor_of(base_of(QuantFormat.int8, head=False), Rates())
    assert without.products_ms == headless.products_ms == pytest.approx(5 * 2 * 2 * 7 * 11)
    assert without.decoding_ms == pytest.approx(5 * 2 * 54 * (1 + 2) / 100 * 1e3)
