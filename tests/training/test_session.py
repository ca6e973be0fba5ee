"""How runs end and go on: checkpoints, interruption, damage, keep-best, architectures."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.schema import (
    CheckpointConfig,
    LoraConfig,
    OptimizerName,
    QuantConfig,
    QuantFormat,
    Schedule,
)
from harness.engine.shared_base import SharedBase
from harness.records.metrics_log import read_metrics
from harness.records.record import Record, RunStatus, read_record
from harness.records.scores import read_scores
from harness.training.checkpoint import load_newest_checkpoint
from harness.training.job import Job
from harness.training.session import Queue, RunEnded, StepDone, train
from harness.training.stop import StopRequest
from tests.learned import learned
from tests.random_models import SHAPES, save_random_model
from tests.training.conftest import MakeBase, MakeJob
from tests.training.side_by_side import SideBySide

CPU = torch.device("cpu")
LORA = LoraConfig(alpha_over_rank=2.0, dropout=0.2)


def run_one(shared: SharedBase, job: Job, stop_after: int | None = None) -> Record:
    """Train one job; with `stop_after`, ask for a stop when so many steps are done."""
    stop = StopRequest()
    for event in train(shared, Queue([job]), sizer=SideBySide(1), stop=stop):
        if isinstance(event, StepDone) and event.entry.slot.progress.step == stop_after:
            stop.signal = signal.SIGTERM
        if isinstance(event, RunEnded):
            return event.record
    raise AssertionError("the session ended without the run")


def weights(job: Job) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(job.directory.adapter / "adapter_model.safetensors")


def assert_same_end(one: Job, other: Job) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert learned(one.directory.metrics) == learned(other.directory.metrics)
    results = [read_record(job.directory.record).evals["after"] for job in (one, other)]
    assert results[0] == results[1]


@pytest.mark.parametrize("optimizer", [OptimizerName.adamw, OptimizerName.adamw_8bit])
def test_an_interrupted_run_goes_on_bit_for_bit(
    make_base: MakeBase, make_job: MakeJob, optimizer: OptimizerName
) -> None:
    shared = make_base()
    optim = {"name": optimizer, "warmup_steps": 2, "steps": 8}
    whole = make_job(shared, "whole", lora=LORA, optim=optim)
    run_one(shared, whole)
    parts = make_job(shared, "parts", lora=LORA, optim=optim)
    assert run_one(shared, parts, stop_after=5).status is RunStatus.interrupted
    record = run_one(make_base(), parts)
    assert record.status is RunStatus.completed
    assert "resumed after step 5" in record.notes
    assert_same_end(whole, parts)


def test_an_interrupted_run_stops_early_where_it_would_have(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    asked: dict[str, Any] = {
        "optim": {"lr": 0.3, "steps": 40, "patience": 3, "schedule": Schedule.reduce_lr_on_plateau},
        "eval": {"every_steps": 1},
    }
    whole = make_job(shared, "whole", lora=LORA, **asked)
    steps = [note for note in run_one(shared, whole).notes if note.startswith("stopped early")]
    parts = make_job(shared, "parts", lora=LORA, **asked)
    run_one(shared, parts, stop_after=2)
    assert [n for n in run_one(shared, parts).notes if n.startswith("stopped early")] == steps != []
    assert_same_end(whole, parts)


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    whole = make_job(shared, "whole", lora=LORA)
    run_one(shared, whole)
    parts = make_job(shared, "parts", lora=LORA, checkpoint=CheckpointConfig(every_steps=2))
    run_one(shared, parts, stop_after=5)
    newest = sorted(parts.directory.checkpoint.glob("step-*"))[-1]
    assert newest.name == "step-00000005"
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (newest / "optimizer.pt").write_bytes(content)
    record = run_one(shared, parts)
    notes = " ".join(record.notes)
    assert "step-00000005 is damaged (optimizer.pt does not match its hash)" in notes
    assert "resumed after step 4" in notes
    assert_same_end(whole, parts)


@pytest.mark.parametrize("harm", ["manifest.json", "adapter.pt"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(
    make_base: MakeBase, make_job: MakeJob, harm: str
) -> None:
    shared = make_base()
    job = make_job(shared, "run", checkpoint=CheckpointConfig(every_steps=1))
    run_one(shared, job, stop_after=3)
    newest = sorted(job.directory.checkpoint.glob("step-*"))[-1]
    (newest / harm).unlink()
    checkpoint, notes = load_newest_checkpoint(job.directory.checkpoint, "run", CPU)
    assert checkpoint is not None
    assert checkpoint.progress.step == 2
    assert len(notes) == 1


def test_checkpoints_are_few_and_gone_at_the_end(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    job = make_job(shared, "run", checkpoint=CheckpointConfig(every_steps=1, keep=2))
    run_one(shared, job, stop_after=4)
    names = sorted(path.name for path in job.directory.checkpoint.iterdir())
    assert names == ["step-00000003", "step-00000004"]
    run_one(shared, job)
    assert not job.directory.checkpoint.exists()


def test_keep_best_keeps_the_adapter_of_the_lowest_loss(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    settings = {"optim": {"lr": 0.2, "steps": 3}, "eval": {"every_steps": 1, "keep_best": True}}
    job = make_job(shared, "best", **settings)
    record = run_one(shared, job)
    curve = [row["eval/loss"] for row in read_metrics(job.directory.metrics).rows]
    assert curve[-1] > min(curve)  # pyright: ignore[reportOperatorIssue, reportArgumentType]
    assert record.evals["after"]["eval/loss"].value == pytest.approx(min(curve), abs=1e-6)  # pyright: ignore[reportArgumentType]


def test_divergence_is_a_result(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    job = make_job(shared, "hot", optim={"lr": 1e30, "steps": 50, "max_grad_norm": None})
    record = run_one(shared, job)
    assert record.status is RunStatus.diverged
    steps = [row["step"] for row in read_metrics(job.directory.metrics).rows]
    assert (record.error or "").startswith(f"step {steps[-1]}: loss ")
    assert read_record(job.directory.record).status is RunStatus.diverged
    assert not job.directory.adapter.exists()


def test_memory_parts_are_the_bytes_that_they_name(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base(QuantConfig(format=QuantFormat.none))
    record = run_one(shared, make_job(shared, "run", lora=LoraConfig(rank=4, alpha=8.0)))
    metrics = record.metrics
    per_layer = 4 * (2 * (128 + 128) + 2 * (128 + 64) + 2 * (128 + 384) + (384 + 128))
    parameters = 2 * per_layer
    assert metrics["adapter/trainable_params"] == parameters
    assert metrics["memory/adapter_bytes"] == metrics["memory/gradient_bytes"] == 4 * parameters
    assert metrics["memory/optimizer_bytes"] == 2 * 4 * parameters + 2 * 4  # m, v, steps of A and B
    assert metrics["base/logical_params"] == 524_928
    parts = [v for k, v in metrics.items() if k.startswith("memory/") and "peak" not in k]
    assert len(parts) == 6
    assert metrics["memory/peak_bytes"] == sum(part for part in parts if part is not None)
    assert metrics["throughput/input_tokens_per_second"] > 0  # pyright: ignore[reportOptionalOperand]


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("quant_format", [QuantFormat.nf4, QuantFormat.int4])
def test_other_architectures_train(
    make_base: MakeBase,
    make_job: MakeJob,
    tmp_path: Path,
    model_type: str,
    quant_format: QuantFormat,
) -> None:
    model = save_random_model(tmp_path / model_type, model_type, **SHAPES[model_type])
    shared = make_base(QuantConfig(format=quant_format), model)
    lora, optim = LoraConfig(rank=2, alpha=4.0), {"steps": 3, "lr": 2e-2}
    solo = make_job(shared, "solo", lora=lora, optim=optim)
    assert run_one(shared, solo).status is RunStatus.completed
    same = make_job(shared, "same", lora=lora, optim=optim)
    pair = [same, make_job(shared, "other", seed=1)]
    list(train(shared, Queue(pair), sizer=SideBySide(2), stop=StopRequest()))
    rows = [read_metrics(job.directory.metrics).rows for job in (solo, same)]
    assert [row["train/loss"] for row in rows[0]] == pytest.approx(
        [row["train/loss"] for row in rows[1]], abs=1e-6
    )
    record = read_record(solo.directory.record)
    assert record.evals["after"]["eval/loss"].value < record.evals["before"]["eval/loss"].value


def test_the_record_says_running_until_it_ends(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    job = make_job(shared, "run")
    seen = set()
    for event in train(shared, Queue([job]), sizer=SideBySide(1), stop=StopRequest()):
        if isinstance(event, StepDone) and not event.entry.slot.finished:
            seen.add(json.loads(job.directory.record.read_text())["status"])
    assert seen == {"running"}
    assert read_record(job.directory.record).status is RunStatus.completed


def test_costs_of_a_shared_process_are_not_recorded(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    jobs = [make_job(shared, name, seed=i) for i, name in enumerate(("one", "two"))]
    list(train(shared, Queue(jobs), sizer=SideBySide(2), stop=StopRequest()))
    record = read_record(jobs[0].directory.record)
    assert record.measured_in.value == "cohort"
    assert record.metrics.get("memory/peak_bytes") is None
    assert record.metrics.get("throughput/step_ms") is None
    assert record.metrics["memory/adapter_bytes"]


def test_no_steps_evaluate_the_untouched_model_and_train_nothing(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base(QuantConfig(format=QuantFormat.nf4))
    job = make_job(shared, "zero", optim={"steps": 0}, lora=LORA)
    record = run_one(shared, job)
    assert record.status is RunStatus.completed
    assert record.evals["after"] == record.evals["before"]
    assert not read_metrics(job.directory.metrics).rows
    scores = {phase: read_scores(job.directory.scores, phase) for phase in ("before", "after")}
    assert scores["after"] == scores["before"]
    assert len(scores["after"]["eval/loss"].rows) == 8
    assert all(not tensor.any() for key, tensor in weights(job).items() if "lora_B" in key)
