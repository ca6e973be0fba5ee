"""A run whose rows several processes share is the run of one; what goes wrong in one, the run says."""

import signal
from pathlib import Path
from typing import Any

import pytest

from harness.config.resources import BackendName
from harness.config.schema import (
    CheckpointConfig,
    LoraConfig,
    LoraMethod,
    ModelConfig,
    OptimizerName,
    PathsConfig,
    QuantConfig,
    QuantFormat,
    ResourcesConfig,
    RunConfig,
)
from harness.engine.shared_base import SharedBase
from harness.errors import RunFailed
from harness.parallel.group import join
from harness.records.metrics_log import read_metrics
from harness.records.record import Record, RunStatus, read_record
from harness.training.checkpoint import load_newest_checkpoint
from harness.training.job import Job
from harness.training.passes import ALONE, Ranks
from harness.training.session import Queue, RunEnded, StepDone, train
from harness.training.stop import StopRequest
from tests.parallel.conftest import Lead
from tests.parallel.following import Harm
from tests.training.conftest import MakeBase, MakeJob
from tests.training.side_by_side import SideBySide

CLOSE = 1e-5


def run_all(
    shared: SharedBase,
    jobs: list[Job],
    ranks: Ranks = ALONE,
    *,
    slots: int = 1,
    stop_after: int | None = None,
) -> dict[str, Record]:
    """Train jobs, each as a run of so many processes as there are; ask for a stop after a step."""
    stop, records = StopRequest(), {}
    for job in jobs:
        job.config.resources = ResourcesConfig(device="cpu", data_parallel=ranks.size)
    for event in train(shared, Queue(jobs), sizer=SideBySide(slots), stop=stop, ranks=ranks):
        if isinstance(event, StepDone) and event.entry.slot.progress.step == stop_after:
            stop.signal = signal.SIGTERM
        if isinstance(event, RunEnded):
            records[event.record.run_id] = event.record
    return records


def curve(job: Job, name: str = "train/loss") -> list[float]:
    return [row[name] for row in read_metrics(job.directory.metrics).rows if name in row]  # pyright: ignore[reportReturnType]


def assert_same(one: Job, other: Job) -> None:
    """Compare what two runs have logged and how they are scored."""
    assert len(curve(one)) > 0
    for name in ("train/loss", "eval/loss"):
        assert curve(other, name) == pytest.approx(curve(one, name), abs=CLOSE)
    norms = curve(one, "train/grad_norm")
    assert curve(other, "train/grad_norm") == pytest.approx(norms, rel=CLOSE)
    scored = [read_record(job.directory.record).evals["after"]["eval/loss"] for job in (one, other)]
    assert scored[1].value == pytest.approx(scored[0].value, abs=CLOSE)
    assert scored[1].n == scored[0].n


RUNS: dict[str, dict[str, Any]] = {
    "dropout, micro-batches": {
        "lora": LoraConfig(alpha_over_rank=2.0, dropout=0.3),
        "optim": {"micro_batch_size": 2, "steps": 4},
        "eval": {"every_steps": 2},
    },
    "dropout, recomputed": {
        "lora": LoraConfig(alpha_over_rank=2.0, dropout=0.3),
        "optim": {"gradient_checkpointing": True, "steps": 4},
    },
    "8-bit optimizer, rows of several examples": {
        "optim": {"name": OptimizerName.adamw_8bit, "steps": 4},
        "data": {"packing": True, "max_length": 128},
    },
}


