"""The W&B mirror, against the files that wandb really writes and the terminal of a real process."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.metrics_log import MetricsLog, read_metrics
from harness.records.record import Estimate, Record, RunStatus, record_of_tree
from harness.tracking import open_tracker
from harness.tracking.wandb_file import read_wandb_run
from harness.tracking.wandb_tracker import _Ends

REPOSITORY = Path(__file__).resolve().parents[2]
OFFLINE = TrackerConfig(
    name=TrackerName.wandb_offline, group="ranks", job_type="grid", tags=["nf4", "r8"]
)


def run_python(
    code: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    return subprocess.run(
        [sys.executable, "-c", dedent(code), *map(str, arguments)],
        cwd=REPOSITORY,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def ended(status: RunStatus = RunStatus.completed, **values: Any) -> Record:
    return Record(**({"run_id": "a", "status": status, "config": {}} | values))


def record_of_kind(directory: Path, kind: str) -> Any:
    from harness.tracking.wandb_file import _records

    (file,) = directory.rglob("*.wandb")
    return next(r for r in _records(file, []) if r.WhichOneof("record_type") == kind)


def test_no_tracker_leaves_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(
        TrackerConfig(name=TrackerName.none), run_id="a", directory=tmp_path, config_tree={}
    )
    tracker.log(1, {"train/loss": 1.0})
    assert tracker.finish(ended(), []) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_logged_lands_in_the_run_directory(tmp_path: Path) -> None:
    tree = {"lora": {"rank": 8, "alpha": None}, "seed": 3}
    tracker = open_tracker(OFFLINE, run_id="nf4-r8-s3", directory=tmp_path, config_tree=tree)
    tracker.log(0, {"eval/loss": 3.75})
    tracker.log(1, {"train/loss": 3.5, "train/grad_norm": float("inf")})
    tracker.log(1, {"eval/loss": 3.25})
    record = ended(
        config=tree,
        run_id="nf4-r8-s3",
        metrics={"memory/base_bytes": 77, "throughput/step_ms": 50.0},
        evals={"after": {"eval/loss": Estimate(value=3.25, standard_error=0.5, n=9)}},
        notes=["a note"],
    )
    assert tracker.finish(record, []) == []

    back = read_wandb_run(tmp_path / "wandb")
    assert (back.run_id, back.config, back.problems) == ("nf4-r8-s3", tree, [])
    assert back.history == [
        {"step": 0, "eval/loss": 3.75},
        {"step": 1, "train/loss": 3.5, "train/grad_norm": float("inf"), "eval/loss": 3.25},
    ]
    assert back.summary["memory/base_bytes"] == 77
    assert back.summary["after.eval/loss"] == 3.25
    assert back.summary["alone.throughput/step_ms"] == 50.0
    assert back.summary["status"] == "completed"
    # Of a series the summary has the ends; of the record it has all, to be read back.
    assert back.summary["eval/loss"] == {"min": 3.25, "max": 3.75, "last": 3.25}
    assert record_of_tree(back.summary["record"] | {"config": back.config}, "here") == record
    run = record_of_kind(tmp_path, "run").run
    assert (run.run_group, run.job_type, list(run.tags)) == ("ranks", "grid", ["nf4", "r8"])
    assert run.project == "qlora-harness"
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]


def test_the_ends_of_a_series_pass_over_nan_and_go_on_where_a_run_was_resumed() -> None:
    ends = _Ends()
    for value in (2.0, float("nan"), 5.0, 3.0, float("nan")):
        ends.add({"train/loss": value, "eval/loss": None})
    ends.add_earlier("train/loss", {"min": 1.0, "max": 4.0, "last": 4.0})
    ends.add_earlier("eval/loss", {"min": 1.0, "max": 4.0, "last": 4.0})
    (found,) = ends.summary().values()
    assert (found["min"], found["max"]) == (1.0, 5.0)
    assert math.isnan(found["last"])


@pytest.mark.parametrize(
    ("status", "code"),
    [(RunStatus.pruned, 0), (RunStatus.diverged, 1), (RunStatus.out_of_memory, 1)],
)
def test_the_end_says_how(tmp_path: Path, status: RunStatus, code: int) -> None:
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    tracker.finish(ended(status), [])
    assert read_wandb_run(tmp_path).summary["status"] == status.value
    assert record_of_kind(tmp_path, "exit").exit.exit_code == code


def test_a_cohort_of_trackers_keeps_its_runs_apart(tmp_path: Path) -> None:
    directories = [tmp_path / f"run-{index}" for index in range(6)]
    for directory in directories:
        directory.mkdir()
    trackers = [
        open_tracker(OFFLINE, run_id=directory.name, directory=directory, config_tree={})
        for directory in directories
    ]
    for step in range(30):
        for index, tracker in enumerate(trackers):
            tracker.log(step, {"train/loss": 100.0 * index + step})
    assert [tracker.finish(ended(), []) for tracker in trackers] == [[]] * 6
    for index, directory in enumerate(directories):
        back = read_wandb_run(directory)
        assert back.run_id == directory.name
        assert [row["train/loss"] for row in back.history] == [
            100.0 * index + step for step in range(30)
        ]


def test_a_resumed_run_tells_one_history_and_the_same_as_the_metrics(tmp_path: Path) -> None:
    def train(first: int, last: int, resume_from: int | None) -> None:
        log = MetricsLog(tmp_path / "metrics.jsonl")
        if resume_from is not None:
            log.truncate_after(resume_from)
        tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={"seed": 1})
        for step in range(first, last + 1):
            row = {"train/loss": 1 / (step + 3), "train/learning_rate": 2e-4 * step}
            log.log(step, row)
            tracker.log(step, row)
        log.close()
        assert tracker.finish(ended(RunStatus.interrupted), []) == []

    train(1, 17, None)
    train(11, 30, resume_from=10)  # as if the checkpoint at step 10 were the newest whole one
    assert len(list(tmp_path.rglob("*.wandb"))) == 2
    back = read_wandb_run(tmp_path)
    assert back.history == read_metrics(tmp_path / "metrics.jsonl").rows
    assert [row["step"] for row in back.history] == list(range(1, 31))


def test_what_a_killed_process_had_not_got_as_far_as_wandb_is_told_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 21):
        log.log(step, {"train/loss": 9.0 - step, "train/grad_norm": math.inf})
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    for step in range(1, 8):  # the rest was still on its way
        tracker.log(step, {"train/loss": 9.0 - step, "train/grad_norm": math.inf})
    assert tracker.finish(ended(RunStatus.interrupted), []) == []

    log.truncate_after(15)
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    tracker.log_earlier(read_metrics(tmp_path / "metrics.jsonl").rows)
    for step in (16, 17):
        log.log(step, {"train/loss": 0.5})
        tracker.log(step, {"train/loss": 0.5})
    log.close()
    assert tracker.finish(ended(), []) == []
    back = read_wandb_run(tmp_path)
    assert back.history == read_metrics(tmp_path / "metrics.jsonl").rows
    assert back.summary["train/loss"] == {"min": -6.0, "max": 8.0, "last": 0.5}
    newest = max(tmp_path.rglob("*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert read_wandb_run(newest.parent).history[0]["step"] == 8  # no row is told twice


def test_a_row_is_one_record_of_wandbs_file(tmp_path: Path) -> None:
    from harness.tracking.wandb_file import _records

    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    for step in range(50):
        tracker.log(step, {"train/loss": 1.0, "throughput/step_ms": 50.0})
    assert tracker.finish(ended(), []) == []
    (file,) = tmp_path.rglob("*.wandb")
    kinds = [record.WhichOneof("record_type") for record in _records(file, [])]
    assert kinds.count("history") == 50
    last = len(kinds) - 1 - kinds[::-1].index("history")
    assert kinds[kinds.index("history") : last] == ["history"] * 49


def test_a_row_is_in_the_file_before_wandb_alone_would_write_it(tmp_path: Path) -> None:
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    for step in (0, 1):  # a row is complete when the next one has come
        tracker.log(step, {"train/loss": 1.0})
    while not list(tmp_path.rglob("*.wandb")):
        time.sleep(0.05)
    deadline = time.monotonic() + 13  # wandb's own interval is 15 s
    while not (rows := read_wandb_run(tmp_path).history) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert rows == [{"step": 0, "train/loss": 1.0}]  # so kill -9 cannot take it any more
    assert tracker.finish(ended(), []) == []


def test_rows_carry_the_time_they_were_logged_at(tmp_path: Path) -> None:
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    before = time.time()
    tracker.log(0, {"train/loss": 1.0})
    after = time.time()
    time.sleep(0.3)  # rows wait for wandb and for one another
    assert tracker.finish(ended(), []) == []
    history = record_of_kind(tmp_path, "history").history
    (stamp,) = (i.value_json for i in history.item if list(i.nested_key) == ["_timestamp"])
    assert before <= float(stamp) <= after


PLANTED = "planted5wordfish7phrase"


def test_no_secret_reaches_any_file_or_the_terminal(tmp_path: Path) -> None:
    process = run_python(
        """
        import sys
        from pathlib import Path
        from harness.config.schema import TrackerConfig, TrackerName
        from tests.tracking.test_tracker import ended
        from harness.tracking import open_tracker
        planted = "planted5wordfish7" + "phrase"
        tree = {"data": {"path": f"https://me:{planted}@host/x"}, "api_key": planted, "note": planted}
        config = TrackerConfig(name=TrackerName.wandb_offline, tags=["token=" + planted])
        tracker = open_tracker(
            config, run_id="a", directory=Path(sys.argv[1]), config_tree=tree
        )
        for step in range(5):
            tracker.log(step, {"train/loss": 1.0})
            if step == 2:
                import time; time.sleep(1)  # printed while wandb runs
                print("secret text " + planted)
                print("secret text " + planted, file=sys.stderr)
        assert tracker.finish(ended(), []) == []
        """,
        tmp_path,
        f"--password={PLANTED}",
        LAB_TOKEN=PLANTED,
        WANDB_API_KEY="0123456789abcdef0123456789" + PLANTED,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == process.stderr == f"secret text {PLANTED}\n"  # and nothing of wandb's
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []
    # Not even harmless arguments, the program or the environment are mirrored.
    for path in files:
        assert b"--password" not in path.read_bytes()
        assert b"LAB_TOKEN" not in path.read_bytes()


def test_a_broken_mirror_is_a_note_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.Error("no space left for token=abcd1234efgh")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    for step in range(100):
        tracker.log(step, {"train/loss": 1.0})
    (note,) = tracker.finish(ended(), [])
    assert note == "W&B failed: Error: no space left for token=[redacted]"


def test_wandb_failing_in_mid_run_is_noted_once(tmp_path: Path) -> None:
    process = run_python(
        """
        import os, signal, sys, time
        from pathlib import Path
        import psutil
        from harness.config.schema import TrackerConfig, TrackerName
        from tests.tracking.test_tracker import ended
        from harness.tracking import open_tracker
        from tests.tracking.test_tracker import ended
        config = TrackerConfig(name=TrackerName.wandb_offline)
        tracker = open_tracker(config, run_id="a", directory=Path(sys.argv[1]), config_tree={})
        while not psutil.Process().children():
            tracker.log(0, {"train/loss": 1.0})
            time.sleep(0.05)
        time.sleep(1)
        for child in psutil.Process().children(recursive=True):
            child.send_signal(signal.SIGKILL)
        time.sleep(0.2)
        for step in range(200):
            tracker.log(step, {"train/loss": 1.0})
        notes = tracker.finish(ended(), [])
        print(len(notes), notes)
        """,
        tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("1 ['W&B failed: ")


def test_a_process_that_dies_without_finish_does_not_hang(tmp_path: Path) -> None:
    process = run_python(
        """
        import sys
        from pathlib import Path
        from harness.config.schema import TrackerConfig, TrackerName
        from harness.tracking import open_tracker
        config = TrackerConfig(name=TrackerName.wandb_offline)
        tracker = open_tracker(config, run_id="a", directory=Path(sys.argv[1]), config_tree={})
        for step in range(10):
            tracker.log(step, {"train/loss": 1.0})
        import time; time.sleep(1)
        raise ValueError("the run itself is broken")
        """,
        tmp_path,
    )
    assert process.returncode == 1
    assert "the run itself is broken" in process.stderr


def test_opening_and_logging_do_not_wait_for_wandb(tmp_path: Path) -> None:
    process = run_python(
        """
        import json, sys, time
        from pathlib import Path
        from harness.config.schema import TrackerConfig, TrackerName
        from tests.tracking.test_tracker import ended
        from harness.tracking import open_tracker
        assert "wandb" not in sys.modules
        config = TrackerConfig(name=TrackerName.wandb_offline)
        tracker = open_tracker(config, run_id="a", directory=Path(sys.argv[1]), config_tree={})
        loaded = "wandb.sdk" in sys.modules and hasattr(sys.modules["wandb"], "init")
        tracker.log(0, {"train/loss": 1.0})
        print(json.dumps([loaded, tracker.finish(ended(), [])]))
        """,
        tmp_path,
    )
    assert json.loads(process.stdout) == [False, []], process.stderr


def test_metric_names_and_steps_are_checked_in_the_callers_thread(tmp_path: Path) -> None:
    tracker = open_tracker(OFFLINE, run_id="a", directory=tmp_path, config_tree={})
    with pytest.raises(AssertionError, match="los"):
        tracker.log(1, {"train/los": 1.0})
    tracker.log(5, {"train/loss": 1.0})
    with pytest.raises(AssertionError, match="step 4 after step 5"):
        tracker.log(4, {"train/loss": 1.0})
    assert tracker.finish(ended(RunStatus.failed), []) == []
