"""Bases, data and jobs for training tests, built without the command line but from the real parts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.build import build_base
from harness.base.source import find_model, model_fingerprint
from harness.config.identity import Identity
from harness.config.schema import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    RunConfig,
    TrackerConfig,
    TrackerName,
)
from harness.data.prepare import prepare_data
from harness.engine.shared_base import SharedBase
from harness.records.run_directory import RunDirectory
from harness.request import Request
from harness.training.job import Job

MakeBase = Callable[..., SharedBase]
MakeJob = Callable[..., Job]


@pytest.fixture
def make_base(stories: Path, tmp_path: Path) -> MakeBase:
    """Return a function that builds a fresh base on stories260K (or another model) in one format."""

    def build(quant: QuantConfig | None = None, model: Path = stories) -> SharedBase:
        config = ModelConfig(name=str(model))
        source = find_model(config)
        base = build_base(
            source,
            config,
            quant or QuantConfig(),
            fingerprint=model_fingerprint(source, tmp_path / "memo.json"),
            device=torch.device("cpu"),
            cache=tmp_path / "cache",
        )
        return SharedBase(base)

    return build


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A file of 60 small additions in words of their own."""
    path = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"How much are {i} and {j}?", "response": f"{i} and {j} are {i + j}."}
        for i in range(3, 9)
        for j in range(10, 20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_job(sums: Path, tmp_path: Path) -> MakeJob:
    """Return a function that prepares one run on the sums: make_job(base, "name", lora=…, optim=…)."""

    def make(shared: SharedBase, run_id: str, **sections: Any) -> Job:
        data = DataConfig(path=str(sums), validation_rows=8, test_rows=8, max_length=64)
        config = RunConfig(
            lora=LoraConfig(alpha_over_rank=2.0),
            data=replace(data, **sections.pop("data", {})),
            optim=replace(OptimConfig(lr=5e-3, batch_size=4, steps=6), **sections.pop("optim", {})),
            eval=replace(EvalConfig(generate=False), **sections.pop("eval", {})),
            tracker=TrackerConfig(name=TrackerName.none),
        )
        for name, value in sections.items():
            setattr(config, name, value)
        prepared = prepare_data(
            config.data, shared.base.tokenizer, shared.base.fingerprint, tmp_path / "data"
        )
        directory = RunDirectory(tmp_path / "runs" / run_id)
        directory.path.mkdir(parents=True, exist_ok=True)
        base = shared.base
        identity = Identity(run_id=run_id, cell_id=run_id)
        request = Request(config, base.source, base.fingerprint, identity, directory)
        return Job(request=request, data=prepared, provenance={})

    return make
