"""The arithmetic that is printed is that of the papers, and adds up to what is predicted."""

import re

import pytest

from harness.base.storage import Storage, storage_of
from harness.config.compose import compose_run
from harness.config.schema import QuantConfig, QuantFormat
from harness.plan.explain import (
    constant_bits,
    explanation,
    full_fine_tuning_bytes,
    one_square_matrix_params,
    saved_by_double_quantization,
)
from harness.plan.model import PlannedModel
from harness.plan.predict import predict
from harness.plan.prediction import BatchSize
from harness.plan.text import prediction_text

LINEAR_WEIGHTS_OF_LLAMA_2_7B = 6_476_005_376


def stored(format_name: str, block: int = 64, *, double: bool = False) -> Storage:
    quant = QuantConfig(format=QuantFormat(format_name), double_quant=double, block_size=block)
    return storage_of(quant)


def test_full_fine_tuning_of_ten_billion_parameters_needs_160_gb() -> None:
    assert full_fine_tuning_bytes(10e9) == 160e9


def test_constants_in_blocks_of_64_are_half_a_bit_and_an_eighth_doubled() -> None:
    assert constant_bits(stored("nf4")) == 0.5
    assert constant_bits(stored("nf4", double=True)) == pytest.approx(0.127, abs=5e-4)
    assert constant_bits(stored("int4_asym")) == 1.0  # a scale and an offset


def test_double_quantization_of_llama_2_7b_saves_what_litgpt_measured() -> None:
    saved = saved_by_double_quantization(LINEAR_WEIGHTS_OF_LLAMA_2_7B, 64)
    assert saved / 1e9 == pytest.approx(0.302, abs=5e-4)
    assert saved / 1e9 == pytest.approx(14.14 - 13.84, abs=0.01)  # litgpt's two figures, 0.30 GB


@pytest.mark.parametrize(
    ("params", "rank", "told"),
    [(7e9, 1, 167e3), (13e9, 1, 228e3), (70e9, 1, 529e3), (7e9, 512, 86e6)],
)
def test_the_popular_table_is_one_square_matrix(params: float, rank: int, told: float) -> None:
    assert one_square_matrix_params(params, rank) == pytest.approx(told, rel=0.01)


def explained(model: PlannedModel, *overrides: str) -> str:
    config = compose_run(["quant.compute_dtype=bfloat16", *overrides])
    batch = BatchSize(rows=1, length=64, loss_tokens=64)
    prediction = predict(model, config, batch, device="cuda")
    return explanation(prediction, config, model.storage, model.linears, batch)


def test_the_lines_of_the_adapter_add_up(llama: PlannedModel) -> None:
    text = explained(llama, "lora.rank=64")
    lines = re.findall(
        r"^  \w+_proj +(\d+) x 64 x \((\d+) \+ (\d+)\) = ([\d,]+)$", text, re.MULTILINE
    )
    assert len(lines) == 7
    totals = [int(count) * 64 * (int(a) + int(b)) for count, a, b, _ in lines]
    assert [f"{total:,}" for total in totals] == [shown for *_, shown in lines]
    assert sum(totals) == 159_907_840
    assert "159,907,840 parameters x 4 bytes" in text


def test_each_format_names_its_bits(llama: PlannedModel) -> None:
    assert "4 + 8/64 + 32/(64 x 256) = 4.127 bits a weight, 4.127" in explained(
        llama, "quant=nf4_dq"
    )
    assert "4 + 32/64 = 4.500 bits a weight, 4.500" in explained(llama, "quant=int4")
    assert "would save 0.373 bits" in explained(llama, "quant=nf4")
    assert "16.000 bits a weight" in explained(llama, "quant=none")


def test_the_toy_is_called_a_toy(llama: PlannedModel) -> None:
    *_, toy = explained(llama).strip().split("\n\n")
    assert toy.startswith("A popular table, as a toy only")
    assert "No real model is one" in toy


def test_the_lines_of_the_table_add_up_to_the_peak(llama: PlannedModel) -> None:
    config = compose_run(["quant.compute_dtype=bfloat16", "optim.micro_batch_size=1"])
    batch = BatchSize(rows=1, length=64, loss_tokens=64)
    prediction = predict(llama, config, batch, cohort=2, device="cuda")
    lines = prediction_text(prediction, 0.05, {}).splitlines()[1:]
    sizes = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
    last = [line.split()[-2:] for line in lines]
    *parts, peak, _ = (float(number) * sizes[unit] for number, unit in last)
    assert sum(parts) == pytest.approx(peak, abs=2**30 * 0.01)
    assert peak == pytest.approx(prediction.peak_bytes, rel=0.01)
