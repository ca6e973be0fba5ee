"""The series of throughput and memory: what each step of a run says, alone and in company."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.schema import LoraConfig, OptimizerName
from harness.measure.floor import StepSize, step_floor
from harness.measure.memory import distinct_bytes
from harness.measure.rates import DeviceRates, Product
from harness.records.metrics import SERIES, format_value
from harness.records.metrics_log import read_metrics
from harness.records.record import read_record
from harness.training.job import Job
from tests.training.conftest import MakeBase, MakeJob
from tests.training.side_by_side import SideBySide
from tests.training.test_slots import run_all

EVERY_STEP = (
    "throughput/step_ms",
    "throughput/input_tokens_per_second",
    "throughput/loss_tokens_per_second",
    "memory/allocated_bytes",
    "memory/peak_bytes",
    "memory/resident_bytes",
    "cohort/runs",
    "cohort/token_share",
)


def series(job: Job, name: str) -> list[float]:
    return [row[name] for row in read_metrics(job.directory.metrics).rows]  # pyright: ignore[reportReturnType]


def test_alone_the_series_ends_where_the_record_stands(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    job = make_job(shared, "alone", optim={"micro_batch_size": 2, "steps": 8})
    record = run_all(shared, [job], SideBySide(1))["alone"]
    for row in read_metrics(job.directory.metrics).rows:
        assert set(EVERY_STEP) <= set(row) - {"step"} <= SERIES
    rows = len(job.data.train)
    assert series(job, "train/epoch") == [4 * step / rows for step in range(1, 9)]
    assert series(job, "cohort/runs") == [1] * 8
    assert series(job, "cohort/token_share") == [1.0] * 8
    peaks = series(job, "memory/peak_bytes")
    assert peaks == sorted(peaks)
    assert peaks[-1] == record.metrics["memory/peak_bytes"]
    floor, kept = record.metrics["throughput/floor_ms"], job.config.paths
    assert floor is not None
    assert floor > 0
    assert list(Path(kept.cache or f"{kept.out}/cache").glob("rates/*.json"))  # of this device
    lasting = [
        record.metrics[f"memory/{part}_bytes"] or 0
        for part in ("base", "quant_constants", "adapter", "gradient", "optimizer")
    ]
    assert series(job, "memory/allocated_bytes")[-1] == sum(lasting)
    seconds = [ms / 1e3 for ms in series(job, "throughput/step_ms")]
    tokens = series(job, "throughput/input_tokens_per_second")
    after = sum(s * t for s, t in zip(seconds[3:], tokens[3:], strict=True)) / sum(seconds[3:])
    assert after == pytest.approx(record.metrics["throughput/input_tokens_per_second"])


def test_in_company_a_step_says_how_many_shared_it_and_its_share(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    small = make_job(shared, "small", optim={"batch_size": 2}, lora=LoraConfig(rank=4, alpha=8))
    large = make_job(shared, "large", optim={"batch_size": 4}, seed=1)
    records = run_all(shared, [small, large], SideBySide(2))
    for job in (small, large):
        assert series(job, "cohort/runs") == [2] * 6
        record = read_record(job.directory.record)
        assert "throughput/step_ms" not in record.metrics  # a cohort's cost is nobody's own
        assert (record.metrics["throughput/floor_ms"] or 0) > 0  # but what it would be at least is
    shares = list(
        zip(series(small, "cohort/token_share"), series(large, "cohort/token_share"), strict=True)
    )
    assert all(one + other == pytest.approx(1.0) and one < other for one, other in shares)
    # Both see the same passes and the same process: base and both runs' tensors.
    assert series(small, "throughput/step_ms") == series(large, "throughput/step_ms")
    own: list[float] = [
        sum(
            record.metrics[f"memory/{part}_bytes"] or 0
            for part in ("adapter", "gradient", "optimizer")
        )
        for record in records.values()
    ]
    assert series(small, "memory/allocated_bytes")[-1] == shared.size.total_bytes + sum(own)
    assert series(small, "memory/peak_bytes")[-1] > series(small, "memory/allocated_bytes")[-1]


def test_one_that_is_left_alone_in_a_cohort_says_so(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    short = make_job(shared, "short", optim={"steps": 2})
    long = make_job(shared, "long", seed=1, optim={"steps": 5})
    run_all(shared, [short, long], SideBySide(2))
    assert series(long, "cohort/runs") == [2, 2, 1, 1, 1]
    assert series(long, "cohort/token_share")[2:] == [1.0] * 3
    held = series(long, "memory/allocated_bytes")
    assert held[2] < held[1]  # the short one's adapter, gradient and optimizer are gone


def test_the_operations_of_a_step_against_a_count_by_hand(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    from harness.measure.work import work_of

    shared = make_base()
    embedding = shared.model.get_input_embeddings().weight
    head = shared.model.get_output_embeddings().weight
    tied = distinct_bytes([embedding, head]) == distinct_bytes([embedding])
    work = work_of(shared.base, shared.size.logical_params, 1000, devices=1)
    others = embedding.numel() + (0 if tied else head.numel())
    assert work.per_input_token == 4 * (shared.size.logical_params - others) + 6 * 1000
    assert work.per_loss_token == 4 * head.numel()
    assert work.utilisation(10, 5, 1.0) is None  # a processor has no published rate


def test_the_last_row_has_the_evaluation_after_training(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    asked = {"generate": True, "generate_rows": 3, "max_new_tokens": 4}
    job = make_job(shared, "run", eval=asked)
    kept = make_job(shared, "kept", eval=asked | {"keep_best": True, "every_steps": 2}, seed=1)
    records = run_all(shared, [job, kept], SideBySide(1))
    *before, last = read_metrics(job.directory.metrics).rows
    assert not any("eval/loss" in row for row in before)
    assert records["run"].evals["after"].keys() <= SERIES  # W&B is told of no others
    for name, result in records["run"].evals["after"].items():
        assert last[name] == result.value
    # The best adapter may be another step's: its scores are not this step's.
    assert "eval/exact_match" not in read_metrics(kept.directory.metrics).rows[-1]


@pytest.fixture
def given(tmp_path: Path) -> DeviceRates:
    """Rates of a device that multiplies at 1e9 operations and copies at 1e6 bytes per second."""

    class Given(DeviceRates):
        def bytes_per_second(self) -> float:
            return 1e6

        def operations_per_second(self, product: Product) -> float:
            return 1e9

    return Given(torch.device("cpu"), None)


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


class Growing:
    """Counters that have seen 1,000 bytes more whenever they are asked."""

    asked = 0

    def moved_bytes(self) -> int:
        self.asked += 1
        return 1000 * self.asked


def test_a_run_alone_says_what_moved_and_one_in_company_or_uncounted_does_not(
    make_base: MakeBase, make_job: MakeJob, monkeypatch
) -> None:
    shared = make_base()
    paged = {"name": OptimizerName.paged_adamw_32bit, "steps": 2}

    def train(side_by_side: int, *names: str) -> list[Any]:
        jobs = [make_job(shared, name, optim=paged, seed=i) for i, name in enumerate(names)]
        return list(run_all(shared, jobs, SideBySide(side_by_side)).values())

    (uncounted,) = train(1, "uncounted")
    assert uncounted.metrics["memory/paged_bytes"] is None
    assert format_value("memory/paged_bytes", None) == "—"
    assert any("what is paged is not counted" in note for note in uncounted.notes)

    monkeypatch.setattr("harness.training.entry.paging_counters", lambda device: Growing())
    (alone,) = train(1, "alone")
    assert alone.metrics["memory/paged_bytes"] == 1000
    assert all("memory/paged_bytes" not in each.metrics for each in train(2, "one", "other"))
    (plain,) = run_all(
        shared, [make_job(shared, "plain", optim={"steps": 2})], SideBySide(1)
    ).values()
    assert "memory/paged_bytes" not in plain.metrics
