"""Several members of one sweep on a real PostgreSQL: one budget, nothing twice, and no end by a dead one."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, OperationalError, PendingRollbackError, SQLAlchemyError

from harness.records.record import read_metrics, read_records
from harness.sweeping.member import is_outage
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, read_state
from harness.tracking.wandb_file import read_wandb_run
from tests.commands.forked import Command
from tests.sweeping.test_crash import completed, lines_of, losses

SECONDS = 120.0
HEARTBEAT_SECONDS = 2
TRIALS = 12


def member(command: str, sweep: str, out: Path, *overrides: str) -> Command:
    """Start a member in a process group of its own, with one thread and its libraries loaded."""
    log = out.parent / f"{out.name}-{command}.log"
    return Command([command, sweep, f"paths.out={out}", *overrides], out.parent, log=log)


def shared(url: str) -> dict[str, dict[str, object]]:
    return {"study": {"storage": url, "heartbeat_seconds": HEARTBEAT_SECONDS}}


def wait_until(happened, process: Command, log: Path) -> None:
    give_up = time.monotonic() + SECONDS
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.05)


def state_of(out: Path, name: str) -> SweepState:
    return read_state(SweepDirectory(out, name))


def sweep_log(out: Path, name: str) -> str:
    log = SweepDirectory(out, name).log
    return log.read_text() if log.exists() else ""


def test_three_members_one_of_them_killed_train_every_cell_once_and_find_what_one_alone_finds(
    ask, tmp_path, postgres_database
):
    space = {"lora.rank": "choice(1,2,4)", "optim.lr": "choice(1e-3,5e-3)"}
    question = {
        "base": ("optim.steps=20", "eval.every_steps=10", "checkpoint.every_steps=10"),
        "space": space | {"quant": "choice(nf4,int4)"},
        "confirm": {"top": 2, "seeds": [5]},
        "resources": {"cohort": 4},
    }
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert member("sweep", str(ask("one", **question)), alone).wait(SECONDS) == 0

    file = ask("three", **question, **shared(postgres_database))
    first = member("sweep", str(file), together)
    log = tmp_path / "together-sweep.log"
    wait_until(lambda: lines_of(together) > 0, first, log)
    storage = f"study.storage={postgres_database}"
    others = [member("worker", "three", together, storage) for _ in range(2)]
    wait_until(lambda: len(completed(together)) >= 4, first, log)
    victim = others[0]
    known = completed(together)
    os.killpg(victim.pid, signal.SIGKILL)
    assert first.wait(SECONDS) == 0, log.read_text()
    assert others[1].wait(SECONDS) == 0, (tmp_path / "together-worker.log").read_text()

    state = state_of(together, "three")
    assert state.status is SweepStatus.finished
    assert [trial.number for trial in state.trials] == list(range(TRIALS))
    assert {trial.status for trial in state.trials} == {"completed"}
    assert not read_records(together)[1]
    assert known.items() <= completed(together).items(), "a completed run was trained again"
    one, three = losses(alone), losses(together)
    assert one.keys() == three.keys()
    assert len(three) == TRIALS + 2
    for run_id, found in three.items():
        assert found == pytest.approx(one[run_id], rel=0, abs=1e-6)
        rows = read_metrics(together / "runs" / run_id / "metrics.jsonl").rows
        assert [row["step"] for row in rows] == list(range(1, 21))
    values = {json.dumps(t.point, sort_keys=True): t.values for t in state_of(alone, "one").trials}
    for trial in state.trials:
        assert trial.values == pytest.approx(
            values[json.dumps(trial.point, sort_keys=True)], abs=1e-6
        )


def test_a_member_that_wakes_up_late_changes_nothing(ask, tmp_path, postgres_database):
    file = ask(
        "late",
        base=("optim.steps=150", "checkpoint.every_steps=10"),
        space={"lora.rank": "choice(1,2,4)", "optim.lr": "choice(1e-3,1e-2)"},
        search={"method": "random", "trials": 6},
        resources={"cohort": 2},
        **shared(postgres_database),
    )
    here, there = tmp_path / "here", tmp_path / "there"
    first = member("sweep", str(file), here)
    log = tmp_path / "here-sweep.log"
    wait_until(lambda: lines_of(here) > 0, first, log)
    late = member("worker", "late", there, f"study.storage={postgres_database}")
    wait_until(lambda: lines_of(there) > 0, first, log)
    os.killpg(late.pid, signal.SIGSTOP)
    wait_until(lambda: "gives no sign of life" in sweep_log(here, "late"), first, log)
    os.killpg(late.pid, signal.SIGCONT)
    assert first.wait(SECONDS) == 0, log.read_text()
    assert late.wait(SECONDS) == 0, (tmp_path / "there-worker.log").read_text()
    for out in (here, there):
        state = state_of(out, "late")
        assert [trial.number for trial in state.trials] == list(range(6))
        assert {trial.status for trial in state.trials} == {"completed"}
    assert "ran out before it was renewed" in sweep_log(there, "late")


def test_a_member_that_is_asked_to_leave_gives_back_what_it_has_and_the_others_end_it(
    ask, tmp_path, postgres_database
):
    file = ask(
        "leave",
        base=("optim.steps=80", "checkpoint.every_steps=10", "tracker=wandb_offline"),
        space={"lora.rank": "choice(1,2,4)"},
        **shared(postgres_database),
    )
    out = tmp_path / "out"
    first = member("sweep", str(file), out)
    wait_until(lambda: lines_of(out) > 5, first, tmp_path / "out-sweep.log")
    os.killpg(first.pid, signal.SIGTERM)
    assert first.wait(SECONDS) == 130
    before = lines_of(out)
    assert before < 240
    worker = member("worker", "leave", out)  # sweep.yaml says where the study is
    assert worker.wait(SECONDS) == 0, (tmp_path / "out-worker.log").read_text()
    assert "gives no sign of life" not in sweep_log(out, "leave")  # it had said good-bye
    assert lines_of(out) == 240
    assert len(completed(out)) == 3
    # Nobody but the worker has seen the end: it wrote the sweep's own W&B run.
    mirrored = read_wandb_run(out / "sweeps" / "leave")
    assert (mirrored.run_id, mirrored.problems) == ("sweep-leave", [])
    assert mirrored.summary["state"]["status"] == "finished"


def test_a_server_that_goes_away_is_waited_for_and_the_sweep_goes_on(
    ask, tmp_path, postgres_url, postgres_database
):
    file = ask(
        "outage",
        base=("optim.steps=150", "checkpoint.every_steps=10"),
        space={"lora.rank": "choice(1,2,4)"},
        **shared(postgres_database),
    )
    out = tmp_path / "out"
    name = postgres_database.rpartition("/")[2]
    process = member("sweep", str(file), out)
    log = tmp_path / "out-sweep.log"
    wait_until(lambda: lines_of(out) > 20, process, log)
    engine = sqlalchemy.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(
            sqlalchemy.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            ),
            {"name": name},
        )
        wait_until(lambda: "server is gone" in sweep_log(out, "outage"), process, log)
        connection.execute(sqlalchemy.text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    assert process.wait(SECONDS) == 0, log.read_text()
    assert lines_of(out) == 450  # no step was lost or made twice
    assert {trial.status for trial in state_of(out, "outage").trials} == {"completed"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_members_that_are_killed_and_frozen_again_and_again_end_like_one_alone(
    ask, tmp_path, postgres_database
):
    question = {
        "base": ("optim.steps=120", "eval.every_steps=40"),
        "space": {"lora.rank": "choice(1,2,4)", "optim.lr": "interval(1e-4,5e-3)"},
        "search": {"method": "random", "trials": 24},
        "confirm": {"top": 2, "seeds": [5, 6]},
        "resources": {"cohort": 2},
    }
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert member("sweep", str(ask("one", **question)), alone).wait(4 * SECONDS) == 0
    file = ask("many", **question, **shared(postgres_database))
    chance = random.Random(7)
    members = [member("sweep", str(file), out)]
    wait_until(lambda: lines_of(out) > 0, members[0], tmp_path / "out-sweep.log")
    members += [member("worker", "many", out) for _ in range(2)]
    for _ in range(10):
        time.sleep(chance.uniform(1, 5))
        victim = chance.choice(members)
        if chance.random() < 0.5:
            os.killpg(victim.pid, signal.SIGKILL)
            victim.wait()
        else:  # longer than its leases last
            os.killpg(victim.pid, signal.SIGSTOP)
            time.sleep(2.5 * HEARTBEAT_SECONDS)
            os.killpg(victim.pid, signal.SIGCONT)
        members = [each for each in members if each.poll() is None]
        while len(members) < 3:
            members.append(member("worker", "many", out))
    for each in members:
        assert each.wait(4 * SECONDS) == 0, (tmp_path / "out-worker.log").read_text()
    state = state_of(out, "many")
    assert state.status is SweepStatus.finished
    assert [trial.number for trial in state.trials] == list(range(24))
    assert {trial.status for trial in state.trials} == {"completed"}
    one, many = losses(alone), losses(out)
    assert one.keys() == many.keys()
    for run_id, found in many.items():
        assert found == pytest.approx(one[run_id], rel=0, abs=1e-6)


def lost(repeated: bool) -> Exception:
    """Return the error in which Optuna ends when the server ends the connection in the middle of a query."""
    try:
        try:
            try:
                raise OperationalError("SELECT", {}, Exception("server closed the connection"))
            except OperationalError:
                if repeated:  # Optuna reads once more, in the transaction that is no more
                    raise PendingRollbackError("Can't reconnect") from None
                raise
        except SQLAlchemyError as error:
            raise StorageInternalError("An exception is raised during the commit.") from error
    except StorageInternalError as error:
        return error


@pytest.mark.parametrize("repeated", [False, True])
def test_a_connection_that_is_lost_in_the_middle_of_a_query_is_an_outage(repeated):
    assert is_outage(lost(repeated))


def test_an_error_of_the_data_is_no_outage():
    error = StorageInternalError("too long")
    error.__cause__ = DataError("INSERT", {}, Exception("too long"))
    assert not is_outage(error)
