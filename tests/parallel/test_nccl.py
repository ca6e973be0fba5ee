"""What two GPUs train together is what one trains. Needs two GPUs: `make test-gpu`."""

from pathlib import Path

import pytest
import torch

from harness.commands.run import run
from harness.config.compose import compose_run
from harness.records.record import RunStatus, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_two_gpus_train_what_one_trains(tmp_path: Path, shard: str) -> None:
    curves, bases = [], []
    for resources in (
        ["resources.data_parallel=1"],
        ["resources.data_parallel=2", f"resources.shard={shard}"],
    ):
        overrides = [
            *("resources.device=cuda", *resources, "tracker=none", "optim.steps=8"),
            *("lora.dropout=0.1", f"paths.out='{tmp_path / resources[0][-1]}'"),
            *(f"paths.cache='{tmp_path / 'cache'}'", "eval=loss"),
        ]
        record, directory = run(compose_run(overrides))
        assert record.status is RunStatus.completed, record.error
        curves.append([row["train/loss"] for row in read_metrics(directory.metrics).rows])
        bases.append(record.metrics["memory/base_bytes"])
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)  # float32, other matrix products
    assert bases[1] == pytest.approx(bases[0] / (2 if shard == "fsdp" else 1), rel=0.01)
