"""Bases, data and jobs for training tests, built without the command line but from the real parts."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
from harness.base.build import build_base
from harness.base.source import find_model, model_fingerprint
from harness.config.identity import Identity
from harness.config.resources import BackendName
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

EMBEDDED = Path(harness.__file__).parent / "embedded" / "model"
MakeBase = Callable[..., SharedBase]
MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first and the last of the embedded model's six blocks: it still learns, in a third of the time."""
    directory = tmp_path_factory.mktemp("pretrained") / "two_blocks"
    shutil.copytree(EMBEDDED, directory)
    fields = json.loads((EMBEDDED / "config.json").read_text())
    kept = {0: 0, fields["num_hidden_layers"] - 1: 1}
    (directory / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": len(kept)}))
    tensors = {}
    for name, tensor in load_file(EMBEDDED / "model.safetensors").items():
        found = re.search(r"layers\.(\d+)\.", name)
        if found is None:
            tensors[name] = tensor
        elif int(found[1]) in kept:
            tensors[name.replace(found[0], f"layers.{kept[int(found[1])]}.")] = tensor
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache: what has been quantized once in a session is read from it."""
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture(scope="session")
def make_base(pretrained: Path, quantized: Path) -> MakeBase:
    """Return a function that builds a fresh base on the model of two blocks (or another) in one format."""

    def build(
        quant: QuantConfig | None = None,
        model: Path = pretrained,
        backend: BackendName = BackendName.auto,
    ) -> SharedBase:
        config = ModelConfig(name=str(model))
        source = find_model(config)
        base = build_base(
            source,
            config,
            quant or QuantConfig(),
            fingerprint=model_fingerprint(source, quantized / "memo.json"),
            device=torch.device("cpu"),
            cache=quantized,
        )
        return SharedBase(base, backend=backend)

    return build


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 lists of two numbers and their sum, to be copied and begun again: a loss of 1.6."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [
        {"prompt": f"Copy the list: {i}, {j}, {i + j}", "response": f"{i}, {j}, {i + j}, {i}"}
        for i in range(3, 9)
        for j in range(10, 20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_job(sums: Path, tmp_path: Path) -> MakeJob:
    """Return a function that prepares one run on the sums: make_job(base, "name", lora=…, optim=…)."""
    return jobs_below(tmp_path, sums)


def jobs_below(directory: Path, sums: Path) -> MakeJob:
    """Return a function that prepares runs whose files lie below a directory."""

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
            config.data, shared.base.tokenizer, shared.base.fingerprint, directory / "data"
        )
        place = RunDirectory(directory / "runs" / run_id)
        place.path.mkdir(parents=True, exist_ok=True)
        base = shared.base
        identity = Identity(run_id=run_id, cell_id=run_id)
        request = Request(config, base.source, base.fingerprint, identity, place)
        return Job(request=request, data=prepared, provenance={})

    return make
