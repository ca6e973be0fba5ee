"""The TensorBoard mirror, read back by TensorBoard's own reader."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.answers import KeptAnswer
from harness.records.record import Record, RunStatus
from harness.tracking import open_tracker

CONFIG = TrackerConfig(name=TrackerName.tensorboard)


def test_series_final_values_and_samples_come_back(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tree: dict[str, Any] = {"lora": {"rank": 8}, "api_key": "planted5wordfish7phrase"}
    tracker = open_tracker(CONFIG, run_id="a", directory=tmp_path, config_tree=tree)
    for step in (1, 2, 3):
        tracker.log(step, {"train/loss": 4.0 / step, "cohort/runs": 2})
    said = {"row": 0, "prompt": "How much is 1 | 2?", "reference": "3", "step": 3}
    answers = [KeptAnswer(**said, phase=phase, answer=phase) for phase in ("before", "after")]
    record = Record(
        run_id="a", status=RunStatus.completed, config=tree, metrics={"memory/base_bytes": 77}
    )
    assert tracker.finish(record, answers) == []
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"planted5wordfish7phrase" not in file.read_bytes()
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 4.0),
        (2, 2.0),
        (3, pytest.approx(4 / 3)),
    ]
    assert events.Scalars("final/memory/base_bytes")[0].value == 77
    (samples,) = events.Tensors("samples/text_summary")
    text = samples.tensor_proto.string_val[0].decode()
    assert "How much is 1 &#124; 2?" in text
    assert "| before | after |" in text


def test_a_broken_mirror_is_a_note_and_no_more(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    tracker = open_tracker(CONFIG, run_id="a", directory=tmp_path, config_tree={})
    tracker.log(1, {"train/loss": 1.0})
    (note,) = tracker.finish(Record(run_id="a", status=RunStatus.failed, config={}), [])
    assert note.startswith("TensorBoard failed: ")
