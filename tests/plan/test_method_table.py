"""What the methods take, by hand: 16 bytes a parameter that is trained, 2 or 4.127 bits one that is not."""

import pytest

from harness.commands.plan_table import _counted_in
from harness.config.schema import ModelConfig
from harness.plan.method_table import formulas, method_bytes, method_rows, text_of_ten_billion
from harness.plan.model import PlannedModel

PARAMS, ADAPTER = 6_738_415_616, 159_907_840  # Llama-2-7B, rank 64 on all linear layers
NF4 = 6_476_005_376 * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * (PARAMS - 6_476_005_376)


def test_the_lines_of_a_model_are_the_papers_arithmetic(llama: PlannedModel) -> None:
    counted = _counted_in(llama, "llama2_7b", ModelConfig(), ["all_linear"])
    found = method_bytes(llama, counted, 64)
    assert found is not None
    full, lora, qlora = 16 * PARAMS, 2 * PARAMS + 16 * ADAPTER, NF4 + 16 * ADAPTER
    assert found.tree() == {
        "model": "llama2_7b",
        "params": PARAMS,
        "adapter_params": ADAPTER,
        "full_fine_tuning_bytes": full,
        "lora_bytes": pytest.approx(lora, abs=512),  # rotary tables
        "qlora_bytes": pytest.approx(qlora, rel=1e-6),
    }
    cells = [f"{each / 1e9:.2f}" for each in (full, lora, qlora)]
    assert method_rows([found])[1] == ["llama2_7b", f"{PARAMS:,}", f"{ADAPTER:,}", *cells]
    first, second, _, fourth = formulas(found)
    assert first.startswith(f"full   16 bytes x N = 16 x {PARAMS / 1e9:.3f} = {cells[0]} GB:")
    assert f"= {2 * PARAMS / 1e9:.2f} + 16 x {ADAPTER / 1e9:.4f} = {cells[1]} GB" in second
    assert f"= {NF4 / 1e9:.2f} + {16 * ADAPTER / 1e9:.2f} = {cells[2]} GB" in fourth


def test_a_rank_above_the_smallest_dimension_has_no_line(llama: PlannedModel) -> None:
    counted = _counted_in(llama, "llama2_7b", ModelConfig(), ["q_proj"])
    assert method_bytes(llama, counted, 4096) is not None
    assert method_bytes(llama, counted, 4097) is None


def test_what_would_make_the_known_explanations_numbers() -> None:
    """40 GB are 20 of 16-bit weights and 20 more; 12 GB are 10B x 4.127 bits and the rest."""
    text = "\n".join(text_of_ten_billion())
    assert "40 GB = 4 bytes x N = 20 of weights + 20: as much" in text
    assert f"would have {20 / 16:.2f}B parameters, {100 * 20 / 16 / 10:.1f} % of the model" in text
    packed = 10 * 4.127 / 8
    assert f"12 GB = {packed:.2f} of NF4 weights (4.127 bits each) + {12 - packed:.2f}:" in text
    assert f"an adapter of {(12 - packed) / 16:.2f}B parameters" in text
