"""Captured steps as they are planned: against what an H200 measured, and against the real buffers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_captured import Case, planned_peak
from harness.config.resources import BackendName, ResourcesConfig
from harness.config.schema import (
    FloatType,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    QuantConfig,
    RunConfig,
)
from harness.engine.cuda.backend import CudaBackend
from harness.engine.cuda.staging import bucket
from harness.plan.base_bytes import base_bytes
from harness.plan.captured import TILE, _key, captured_bytes, plans_captured
from harness.plan.model import PlannedModel
from harness.plan.predict import predict
from harness.plan.prediction import BatchSize
from tests.engine.test_cpu import base_of, trained
from tests.plan.engine import Bases

CUDA = torch.device("cuda")
MEASURED = Path(__file__).parents[2] / "bench" / "results" / "gpu_captured.json"
RESULTS: dict[str, list[dict[str, Any]]] = json.loads(MEASURED.read_text())
ROWS = [row for row in RESULTS["rows"] if "peak_gib" in row]
HALF = FloatType.bfloat16


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['case']} {row['format']}")
def test_the_peak_is_what_a_gpu_measured(row: dict[str, Any]) -> None:
    """Small models take more: the allocator leaves up to 1 MiB of a block unused, and after eager steps
    cuBLAS keeps further workspaces."""
    error = 0.01 if row["case"].startswith("qwen3") else 0.07
    case = Case.parse(row["case"], row["format"], CUDA)
    planned = planned_peak(case) / 2**30
    assert planned == pytest.approx(row["peak_gib"], rel=error)
    assert planned < row["peak_gib"]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_targets_and_recomputing_are_planned_too(every: int) -> None:
    """24 peaks of one process; at the last, seats that grew were still in memory twice."""
    errors = []
    for row in RESULTS["peaks"][::-every]:
        targets = ["q_proj", "v_proj"] if row["rank"] == 4 else ["all_linear"]
        lora = LoraConfig(rank=row["rank"], alpha=16.0, target_modules=targets)
        case = Case.parse(row["case"], "nf4_dq", CUDA)
        planned = planned_peak(case, lora, recompute=row["recompute"]) / 2**30
        errors.append(abs(planned - row["peak_gib"]) / row["peak_gib"])
    assert len(errors) == 24 / every
    assert sorted(errors)[-2] < 0.04


def test_the_seats_are_as_large_as_those_of_a_backend() -> None:
    shared = base_of("llama", backend=BackendName.reference)
    backend = CudaBackend(shared)
    for seed in range(3):
        backend.sit(trained(shared, LoraConfig(rank=5, alpha=8.0), seed), None)
    seats = backend._seats
    assert seats is not None
    names = ("parameters_SP", "gradients_SP", "means_SP", "squares_SP", "computed_SP")
    real = sum(getattr(seats, name).nbytes for name in names)
    source = shared.base.source
    planned = PlannedModel(shared.model.config, source, ModelConfig())
    planned.use(QuantConfig())
    lora, batch = LoraConfig(rank=5, alpha=8.0), BatchSize(2, 16, 11)
    assert captured_bytes(planned, lora, batch, 3, recompute=False).seats == real


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"resources": ResourcesConfig(backend=BackendName.reference)}, False),
        ({"resources": ResourcesConfig(data_parallel=2)}, False),
        ({"optim": OptimConfig(steps=1, name=OptimizerName.adamw_8bit)}, False),
        ({"lora": LoraConfig(rank=4, alpha=8.0)}, False),
        ({"quant": QuantConfig()}, False),
    ],
)
def test_what_seats_cannot_hold_is_planned_as_the_reference(
    bases: Bases, change: dict[str, Any], expected: bool
) -> None:
    planned = bases.planned("uneven")
    config = RunConfig(
        quant=QuantConfig(compute_dtype=HALF),
        lora=LoraConfig(rank=4, alpha=8.0, compute_dtype=HALF),
        optim=OptimConfig(steps=1),
    )
    for name, value in change.items():
        setattr(config, name, value)
    planned.use(config.quant)
    assert plans_captured(planned, config, "cuda") is expected
    assert not plans_captured(planned, config, "cpu")


def test_recomputing_keeps_less(bases: Bases) -> None:
    planned = bases.planned("uneven")
    planned.use(QuantConfig(compute_dtype=HALF))
    lora, batch = LoraConfig(rank=4, alpha=8.0), BatchSize(4, 256, 64)
    kept, recomputed = (
        captured_bytes(planned, lora, batch, 2, recompute=recompute).peak
        for recompute in (False, True)
    )
    assert recomputed < kept


@pytest.mark.parametrize(
    ("length", "longest"),
    [(9, 64), (63, 64), (64, 64), (65, 128), (129, 256), (256, 256), (257, 512)],
)
def test_the_longest_example_is_the_next_power_of_two_and_at_least_a_tile(length, longest) -> None:
    assert TILE == 64
    key = _key(BatchSize(2, length, 9), 4, 3, has_dropout=True, recompute=False)
    assert key.longest == longest
    assert (key.seats, key.has_dropout, key.recompute) == (4, True, False)


@pytest.mark.parametrize(
    ("rows", "cohort", "sequences"), [(1, 1, 8), (2, 3, 8), (7, 1, 16), (15, 1, 32), (4, 4, 32)]
)
def test_sequences_are_a_power_of_two_above_all_examples_and_what_is_left(rows, cohort, sequences):
    key = _key(BatchSize(rows, 10, 9), 1, cohort, has_dropout=False, recompute=True)
    assert key.sequences == sequences > rows * cohort + 1


@pytest.mark.parametrize(
    ("batch", "seats", "cohort", "positions", "losses"),
    [
        (BatchSize(2, 50, 20), 1, 1, 128, 32),  # 100 and 20, in tiles of 64 and 16
        (BatchSize(2, 50, 20), 4, 3, 384, 64),  # of several each fills tiles of its own: 3 x 128
        (BatchSize(1, 64, 16), 2, 2, 128, 32),
    ],
)
def test_positions_fill_tiles_of_a_run_where_several_share_a_pass(
    batch: BatchSize, seats: int, cohort: int, positions: int, losses: int
) -> None:
    key = _key(batch, seats, cohort, has_dropout=False, recompute=False)
    assert (key.positions, key.loss_positions) == (bucket(positions, 64), bucket(losses, 16))


@pytest.mark.parametrize("cohort", [1, 3])
@pytest.mark.parametrize("best", [False, True])
def test_the_peak_of_captured_steps_is_that_of_what_lies_on_the_gpu(
    bases: Bases, cohort: int, best: bool
) -> None:
    """Base, PEFT's adapters, seats (which hold gradients and moments), best adapters, cuBLAS, the pass."""
    planned = bases.planned("uneven")
    config = RunConfig(
        quant=QuantConfig(compute_dtype=HALF),
        lora=LoraConfig(rank=4, alpha=8.0, compute_dtype=HALF),
        optim=OptimConfig(steps=1),
    )
    config.eval.keep_best = best
    batch = BatchSize(2, 16, 11)
    found = predict(planned, config, batch, cohort=cohort, device="cuda")
    captured = captured_bytes(planned, config.lora, batch, cohort, recompute=False)
    base = base_bytes(planned.outline, planned.storage)
    adapters = 4 * found.trainable_params * cohort
    lasting = base.weight_bytes + base.constant_bytes + adapters * (1 + best) + captured.seats
    assert found.peak_bytes == lasting + 2 * 32 * 2**20 + captured.peak
    assert found.cohort_parts["activation"] == captured.peak
    assert found.transient_bytes == 0
