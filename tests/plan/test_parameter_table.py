"""Adapter sizes over ranks and models: the papers' counts, fused projections, and the toy named as one."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.base.targets import AdaptedShape, LinearSpec
from harness.cli.main import dispatch
from harness.commands.plan_table import _counted
from harness.config.schema import ModelConfig
from harness.errors import RequestError
from harness.plan.parameter_table import (
    CountedModel,
    _short,
    counted_model,
    table_rows,
    toy_rows,
    worked_example,
)
from tests.random_models import SHAPES, save_random_model

QV = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def gpt3():
    return _counted("gpt3_175b", ModelConfig(), QV)


@pytest.mark.parametrize(("rank", "params"), [(1, 4_718_592), (8, 37_748_736), (64, 301_989_888)])
def test_queries_and_values_of_gpt3_are_counted_as_in_loras_table(gpt3, rank, params):
    """LoRA, section 5.5 and table 6: 4.7M, 37.7M and 301.9M, with W_q and W_v apart."""
    assert gpt3.adapter_params(rank) == params


@pytest.mark.parametrize(
    ("targets", "rank"), [(["q_proj"], 8), (QV, 4), (["q_proj", "k_proj", "v_proj", "o_proj"], 2)]
)
def test_loras_table_5_has_18_million_whatever_is_adapted(targets, rank):
    params = _counted("gpt3_175b", ModelConfig(), targets).adapter_params(rank)
    assert params is not None
    assert round(params / 1e6) in (18, 19)


@pytest.mark.parametrize(
    ("kind", "of_qv"),
    [
        ("llama", (64 + 64) + (64 + 32)),  # two key-value heads of four
        ("gpt2", 2 * (64 + 64)),
        ("gpt_neox", 2 * (64 + 64)),
    ],
)
def test_fused_and_separate_projections_count_alike(tmp_path: Path, kind, of_qv):
    directory = save_random_model(tmp_path, kind, **SHAPES[kind])
    counted = _counted(None, ModelConfig(name=str(directory)), QV)
    assert counted.adapter_params(3) == 2 * 3 * of_qv


def test_a_part_that_a_model_does_not_have_is_refused_by_name():
    with pytest.raises(RequestError, match=r"gpt3_175b: .*'gate_proj' matches no linear layer"):
        _counted("gpt3_175b", ModelConfig(), ["gate_proj"])


def test_a_run_that_wants_a_part_of_a_fused_matrix_is_told_which_has_it(capsys):
    assert dispatch(["plan", "plan.shape=gpt3_175b", "lora=qv", "plan.length=8"]) == 2
    assert "c_attn has it, with k_proj and v_proj" in capsys.readouterr().err


def test_a_rank_above_the_smallest_dimension_is_no_adapter():
    counted = _counted("gemma_2b", ModelConfig(), ["all_linear"])
    assert counted.most == 256  # of its one key-value head
    assert counted.adapter_params(257) is None


def test_the_toy_has_the_popular_tables_numbers():
    rows = {row[0]: row[1:] for row in toy_rows()}
    assert rows["1"] == ["167K", "228K", "529K", "849K"]
    assert rows["512"][0] == "85.7M"


def test_the_worked_example_multiplies_right():
    text = "\n".join(worked_example())
    assert "6 in place of 9" in text
    assert "12 numbers" in text
    assert "[12 15 18]" in text  # 3 x (4, 5, 6)
    assert "[ 6 11  6]" in text  # 1 x (4, 5, 6) + 2 x (1, 3, 0)


def test_the_command_prints_each_table_and_says_which_is_the_toy(capsys):
    words = ["plan", "--table", "plan.shape=llama2_7b", "plan.ranks=1,64", "lora=qv"]
    assert dispatch(words) == 0
    printed = capsys.readouterr().out
    assert "524,288" in printed  # facts of LLaMA-7B: r=1 on q, v
    assert "A toy: 2 r sqrt(N)" in printed
    assert dispatch([*words, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    (model,) = tree["models"]
    assert model["adapters"][0] == {
        "rank": 1,
        "params": 524_288,
        "share": 524_288 / 6_738_415_616,
        "bytes": 4 * 524_288,
    }


def test_methods_stand_side_by_side_for_a_model_of_ten_billion(capsys):
    """Weights in 16 bits are 2 bytes each; those of the blocks in nf4_dq 4.127 bits."""
    words = ["plan", "--table", "plan.shape=llama2_7b", "lora=qv", "lora.rank=1"]
    assert dispatch([*words, "--json"]) == 0
    llama, ten = json.loads(capsys.readouterr().out)["methods"]
    assert (llama["model"], ten["model"]) == ("llama2_7b", "falcon3_10b")
    assert llama["full_fine_tuning_bytes"] == 16 * 6_738_415_616
    assert llama["lora_bytes"] == pytest.approx(2 * 6_738_415_616 + 16 * 524_288, rel=1e-6)
    embeddings = 2 * 32000 * 4096
    nf4 = (6_738_415_616 - embeddings) * 4.127 / 8 + 2 * embeddings
    assert llama["qlora_bytes"] == pytest.approx(nf4 + 16 * 524_288, rel=1e-3)
    assert ten["params"] == 10_305_653_760
    assert dispatch(words) == 0
    printed = capsys.readouterr().out
    assert "full   16 bytes x N = 16 x 10.306 = 164.89 GB" in printed
    assert "A toy: explanations of QLoRA have 160, 40 and 12 GB" in printed
    assert "40 GB = 4 bytes x N = 20 of weights + 20:" in printed
    assert "12 GB = 5.16 of NF4 weights" in printed


def test_layers_that_the_model_of_ten_billion_lacks_leave_it_out(capsys):
    targets = "lora.target_modules=[query_key_value]"
    assert dispatch(["plan", "--table", "plan.shape=pythia_160m", targets, "--json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)["methods"]
    assert only["model"] == "pythia_160m"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "--explain"], "--table goes with --json only"),
        (["plan.ranks=1,2"], "ignored without --table"),
        (["--table", "plan.ranks=1,x"], "no list of ranks"),
        (["--table", "plan.ranks=0"], "no list of ranks"),
        (["--table", "plan.shape=llama2_7"], "near names"),
        (["--table", "plan.shape=llama2_7b", "model=embedded"], "ignored beside plan.shape"),
    ],
)
def test_what_makes_no_table_is_refused(words, message, capsys):
    assert dispatch(["plan", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(1500, "2K"), (167_000, "167K"), (999_499, "999K"), (1_000_000, "1.0M"), (1_150_000, "1.1M"),
     (86_000_000, "86.0M"), (1_050_000, "1.1M"), (11_850_000, "11.8M")],
)  # fmt: skip
def test_counts_are_thousands_or_millions(count: float, text: str) -> None:
    """As the nearest numbers in binary round: 1.15 lies below, and 1.05 above."""
    assert _short(count) == text


def made(*linears: LinearSpec, targets: list[str], **dimensions: int) -> CountedModel:
    text = SimpleNamespace(**dimensions)
    config = SimpleNamespace(get_text_config=lambda: text)
    return counted_model("made", config, 1_000_000, linears, targets)


@pytest.mark.parametrize(
    ("target", "outputs"),
    [
        ("q_proj", 4 * 32),
        ("k_proj", 2 * 32),
        ("v_proj", 2 * 32),
        ("gate_proj", 200),
        ("up_proj", 200),
    ],
)
@pytest.mark.parametrize("head", [{"head_dim": 32}, {"hidden_size": 128}])
def test_a_part_of_a_fused_matrix_has_the_outputs_that_are_its_own(target, outputs, head) -> None:
    """Four heads of 32 with two of keys and of values in 256 outputs; gate and up in halves of 400."""
    layers = [
        LinearSpec(f"layers.{n}.{name}", 64, size)
        for n in range(2)
        for name, size in (("attn.qkv_proj", 256), ("mlp.gate_up_proj", 400))
    ]
    found = made(*layers, targets=[target], num_attention_heads=4, **head)
    assert found.shapes == (AdaptedShape(64, outputs),) * 2
    assert found.adapter_params(5) == 2 * 5 * (64 + outputs)
    assert found.most == min(64, outputs)
    assert found.adapter_params(found.most) is not None
    assert found.adapter_params(found.most + 1) is None


def test_a_table_has_counts_shares_and_bytes_of_every_model() -> None:
    small = made(LinearSpec("layers.0.mlp.up_proj", 8, 100), targets=["up_proj"])
    large = made(LinearSpec("layers.0.mlp.up_proj", 300, 212), targets=["up_proj"])
    tables = dict(table_rows([small, large], [1, 8, 9]))
    assert tables == {
        "Parameters": [
            ["rank", "made", "made"],
            ["1", "108", "512"],
            ["8", "864", "4,096"],
            ["9", "—", "4,608"],
        ],
        "Share of the model's own parameters": [
            ["rank", "made", "made"],
            ["1", "0.0108 %", "0.0512 %"],
            ["8", "0.0864 %", "0.4096 %"],
            ["9", "—", "0.4608 %"],
        ],
        "Bytes in float32": [
            ["rank", "made", "made"],
            ["1", "432 B", "2.00 KiB"],
            ["8", "3.38 KiB", "16.00 KiB"],
            ["9", "—", "18.00 KiB"],
        ],
    }


def test_the_worked_example_line_by_line() -> None:
    """B A by hand: (1, 2, 3) times (4, 5, 6); and with (2, 0, 1) times (1, 3, 0) added to it."""
    text = worked_example()
    assert text[1:4] == [
        "    [ 1] x [ 4  5  6] = [ 4  5  6]",
        "    [ 2]                [ 8 10 12]",
        "    [ 3]                [12 15 18]",
    ]
    assert text[5:8] == [
        "    [ 1  2] x [ 4  5  6] = [ 6 11  6]",
        "    [ 2  0]   [ 1  3  0]   [ 8 10 12]",
        "    [ 3  1]                [13 18 18]",
    ]
    assert "4096 x 4096 = 16,777,216 at rank 8 become 65,536" in text[-1]


def test_every_cell_of_the_toy_is_2_r_times_the_root() -> None:
    head, *rows = toy_rows()
    sizes = {"7B": 7e9, "13B": 13e9, "70B": 70e9, "180B": 180e9}
    assert head == ["rank", *sizes]
    for rank, *cells in rows:
        expected = [2 * int(rank) * size**0.5 for size in sizes.values()]
        shown = [float(cell[:-1]) * {"K": 1e3, "M": 1e6}[cell[-1]] for cell in cells]
        assert shown == pytest.approx(expected, rel=0.05)
    assert [int(row[0]) for row in rows] == [1, 2, 8, 16, 512]
