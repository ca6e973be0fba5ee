"""`harness run` in two processes, torchrun and all: killed, stopped, resumed, and equal to one process."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.records.record import Record, RunStatus, read_metrics, read_record
from tests.commands.forked import Command
from tests.random_models import LLAMA, save_random_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random model and a file of sums."""
    root = tmp_path_factory.mktemp("world")
    save_random_model(root / "llama", "llama", **LLAMA)
    rows = [
        {"prompt": f"{i} and {j}?", "response": f"{i + j}."} for i in range(9) for j in range(9)
    ]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def request(world: Path, *overrides: str) -> list[str]:
    return [
        *("run", f"model={world / 'llama'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"),
        *("data.validation_rows=8", "data.test_rows=8", "data.max_length=32", "tracker=none"),
        *("optim.steps=40", "optim.batch_size=4", "lora.dropout=0.1", "eval=loss"),
        *("checkpoint.every_steps=1", f"paths.cache={world / 'cache'}", *overrides),
    ]


def run_directory(directory: Path) -> Path:
    (only,) = (directory / "out" / "runs").iterdir()
    return only


def has_rows(directory: Path, count: int) -> Callable[[], bool]:
    """Return a function that says whether so many steps have been made."""

    def true() -> bool:
        files = list((directory / "out" / "runs").glob("*/metrics.jsonl"))
        return bool(files) and len(read_metrics(files[0]).rows) >= count

    return true


def rank(command: Command, number: int) -> psutil.Process:
    """Return one of the processes that torchrun has started."""
    ranks = psutil.Process(command.process.pid).children()
    (found,) = [each for each in ranks if each.environ()["RANK"] == str(number)]
    return found


def dies(command: Command, directory: Path) -> Path:
    """Kill the second rank after three steps; returns the run's directory, whose record says so."""
    command.wait_until(has_rows(directory, 3))
    rank(command, 1).kill()
    done = command.end()
    run = run_directory(directory)
    record = read_record(run / "run.json")
    log = Path("out", "runs", run.name, "ranks", "1.log")
    assert (done.code, record.status) == (1, RunStatus.failed), done.err
    assert record.error == f"process 1 of 2 was ended by SIGKILL; its output is in {log}"
    assert f"harness: failed: {record.error}; the same command goes on" in done.err
    assert (directory / log).exists()
    return run


def stops(command: Command, directory: Path, run: Path) -> None:
    """Ask command and rank to end three steps on, as a job scheduler may ask all of them."""
    command.wait_until(has_rows(directory, len(read_metrics(run / "metrics.jsonl").rows) + 3))
    os.kill(rank(command, 1).pid, signal.SIGTERM)
    command.send(signal.SIGTERM)
    done = command.end()
    status = read_record(run / "run.json").status
    assert (done.code, status) == (130, RunStatus.interrupted), done.err
    assert "interrupted: stopped by SIGTERM; the same command" in done.err
    assert list((run / "checkpoint").glob("step-*"))


def assert_is_the_run_of_one(run: Path, alone: Path, resumed: int) -> tuple[Record, Record]:
    """Compare a run with the same one in one process; returns both records."""
    record, expected = (read_record(path / "run.json") for path in (run, alone))
    assert record.status is RunStatus.completed
    assert record.run_id == expected.run_id
    assert record.config["resources"]["data_parallel"] == 2
    assert sum(note.startswith("resumed after step") for note in record.notes) == resumed
    curves = [
        [row["train/loss"] for row in read_metrics(path / "metrics.jsonl").rows]
        for path in (run, alone)
    ]
    assert len(curves[0]) == 40
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    scores = [each.evals["after"]["eval/loss"].value for each in (record, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    return record, expected


def test_a_run_whose_base_two_processes_share_is_killed_and_resumed_and_that_of_one(
    world: Path,
) -> None:
    alone, shared = world / "one", world / "halves"
    assert Command(request(world, "quant=nf4_dq"), alone).end().code == 0
    asked = request(world, "quant=nf4_dq", "resources.data_parallel=2", "resources.shard=fsdp")
    run = dies(Command(asked, shared), shared)
    done = Command(asked, shared, forks_ranks=True).end()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert [line for line in done.err.splitlines() if "step " not in line] == [
        f"{run.name}: loading",
        "of the blocks' weights 100.0% are stored as nf4, 100.0% adapted",
    ]
    record, expected = assert_is_the_run_of_one(run, run_directory(alone), resumed=1)
    held = [each.metrics["memory/base_bytes"] for each in (record, expected)]
    assert held[0] is not None
    assert held[1] is not None
    assert held[0] < 0.51 * held[1]


@pytest.mark.slow
def test_a_run_in_two_processes_killed_stopped_and_resumed_is_the_run_of_one(world: Path) -> None:
    alone, shared = world / "alone", world / "shared"
    assert Command(request(world), alone).end().code == 0
    asked = request(world, "resources.data_parallel=2")
    run = dies(Command(asked, shared), shared)
    stops(Command(asked, shared), shared, run)
    assert Command(asked, shared).end().code == 0
    assert_is_the_run_of_one(run, run_directory(alone), resumed=1)
