"""What must hold of a cohort: a run equals plain PEFT training, and neighbours change nothing."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from harness.config.schema import LoraConfig, LoraInit, QuantConfig, QuantFormat
from harness.data.order import batch_rows
from harness.engine.shared_base import SharedBase
from harness.records.metrics_log import read_metrics
from harness.records.record import Record, RunStatus
from harness.training import passes, session
from harness.training.job import Job
from harness.training.session import Queue, RunEnded, train
from harness.training.stop import StopRequest
from tests.training.conftest import MakeBase, MakeJob, jobs_below
from tests.training.side_by_side import SideBySide

CLOSE = 1e-6


def run_all(shared: SharedBase, jobs: list[Job], capacity: int) -> dict[str, Record]:
    events = list(train(shared, Queue(jobs), sizer=SideBySide(capacity), stop=StopRequest()))
    return {e.record.run_id: e.record for e in events if isinstance(e, RunEnded)}


def losses(job: Job) -> list[float]:
    return [row["train/loss"] for row in read_metrics(job.directory.metrics).rows]  # pyright: ignore[reportReturnType]


def worst(first: list[float], second: list[float]) -> float:
    """Return the largest difference; of losses above 1 as a part of them, as float32 has it."""
    assert len(first) == len(second) > 0
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(first, second, strict=True))


def plain_peft_losses(shared: SharedBase, job: Job) -> list[float]:
    """The same training written directly against PEFT; `shared.base.model` carries no adapter yet."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(job.config.seed)
    lora, optim, rows = job.config.lora, job.config.optim, job.data.train
    model = get_peft_model(
        shared.base.model,
        PeftConfig(r=lora.rank, lora_alpha=2 * lora.rank, target_modules="all-linear"),
    ).train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=optim.lr, weight_decay=0.0)
    curve = []
    for step in range(6):
        batch = rows.batch(batch_rows(len(rows), optim.batch_size, job.config.seed, step))
        logits = model(input_ids=batch.input_ids_BT).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.3)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("quant_format", [QuantFormat.none, QuantFormat.nf4, QuantFormat.int4])
def test_a_run_alone_equals_plain_peft(
    make_base: MakeBase, make_job: MakeJob, quant_format: QuantFormat
) -> None:
    quant = QuantConfig(format=quant_format)
    ours = make_base(quant)
    job = make_job(ours, "ours", optim={"lr": 5e-3})
    run_all(ours, [job], capacity=1)
    theirs = make_base(quant)
    assert worst(losses(job), plain_peft_losses(theirs, job)) < CLOSE
    assert losses(job)[0] - losses(job)[-1] > 1.0  # it did train


def eight_jobs(shared: SharedBase, make_job: MakeJob, prefix: str) -> list[Job]:
    """Ranks 2-32 (k_proj has no room for more), all else different too: targets, rates, dropout, length."""
    targets = [["all_linear"], ["q_proj", "v_proj"], ["mlp"], ["attention"]]
    return [
        make_job(
            shared,
            f"{prefix}{i}",
            seed=i,
            lora=LoraConfig(
                rank=[2, 4, 8, 16, 32, 3, 24, 32][i],
                alpha=float(1 + 3 * i),
                dropout=[0.0, 0.1, 0.0, 0.3, 0.05, 0.0, 0.2, 0.0][i],
                rslora=i % 3 == 1,
                target_modules=targets[i % 4],
                init=LoraInit.gaussian if i == 5 else LoraInit.default,
            ),
            optim={
                "lr": [2e-4, 4e-5, 8e-4, 1.2e-4][i % 4],
                "micro_batch_size": [4, 2, 1][i % 3],
                "steps": 4 + i % 3,
                "loraplus_ratio": [1.0, 4.0][i % 2],
                "max_grad_norm": None if i == 4 else 0.3,
            },
            eval={"every_steps": 2} if i == 2 else {},
        )
        for i in range(8)
    ]


@pytest.mark.parametrize(
    ("quant_format", "capacities"),
    [
        (QuantFormat.none, [3]),
        (QuantFormat.nf4, [8, 3]),
        (QuantFormat.int4, [8]),
    ],
)
def test_eight_different_runs_in_a_cohort_equal_the_eight_alone(
    make_base: MakeBase, make_job: MakeJob, quant_format: QuantFormat, capacities: list[int]
) -> None:
    """With capacity 3 slots are refilled as runs end, so every run has changing neighbours."""
    shared = make_base(
        QuantConfig(format=quant_format, double_quant=quant_format is QuantFormat.nf4)
    )
    alone = eight_jobs(shared, make_job, "alone")
    for job in alone:
        run_all(shared, [job], capacity=1)
    for capacity in capacities:
        together = eight_jobs(shared, make_job, f"{capacity} together ")
        records = run_all(shared, together, capacity=capacity)
        assert {record.status for record in records.values()} == {RunStatus.completed}
        for one, other in zip(alone, together, strict=True):
            assert worst(losses(one), losses(other)) < CLOSE


