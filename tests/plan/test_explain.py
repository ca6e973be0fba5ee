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


def explained(model: PlannedModel, *overrides: str, device: str = "cuda") -> str:
    config = compose_run(["quant.compute_dtype=bfloat16", *overrides])
    batch = BatchSize(rows=2, length=64, loss_tokens=50)
    prediction = predict(model, config, batch, device=device)
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


def sections(text: str) -> list[str]:
    """Return the sections, each without the line that names it."""
    return [part.split("\n", 1)[1] for part in text.strip().split("\n\n")]


PARAMS, LINEAR = 6_738_415_616, LINEAR_WEIGHTS_OF_LLAMA_2_7B
OTHERS = 2 * (PARAMS - LINEAR) + 64 * 4 + 64 * 4  # in 16 bits, and rotary tables for 64 frequencies
GB, MIB = 1e9, 2**20


def test_the_alternatives_are_bytes_times_parameters(llama: PlannedModel) -> None:
    alternatives, *_ = sections(explained(llama, "quant=nf4", "lora.rank=64"))
    adapter = 159_907_840
    base, trained = LINEAR * 4.5 / 8 + OTHERS, 16 * adapter
    full, without, lora, this, papers = alternatives.splitlines()
    assert f"16 bytes x N = {16 * PARAMS / GB:.2f} GB" in full
    assert f"12 bytes x N = {12 * PARAMS / GB:.2f} GB" in without
    assert f"2 bytes x N + 16 bytes x 159,907,840 = {(2 * PARAMS + trained) / GB:.2f} GB" in lora
    assert f"the frozen weights alone are {2 * PARAMS / GB:.2f} GB" in lora
    shown = f"{base / GB:.3f} GB + {trained / GB:.3f} GB = {(base + trained) / GB:.3f} GB"
    assert (
        this.strip() == f"this one          {shown}   base as stored; adapter, gradients, optimizer"
    )
    assert "10B parameters: 160 GB." in papers


def test_the_bits_of_offsets_and_scales_are_counted_twice(llama: PlannedModel) -> None:
    words = ("quant=int4_asym", "quant.block_size=32", "quant.double_quant=true")
    _, base, *_ = sections(explained(llama, *words))
    one = 8 / 32 + 32 / (32 * 256)
    saved = 2 * (32 / 32 - one)
    assert f"  linear layers of the blocks: 224, {LINEAR:,} weights" in base
    assert f"4 + 2 x (8/32 + 32/(32 x 256)) = {4 + 2 * one:.3f} bits a weight, " in base
    assert f"saves {saved:.3f} bits a weight = {saved * LINEAR / 8 / GB:.3f} GB" in base
    shown = float(base.rpartition(": ")[2].removesuffix(" MiB"))
    assert shown == pytest.approx(OTHERS / MIB, abs=0.02)  # and the tables of the format
    _, plain, *_ = sections(explained(llama, "quant=none"))
    assert plain.splitlines()[1] == "  16.000 bits a weight"


def test_full_fine_tuning_has_a_copy_in_float32_beside_16_bit_weights(llama: PlannedModel) -> None:
    alternatives, _, whole, training = sections(explained(llama, "quant=none", "lora=none"))
    assert "LoRA" not in alternatives
    stored = 2 * PARAMS + 512
    shown = (
        f"{stored / GB:.3f} GB + {16 * PARAMS / GB:.3f} GB = {(stored + 16 * PARAMS) / GB:.3f} GB"
    )
    assert f"this one          {shown}   base as stored; gradients" in alternatives
    first, second = whole.splitlines()
    gib = 4 * PARAMS / 2**30
    assert first == (
        f"  {PARAMS:,} parameters: weights in bfloat16 {gib / 2:.2f} GiB, gradients x 4 bytes = "
        f"{gib:.2f} GiB (float32)"
    )
    assert f"x 4 bytes = {gib:.2f} GiB; rounded anew" in second
    assert training.splitlines()[0] == f"  adamw: {2 * gib:.2f} GiB, 8.00 bytes a parameter"


def test_magnitudes_and_what_is_trained_whole_have_their_part(llama: PlannedModel) -> None:
    words = ("lora.rank=8", "lora.method=dora", "lora.target_modules=[q_proj,down_proj]")
    _, _, adapter, *_ = sections(explained(llama, *words, "lora.train_also=[lm_head]"))
    queries, down = 32 * (8 * 8192 + 4096), 32 * (8 * (11008 + 4096) + 4096)
    total = queries + down + 32000 * 4096
    assert adapter.splitlines() == [
        f"  q_proj     32 x (8 x (4096 + 4096) + 4096) = {queries:,}",
        f"  down_proj  32 x (8 x (11008 + 4096) + 4096) = {down:,}",
        "  trained whole: lm_head = 131,072,000",
        f"  {total:,} parameters x 4 bytes = {4 * total / MIB:.2f} MiB, gradients as much (float32)",
    ]


def test_training_says_what_is_kept_and_where(llama: PlannedModel) -> None:
    *_, training, _ = sections(explained(llama, "optim.gradient_checkpointing=true"))
    state, activations, _, moment = training.splitlines()
    assert state.endswith(" MiB, 8.00 bytes a parameter")
    # An input of 2 x 64 x 4096 in two bytes for each block, and what follows the last one.
    assert "activations of 2 x 64 positions, 50 of them with loss:" in activations
    kept = float(activations.split(": ")[1].split()[0])
    assert 32 <= kept < 32 + 20
    assert activations.endswith("MiB (inputs of blocks)")
    assert moment.startswith("  for a moment: ")
    *_, training, _ = sections(explained(llama, device="cpu"))
    assert "(everything backward needs)" in training
    assert "for a moment" not in training


def test_the_toy_is_two_ranks_of_a_square_matrix(llama: PlannedModel) -> None:
    *_, toy = sections(explained(llama, "lora.rank=64"))
    assert f"2 r sqrt(N) = 2 x 64 x sqrt({PARAMS:,}) = {128 * PARAMS**0.5:,.0f}:" in toy


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