def test_two_processes_train_what_one_trains(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()
    with lead() as leader:
        for name, sections in RUNS.items():
            alone, together = (make_job(shared, f"{name} {n}", **sections) for n in (1, 2))
            run_all(shared, [alone])
            record = run_all(shared, [together], leader)[together.run_id]
            assert record.status is RunStatus.completed
            assert_same(alone, together)


def test_two_processes_train_a_whole_model_as_one_does(
    make_base: MakeBase, make_job: MakeJob, lead: Lead, pretrained: Path, tmp_path: Path
) -> None:
    quant, lora = QuantConfig(format=QuantFormat.none), LoraConfig(method=LoraMethod.none)

    def job(name: str) -> tuple[SharedBase, Job]:
        shared = make_base(quant, pretrained, BackendName.reference)
        return shared, make_job(shared, name, lora=lora, quant=quant, optim={"steps": 3})

    shared, alone = job("alone")
    run_all(shared, [alone])
    config = RunConfig(
        model=ModelConfig(name=str(pretrained)),
        quant=quant,
        lora=lora,
        resources=ResourcesConfig(device="cpu", data_parallel=2),
        paths=PathsConfig(out=str(tmp_path)),
    )
    shared, together = job("together")
    with lead(config=config) as leader:
        assert run_all(shared, [together], leader)["together"].status is RunStatus.completed
    assert_same(alone, together)


def test_three_processes_may_have_unequal_shares(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    """A batch is not refused here: out of memory divides it as far as it goes."""
    shared = make_base(QuantConfig(format=QuantFormat.int4))
    lora, optim = LoraConfig(rank=4, alpha=8.0, dropout=0.1), {"batch_size": 8, "steps": 4}
    alone, together, tiny = (
        make_job(shared, n, lora=lora, optim=optim) for n in ("alone", "together", "tiny")
    )
    tiny.config.optim.micro_batch_size = 2
    run_all(shared, [alone])
    with lead(3, QuantConfig(format=QuantFormat.int4)) as leader:
        run_all(shared, [together], leader)
        assert_same(alone, together)
        run_all(shared, [tiny], leader)
        assert len(curve(tiny)) == 4


def test_each_run_of_a_cohort_is_as_alone(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()

    def jobs(prefix: str) -> list[Job]:
        """Four runs, of which one ends early, one diverges and one comes when there is room."""
        optims = [{"steps": 3}, {}, {"lr": 1e30, "steps": 50, "max_grad_norm": None}, {"steps": 4}]
        loras = [LoraConfig(rank=2 + 2 * (i % 2), alpha=8.0, dropout=i / 10) for i in range(4)]
        return [
            make_job(shared, f"{prefix}{i}", seed=i, lora=loras[i], optim=optims[i])
            for i in range(4)
        ]

    alone, together = jobs("alone"), jobs("together")
    for job in alone:
        run_all(shared, [job])
    with lead() as leader:
        records = run_all(shared, together, leader, slots=3)
    assert [records[job.run_id].status for job in together] == [
        RunStatus.completed,
        RunStatus.completed,
        RunStatus.diverged,
        RunStatus.completed,
    ]
    for i in (0, 1, 3):
        assert_same(alone[i], together[i])


def test_a_run_goes_on_with_another_number_of_processes(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()
    lora = LoraConfig(alpha_over_rank=2.0, dropout=0.2)
    whole, parts = (make_job(shared, n, lora=lora, optim={"steps": 8}) for n in ("whole", "parts"))
    run_all(shared, [whole])
    assert run_all(shared, [parts], stop_after=3)["parts"].status is RunStatus.interrupted
    with lead() as leader:
        assert run_all(shared, [parts], leader, stop_after=6)["parts"].error == "stopped by SIGTERM"
        kept, _ = load_newest_checkpoint(parts.directory.checkpoint, "parts", shared.base.device)
        assert kept is not None
        assert kept.progress.step == 6
        assert run_all(shared, [parts], leader)["parts"].status is RunStatus.completed
    assert_same(whole, parts)


# What goes wrong ---------------------------------------------------------------------------------


def test_memory_that_only_another_process_lacks_divides_the_micro_batch(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()
    sections: dict[str, Any] = {"lora": LoraConfig(alpha=8.0, dropout=0.0), "optim": {"steps": 3}}
    sections["data"] = {"packing": True, "max_length": 32}  # rows that stay as many as they are
    sections["optim"] |= {"batch_size": 8}
    alone, together = (make_job(shared, n, **sections) for n in ("alone", "together"))
    run_all(shared, [alone])
    with lead(harm=Harm.one_row_fits) as leader:
        record = run_all(shared, [together], leader)["together"]
    assert record.status is RunStatus.completed
    assert [note for note in record.notes if "out of memory" in note][-1].endswith(
        "went on with 2 (the same batch)"
    )
    assert_same(alone, together)


def test_a_base_that_does_not_fit_beside_another_process_is_out_of_memory(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()
    with lead(harm=Harm.base_does_not_fit) as leader:
        record = run_all(shared, [make_job(shared, "run")], leader)["run"]
    assert record.status is RunStatus.out_of_memory
    assert record.error == "process 1: OutOfMemoryError: no room for the base"


def test_an_error_in_another_process_ends_the_run_and_not_the_session(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()
    with lead(harm=Harm.second_pass_fails) as leader:
        jobs = [make_job(shared, name) for name in ("first", "next")]
        records = run_all(shared, jobs, leader)
    assert records["first"].status is RunStatus.failed
    assert "process 1: ValueError: a layer has had enough (see " in (records["first"].error or "")
    assert "1.log" in (records["first"].error or "")
    assert records["next"].status is RunStatus.completed


def test_an_adapter_that_begins_otherwise_elsewhere_is_not_trained(
    make_base: MakeBase, make_job: MakeJob, lead: Lead
) -> None:
    shared = make_base()
    with lead(harm=Harm.begins_otherwise) as leader:
        job = make_job(shared, "run", checkpoint=CheckpointConfig(every_steps=1))
        record = run_all(shared, [job], leader)["run"]
    assert record.status is RunStatus.failed
    assert "begins otherwise in process 1 than in process 0" in (record.error or "")
    assert curve(job) == []


def test_a_run_that_asks_for_two_processes_is_not_trained_by_one(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base()
    job = make_job(shared, "run", resources=ResourcesConfig(data_parallel=2))
    (record,) = [
        event.record
        for event in train(shared, Queue([job]), sizer=SideBySide(1), stop=StopRequest())
        if isinstance(event, RunEnded)
    ]
    assert record.status is RunStatus.failed
    assert "asks for 2 processes, and 1 would train this run" in (record.error or "")
    assert curve(job) == []
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunFailed, match="asks for 2 processes, and 1 would"):
        join(ResourcesConfig(device="cpu", data_parallel=2)).__enter__()