@pytest.fixture(scope="module")
def clean(
    make_base: MakeBase, sums: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SharedBase, list[Job]]:
    """A base, and the eight trained on it together, to whom nothing happens."""
    shared = make_base()
    jobs = eight_jobs(shared, jobs_below(tmp_path_factory.mktemp("clean"), sums), "clean")
    run_all(shared, jobs, capacity=8)
    return shared, jobs


def test_rank_64_trains_on_a_model_that_has_room_for_it(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    wide = LoraConfig(rank=64, alpha=16.0, target_modules=["q_proj", "o_proj"])
    solo = make_job(shared, "solo", lora=wide)
    run_all(shared, [solo], capacity=1)
    pair = [make_job(shared, "wide", lora=wide), make_job(shared, "thin", seed=3)]
    run_all(shared, pair, capacity=2)
    assert worst(losses(solo), losses(pair[0])) < CLOSE


def test_nan_in_one_run_leaves_the_other_seven_unchanged(
    clean: tuple[SharedBase, list[Job]], make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, undisturbed = clean
    dirty = eight_jobs(shared, make_job, "dirty")
    update = session.RunEntry.step_values

    def poison(entry: session.RunEntry, lasting_bytes: int) -> dict[str, float]:
        if entry.job.run_id == "dirty3" and entry.slot.progress.step == 1:
            for parameter in entry.slot.adapter.parameters.values():
                parameter.data.fill_(float("nan"))
        return update(entry, lasting_bytes)

    monkeypatch.setattr(session.RunEntry, "step_values", poison)
    records = run_all(shared, dirty, capacity=8)
    assert records["dirty3"].status is RunStatus.diverged
    assert "step 3" in (records["dirty3"].error or "")
    for i, (one, other) in enumerate(zip(undisturbed, dirty, strict=True)):
        if i != 3:
            assert losses(one) == losses(other)
            assert records[f"dirty{i}"].status is RunStatus.completed


@pytest.mark.parametrize("error", [ValueError("broken"), torch.OutOfMemoryError("no room")])
def test_an_exception_in_one_run_is_that_runs_alone(
    clean: tuple[SharedBase, list[Job]],
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    shared, undisturbed = clean
    dirty = eight_jobs(shared, make_job, "dirty")
    real = passes.Ranks.gradients

    def failing(ranks: passes.Ranks, base: SharedBase, slots: list, work: list) -> list:
        names = {id(item.adapter) for item in work}
        bad = [e for e in entries if e.job.run_id == "dirty5" and id(e.slot.adapter) in names]
        if bad and bad[0].slot.progress.step == 2:
            raise error
        return real(ranks, base, slots, work)

    entries: list[session.RunEntry] = []
    start = session.RunEntry.start

    def remember(entry: session.RunEntry) -> None:
        start(entry)
        entries.append(entry)

    monkeypatch.setattr(session.RunEntry, "start", remember)
    monkeypatch.setattr(passes.Ranks, "gradients", failing)
    records = run_all(shared, dirty, capacity=8)
    expected = RunStatus.failed if isinstance(error, ValueError) else RunStatus.out_of_memory
    assert records["dirty5"].status is expected
    assert len(losses(dirty[5])) == 2
    for i in (0, 1, 2, 3, 4, 6, 7):
        assert worst(losses(undisturbed[i]), losses(dirty[i])) < CLOSE


def test_evaluation_in_between_changes_nothing(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base(QuantConfig(format=QuantFormat.nf4))
    plain = make_job(shared, "plain", eval={"before": False})
    evaluated = make_job(shared, "evaluated", eval={"every_steps": 1})
    for job in (plain, evaluated):
        run_all(shared, [job], capacity=1)
    assert losses(plain) == losses(evaluated)
    rows = read_metrics(evaluated.directory.metrics).rows
    assert all("eval/loss" in row for row in rows)


def test_gradient_checkpointing_gives_the_same_run(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    lora = LoraConfig(alpha_over_rank=2.0, dropout=0.2)
    plain = make_job(shared, "plain", lora=lora)
    saved = make_job(shared, "saved", lora=lora, optim={"gradient_checkpointing": True})
    records = run_all(shared, [plain], capacity=1) | run_all(shared, [saved], capacity=1)
    assert worst(losses(plain), losses(saved)) < CLOSE
    kept = {name: record.metrics["memory/activation_bytes"] for name, record in records.items()}
    assert kept["plain"]
    assert kept["saved"]
    assert kept["saved"] < 0.6 * kept["plain"]


def test_inputs_of_blocks_that_wait_on_the_host_give_the_same_run(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    """Here the host is where they came from; copied away and back they are all the same."""
    shared = make_base()
    lora = LoraConfig(alpha_over_rank=2.0, dropout=0.2)
    optim = {"gradient_checkpointing": True}
    kept = make_job(shared, "kept", lora=lora, optim=optim)
    away = make_job(shared, "away", lora=lora, optim=optim | {"offload_activations": True})
    records = run_all(shared, [kept], capacity=1) | run_all(shared, [away], capacity=1)
    assert losses(kept) == losses(away)
    one, other = (
        load_file(j.directory.adapter / "adapter_model.safetensors") for j in (kept, away)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    held = {name: record.metrics["memory/activation_bytes"] for name, record in records.items()}
    offloaded, whole = held["away"], held["kept"]
    assert offloaded is not None
    assert whole is not None
    assert 0 < offloaded < whole


def test_accumulation_gives_the_loss_of_the_whole_batch(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    whole = make_job(shared, "whole")
    parts = make_job(shared, "parts", optim={"micro_batch_size": 1})
    for job in (whole, parts):
        run_all(shared, [job], capacity=1)
    assert worst(losses(whole), losses(parts)) < 5e-6


def test_saved_adapter_gives_identical_logits_under_peft(
    make_base: MakeBase, make_job: MakeJob, tmp_path: Path
) -> None:
    from peft import PeftModel

    ids = torch.randint(3, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    for quant_format in (QuantFormat.none, QuantFormat.nf4, QuantFormat.int4):
        shared = make_base(QuantConfig(format=quant_format))
        job = make_job(shared, f"run-{quant_format.value}")
        expected = None
        for event in train(shared, Queue([job]), sizer=SideBySide(1), stop=StopRequest()):
            if not isinstance(event, RunEnded) and event.entry.slot.finished:
                with torch.no_grad(), shared.only(event.entry.slot.adapter):
                    expected = shared.model(ids).logits
        assert expected is not None
        fresh = make_base(QuantConfig(format=quant_format)).base.model
        loaded = PeftModel.from_pretrained(fresh, str(job.directory.adapter)).eval()
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, expected)
            with loaded.disable_adapter():
                assert not torch.equal(loaded(ids).logits, expected)


@pytest.mark.parametrize(
    ("quant", "init"),
    [
        (QuantConfig(format=QuantFormat.none), LoraInit.pissa),
        (QuantConfig(format=QuantFormat.none), LoraInit.olora),
        (QuantConfig(format=QuantFormat.nf4), LoraInit.olora),
        (QuantConfig(format=QuantFormat.nf4, double_quant=True), LoraInit.pissa),
        (QuantConfig(format=QuantFormat.fp4, block_size=128), LoraInit.olora),
        (QuantConfig(format=QuantFormat.int4_asym), LoraInit.pissa),
        (QuantConfig(format=QuantFormat.int8), LoraInit.pissa),
    ],
)
def test_initializations_that_rewrite_the_base_train_and_load(
    make_base: MakeBase, make_job: MakeJob, quant: QuantConfig, init: LoraInit
) -> None:
    from peft import PeftModel

    shared = make_base(quant)
    job = make_job(shared, "rewritten", lora=LoraConfig(alpha_over_rank=1.0, init=init))
    record = run_all(shared, [job], capacity=1)["rewritten"]
    assert record.status is RunStatus.completed
    assert record.evals["after"]["eval/loss"].value < record.evals["before"]["eval/loss"].value
    if quant.format is QuantFormat.none:
        ids = torch.randint(3, 512, (2, 40), generator=torch.Generator().manual_seed(0))
        fresh = make_base(quant).base.model
        loaded = PeftModel.from_pretrained(fresh, str(job.directory.adapter)).eval()
        with torch.no_grad():
            logits = loaded(ids).logits
            assert torch.isfinite(logits).all()
