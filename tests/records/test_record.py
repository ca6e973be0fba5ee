"""Records and metrics on disk: round trips, torn files, kill -9, and two processes at one run."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import yaml

from harness.errors import RequestError
from harness.records.metrics_log import MetricsLog, read_metrics
from harness.records.record import (
    Estimate,
    MeasuredIn,
    Record,
    RecordError,
    RunDirectory,
    RunLocked,
    RunStatus,
    read_record,
    read_records,
    write_record,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def full_record(run_id: str = "nf4-r8-s0-3f2a9c1b") -> Record:
    return Record(
        run_id=run_id,
        status=RunStatus.diverged,
        config={"lora": {"rank": 8, "alpha": None}, "optim": {"lr": 2e-4}, "seed": 3},
        metrics={
            "train/loss": math.nan,
            "memory/peak_bytes": 12345678,
            "throughput/step_ms": None,
            "train/grad_norm": math.inf,
        },
        evals={
            "before": {"eval/loss": Estimate(value=3.75, standard_error=0.01, n=5000)},
            "after": {
                "eval/loss": Estimate(value=-math.inf, standard_error=math.nan, n=5000),
                "eval/exact_match": Estimate(value=1.0, standard_error=None, n=1),
            },
        },
        measured_in=MeasuredIn.cohort,
        provenance={"host": "vm", "packages": {"torch": "2.13.0"}},
        wall_seconds=12.5,
        error="loss is NaN at step 7",
        notes=["12 rows longer than max_length=256 were cut"],
    )


def same(left: object, right: object) -> bool:
    return repr(left) == repr(right)  # `==` calls NaN unequal to itself


def run_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", dedent(code), *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_record_survives_the_round_trip(tmp_path: Path) -> None:
    record = full_record()
    write_record(tmp_path / "run.json", record)
    assert same(read_record(tmp_path / "run.json"), record)
    assert os.listdir(tmp_path) == ["run.json"]


def test_record_is_json_for_strict_readers(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", full_record())

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    tree = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert tree["metrics"] == {
        "train/loss": "NaN",
        "memory/peak_bytes": 12345678,
        "throughput/step_ms": None,
        "train/grad_norm": "Infinity",
    }
    assert tree["evals"]["after"]["eval/loss"]["value"] == "-Infinity"
    contract = (
        "schema_version run_id status config metrics evals provenance started_at wall_seconds error"
    )
    assert set(contract.split()) <= set(tree)


def test_numbers_of_other_libraries_are_written_as_numbers(tmp_path: Path) -> None:
    record = full_record()
    record.metrics = {"train/loss": np.float32(0.5)}  # pyright: ignore[reportAttributeAccessIssue]
    write_record(tmp_path / "run.json", record)
    assert read_record(tmp_path / "run.json").metrics == {"train/loss": 0.5}


def test_secrets_do_not_reach_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_TOKEN", "an unremarkable phrase")
    record = full_record()
    record.config = {"data": {"path": "an unremarkable phrase"}, "api_key": "swordfish"}
    record.provenance = {"command": "harness run +api_key=swordfish"}
    record.error = "refused: password=swordfish"
    record.notes = ["an unremarkable phrase"]
    run = RunDirectory(tmp_path)
    write_record(run.record, record)
    run.write_config(record.config)
    run.append_log("token: an unremarkable phrase")
    for file in tmp_path.iterdir():
        assert "swordfish" not in file.read_text()
        assert "unremarkable" not in file.read_text()
    assert yaml.safe_load(run.config.read_text()) == {
        "data": {"path": "[redacted]"},
        "api_key": "[redacted]",
    }


def test_a_metric_that_does_not_exist_is_a_slip_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="train/los"):
        Record(run_id="x", status=RunStatus.running, config={}, metrics={"train/los": 1.0})
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(AssertionError, match="loss"):
        log.log(0, {"loss": 1.0})
    log.close()


def test_every_torn_record_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(path, full_record())
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 7):  # without the newline it is whole
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"run\.json is torn"):
            read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 0}, "schema_version 0; this harness reads 1"),
        ({"colour": "red"}, "unknown keys \\['colour'\\]"),
        ({"status": "canceled"}, "canceled"),
        ({"metrics": {"train/loss": "low"}}, "holds a value that no run writes"),
        ({"metrics": {"made/up": 1}}, "made/up"),
        ({"evals": {"after": {"eval/loss": {"value": 1}}}}, "standard_error"),
    ],
)
def test_a_record_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "run.json"
    write_record(path, full_record())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_records_that_cannot_be_read_are_reported_beside_the_others(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_record(tmp_path / "runs" / name / "run.json", full_record(name))
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.json").write_text('{"schema_version": 1, "ru')
    (tmp_path / "runs" / "empty").mkdir()
    records, problems = read_records(tmp_path)
    assert [record.run_id for record in records] == ["a", "b"]
    assert len(problems) == 2
    assert "empty/run.json cannot be read" in problems[0]
    assert "torn/run.json is torn" in problems[1]


def test_a_killed_writer_leaves_the_old_or_the_new_record(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", full_record("0"))
    for delay in (0.0, 0.003, 0.006, 0.01, 0.02):
        writer = run_python(
            """
            import sys
            from pathlib import Path
            from harness.records.record import read_record, write_record
            path = Path(sys.argv[1])
            record = read_record(path)
            print("ready", flush=True)
            while True:
                record.run_id = str(int(record.run_id) + 1)
                record.notes = [record.run_id] * 2000
                write_record(path, record)
            """,
            tmp_path / "run.json",
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        writer.kill()
        writer.wait()
        record = read_record(tmp_path / "run.json")
        assert set(record.notes) <= {record.run_id, "12 rows longer than max_length=256 were cut"}


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    holder = run_python(
        """
        import sys
        from pathlib import Path
        from harness.records.record import RunDirectory
        with RunDirectory(Path(sys.argv[1])).lock():
            print("held", flush=True)
            sys.stdin.read()
        """,
        tmp_path / "run",
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RunLocked, match=f"pid {holder.pid} on {os.uname().nodename}") as refusal:
        run.lock().__enter__()
    assert isinstance(refusal.value, RequestError)
    holder.kill()  # a lock file stays behind; the lock does not
    holder.wait()
    with run.lock(), pytest.raises(RunLocked, match=f"pid {os.getpid()} "), run.lock():
        pass
    with run.lock():
        pass


def test_metrics_are_one_object_a_line_with_the_step_first(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(0, {"eval/loss": 3.75})
    log.log(1, {"train/loss": math.nan, "train/grad_norm": math.inf})
    log.log(1, {"train/learning_rate": 2e-4, "train/epoch": None})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 0, "eval/loss": 3.75}',
        '{"step": 1, "train/loss": "NaN", "train/grad_norm": "Infinity"}',
        '{"step": 1, "train/learning_rate": 0.0002, "train/epoch": null}',
    ]
    history = read_metrics(tmp_path / "metrics.jsonl")
    assert history.num_damaged_lines == 0
    assert same(history.rows[1], {"step": 1, "train/loss": math.nan, "train/grad_norm": math.inf})


def test_kill_9_loses_at_most_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = run_python(
        """
        import sys
        from pathlib import Path
        from harness.records.metrics_log import MetricsLog
        log = MetricsLog(Path(sys.argv[1]))
        for step in range(10**9):
            log.log(step, {"train/loss": 1 / (step + 1), "train/learning_rate": 2e-4})
            sys.stdout.write(f"{step}\\n")
            sys.stdout.flush()
        """,
        path,
    )
    assert logger.stdout is not None
    acknowledged = -1
    began = time.monotonic()
    while time.monotonic() - began < 1.5:  # past a sync
        acknowledged = int(logger.stdout.readline())
    logger.send_signal(signal.SIGKILL)
    for line in logger.stdout.read().splitlines(keepends=True):
        acknowledged = int(line) if line.endswith("\n") else acknowledged
    logger.wait()
    history = read_metrics(path)
    assert acknowledged > 1000
    assert len(history.rows) > acknowledged  # every step that was acknowledged is there
    assert [row["step"] for row in history.rows] == list(range(len(history.rows)))
    assert history.num_damaged_lines <= 1


def test_a_torn_last_line_is_counted_and_then_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "train/loss": 0.5}\n'
    for torn in ('{"step": 2, "train/loss": 0.', '{"step": 2, "train/loss": 0.25}', '{"step"'):
        path.write_text(whole + torn)
        history = read_metrics(path)
        assert (len(history.rows), history.num_damaged_lines) == (1, 1)
        log = MetricsLog(path)
        log.log(2, {"train/loss": 0.125})
        log.close()
        assert path.read_text() == whole + '{"step": 2, "train/loss": 0.125}\n'


def test_a_damaged_line_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\0\n{"step": 3}\n{"step": 4}\n\0\0')
    assert read_metrics(path).rows == [{"step": 1}, {"step": 3}, {"step": 4}]
    assert read_metrics(path).num_damaged_lines == 2
    log = MetricsLog(path)
    assert log.truncate_after(3) == 1
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n\0\0\0\0\n{"step": 3}\n'


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def train(first: int, last: int, log: MetricsLog) -> None:
        for step in range(first, last + 1):
            log.log(step, {"train/loss": 1 / step})
            if step % 5 == 0:
                log.log(step, {"eval/loss": 2 / step})

    whole = MetricsLog(tmp_path / "whole.jsonl")
    train(1, 20, whole)
    whole.close()

    log = MetricsLog(path)
    train(1, 13, log)
    log.close()
    with path.open("a") as file:
        file.write('{"step": 14, "tra')
    log = MetricsLog(path)
    with pytest.raises(AssertionError, match="step 11 after step 13"):
        log.log(11, {})
    assert log.truncate_after(10) == 3
    train(11, 20, log)
    log.close()
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    # A file-size limit makes a write stop half-way, as a full disk does.
    logger = run_python(
        """
        import resource, signal, sys
        from pathlib import Path
        from harness.records.metrics_log import MetricsLog
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        log = MetricsLog(Path(sys.argv[1]))
        try:
            for step in range(100):
                log.log(step, {"train/loss": 1 / (step + 1)})
        except OSError as error:
            print(type(error).__name__)
        """,
        tmp_path / "metrics.jsonl",
    )
    assert logger.communicate()[0] == "OSError\n"
    history = read_metrics(tmp_path / "metrics.jsonl")
    assert history.num_damaged_lines == 0
    assert 10 < len(history.rows) < 100


def test_a_slow_or_failing_disk_is_met_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    sync = os.fdatasync
    logged, failed = threading.Event(), threading.Event()

    def fail_slowly(descriptor: int) -> None:
        assert logged.wait(60), "logging has waited for the disk"
        failed.set()
        raise OSError(errno.EIO, "disk gone")

    monkeypatch.setattr(os, "fdatasync", fail_slowly)
    monkeypatch.setattr("harness.records.metrics_log._SYNC_SECONDS", 0.0)
    for step in range(20):
        log.log(step, {"train/loss": 1.0})
    logged.set()
    failed.wait()
    time.sleep(0.05)
    with pytest.raises(OSError, match="disk gone"):
        log.log(20, {"train/loss": 1.0})
    monkeypatch.setattr(os, "fdatasync", sync)
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl").rows) == 20


def test_readers_of_records_import_nothing_heavy() -> None:
    code = "import sys, harness.records.record; print({'torch', 'transformers', 'wandb'} & set(sys.modules))"
    assert run_python(code).communicate()[0] == "set()\n"
