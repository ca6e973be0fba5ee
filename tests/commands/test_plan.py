"""`harness plan` as it is typed: parts of a run, what of a sweep fits, measured beside predicted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import dispatch
from harness.plan.settings import shape_names

SHAPE = ("plan.shape=qwen2.5_0.5b", "plan.device=cuda", "optim.micro_batch_size=1")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert dispatch(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_a_shape_is_planned_without_weights_data_or_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = planned(capsys, *SHAPE, "data.max_length=128", "--budget", "24GiB")
    assert "computed in bfloat16" in text
    assert "micro-batch 1 x 128 positions, 128 with loss (stated, loss on all positions)" in text
    assert "fits 24.00 GiB; side by side up to" in text
    assert list(tmp_path.iterdir()) == []


def test_json_has_the_metrics_and_parts_that_a_record_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = json.loads(planned(capsys, *SHAPE, "--json"))
    assert tree["metrics"]["memory/base_bytes"] == tree["parts"]["base"]
    assert tree["metrics"]["memory/peak_bytes"] == tree["peak_bytes"]
    assert tree["device"] == "cuda"
    assert tree["measured"] == {}


def test_more_memory_fits_more_runs_and_too_little_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def runs(budget: str) -> int:
        words = planned(capsys, *SHAPE, "data.max_length=64", "--budget", budget).split()
        return int(words[words.index("to") + 1])

    assert 1 <= runs("2GiB") < runs("4GiB")
    text = planned(capsys, *SHAPE, "data.max_length=64", "--budget", "256MiB")
    assert "does not fit 256.00 MiB" in text


def test_checkpointing_a_smaller_batch_and_a_lower_rank_need_less(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def peak(*overrides: str) -> int:
        return json.loads(planned(capsys, *SHAPE, *overrides, "--json"))["peak_bytes"]

    usual = peak()
    assert peak("optim.gradient_checkpointing=true") < usual
    assert peak("data.max_length=1024") > usual
    assert peak("lora.rank=2") < usual
    assert peak("quant=none") > usual


def test_a_probe_measures_what_was_predicted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = [f"paths.out={tmp_path}", "optim.batch_size=4", "lora.rank=2", "--json"]
    alone = json.loads(planned(capsys, *request))
    assert alone["measured"] == {}
    probed = json.loads(planned(capsys, *request, "--probe"))
    for part in ("base", "quant_constants", "adapter", "gradient", "optimizer", "activation"):
        name = f"memory/{part}_bytes"
        assert probed["measured"][name] == pytest.approx(probed["metrics"][name], rel=0.05), part
    assert probed["measured"]["throughput/step_ms"] > 0
    (record,) = (tmp_path / "runs").glob("*/run.json")
    stamp = record.stat().st_mtime_ns
    again = json.loads(planned(capsys, *request, "--probe"))
    assert again["measured"] == probed["measured"]
    assert record.stat().st_mtime_ns == stamp  # what is known is not measured again
    assert json.loads(record.read_text())["measured_in"] == "probe"


def test_a_sweep_shows_each_configuration_that_costs_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = planned(
        capsys,
        "rank",
        f"paths.out={tmp_path}",
        *("--budget", "200MiB", "plan.tokens_per_second=10000"),
    )
    lines = text.splitlines()
    (head,) = (line for line in lines if line.startswith("lora.rank  cells"))
    table = lines[lines.index(head) + 1 : lines.index(head) + 6]
    assert [line.split()[0] for line in table] == [
        "16",
        "8",
        "4",
        "2",
        "1",
    ]  # optim.lr costs nothing
    assert {line.split()[1] for line in table} == {"5"}
    assert "everything fits 200.00 MiB" in text
    assert "time: at most" in text


def test_stated_tokens_per_second_give_the_time_of_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*SHAPE, "optim.batch_size=4", "optim.steps=100", "data.max_length=128"]
    text = planned(capsys, *words, "plan.tokens_per_second=512")
    assert "100 steps alone: 100.0 s" in text  # 4 x 128 positions a step, one step a second
    assert "steps alone" not in planned(capsys, *words)


@pytest.mark.parametrize(
    ("devices", "words"), [("auto", "on 4 GPUs"), ("[0,2]", "on 2 GPUs"), ("[1,1]", "one device;")]
)
def test_the_time_of_a_sweep_is_shared_by_the_gpus_that_it_takes(
    devices: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    given = ["plan.device=cuda", "plan.tokens_per_second=1e4", f"resources.devices={devices}"]
    (line,) = (
        line
        for line in planned(capsys, "rank", f"paths.out={tmp_path}", *given).splitlines()
        if line.startswith("time:")
    )
    assert words in line


def test_what_does_not_fit_is_shown_and_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = planned(capsys, "rank", f"paths.out={tmp_path}", "--budget", "4MiB")
    assert "does not fit 4.00 MiB of memory, margin 5%: 25 of 25 points" in text
    assert "time: unknown; measure it with --probe" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan.shape=llama7b"], "llama2_7b"),
        (["--budget", "lots"], "24GiB"),
        (["demo", "--explain"], "about one run"),
        ([*SHAPE, "--probe"], "--probe needs a model"),
        (["demo", *SHAPE[:2], "--probe"], "--probe needs a model"),
        (["demo", "plan.cohort=4"], "resources.cohort"),
        ([*SHAPE, "model=embedded"], "model would be ignored beside plan.shape"),
        (["plan.shape=pythia_160m", "data.max_length=4096"], "2048"),
        (["lora.target_modules=[nothing]", "plan.length=8"], "matches no linear layer"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_names_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, "--help")
    assert all(name in text for name in shape_names())


def test_planning_a_shape_loads_no_library_that_it_does_not_need() -> None:
    program = (
        "import sys; from harness.cli.main import dispatch; "
        f"dispatch(['plan', *{SHAPE!r}]); "
        "print([name for name in ('peft', 'bitsandbytes', 'datasets', 'wandb', 'optuna') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")
