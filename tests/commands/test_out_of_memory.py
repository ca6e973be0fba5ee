"""A base that does not fit: a result with a record and exit code 1, not a traceback."""

from pathlib import Path

import pytest
import torch

from harness.cli.main import dispatch
from harness.records.record import RunStatus, read_records
from harness.training import launch
from tests.random_models import LLAMA, save_random_model


def test_a_base_that_does_not_fit_leaves_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_random_model(tmp_path / "llama", "llama", **LLAMA)

    def too_large(*_: object, **__: object) -> None:
        torch.empty(2**48, dtype=torch.uint8)  # the real allocator refuses, in its own words

    monkeypatch.setattr(launch, "build_base", too_large)
    out = tmp_path / "out"
    arguments = ["run", f"model='{model}'", f"paths.out='{out}'", "tracker=none"]
    assert dispatch(arguments) == 1
    records, problems = read_records(out)
    assert problems == []
    assert [record.status for record in records] == [RunStatus.out_of_memory]
    assert (records[0].error or "").startswith("while loading the base: ")
    assert records[0].metrics["memory/load_peak_bytes"]
    assert "out_of_memory" in capsys.readouterr().err
