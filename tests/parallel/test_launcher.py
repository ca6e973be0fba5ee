"""What a run's record says when a process of it has died, and how fast; the processes here only die."""

import signal
from pathlib import Path

import pytest

from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.parallel import launcher
from harness.parallel.launcher import train_in_ranks
from harness.records.record import Record, RunStatus, read_record, write_record
from harness.request import Request, make_request


@pytest.fixture
def request_for_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The request for a run in two processes, whose place the tests' own processes take."""
    monkeypatch.setattr(launcher, "RANK_MODULE", "tests.parallel.endings")
    overrides = [f"paths.out='{tmp_path}'", "resources.data_parallel=2", "resources.device=cpu"]
    return make_request(compose_run([*overrides, "tracker=none"]))


def end(monkeypatch: pytest.MonkeyPatch, ending: str, rank: int) -> None:
    monkeypatch.setenv("ENDING", ending)
    monkeypatch.setenv("FAILING", str(rank))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_in_seconds_and_its_log_is_named(
    request_for_two: Request, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    end(monkeypatch, "killed", rank)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]
    record = train_in_ranks(request_for_two)
    log = request_for_two.directory.path / "ranks" / f"{rank}.log"
    assert record.status is RunStatus.failed
    assert record.error == (f"process {rank} of 2 was ended by SIGKILL; its output is in {log}")
    assert read_record(request_for_two.directory.record) == record
    assert log.exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)] == handlers


def test_what_a_process_said_last_is_the_error(
    request_for_two: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(monkeypatch, "breaks", 1)
    record = train_in_ranks(request_for_two)
    assert record.status is RunStatus.failed
    assert "process 1 of 2 exited with 1: OSError: no space left on device; " in record.error  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_runs_out_of_memory_in_a_pass_is_a_result(
    request_for_two: Request, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    end(monkeypatch, "has no memory", rank)
    record = train_in_ranks(request_for_two)
    assert record.status is RunStatus.out_of_memory
    words = f"process {rank} of 2 exited with 3: torch.OutOfMemoryError: no room; "
    assert words in (record.error or "")


def test_a_refusal_leaves_nothing_behind(
    request_for_two: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(monkeypatch, "refuses", 0)
    with pytest.raises(RequestError, match=r"lora\.rank=512 is above 32"):
        train_in_ranks(request_for_two)
    assert not request_for_two.directory.path.exists()


def test_a_process_that_dies_after_the_end_changes_nothing(
    request_for_two: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = request_for_two.directory
    directory.path.mkdir(parents=True)
    run_id = request_for_two.identity.run_id
    write_record(
        directory.record, Record(run_id=run_id, status=RunStatus.completed, config={}, notes=["x"])
    )
    end(monkeypatch, "killed", 1)
    assert train_in_ranks(request_for_two).status is RunStatus.completed
    assert read_record(directory.record).notes == ["x"]
