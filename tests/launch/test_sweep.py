"""`harness sweep launcher=…` whole: real members on a real PostgreSQL, preempted while they train."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.records.record import read_metrics
from harness.sweeping.state import SweepDirectory, SweepStatus, read_state
from tests.launch.conftest import Launched, Slurm, eventually
from tests.sweeping.test_crash import lines_of, losses

STEPS = 60
RUNS = 6


def harness(*words: str) -> str:
    """Run a command of the harness as a user does, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def question(ask) -> Path:
    """Six runs of sixty steps each, of which a member trains one after the other."""
    return ask(
        "launched",
        base=(f"optim.steps={STEPS}",),
        space={"lora.rank": "choice(1,2,4)", "optim.lr": "choice(1e-3,1e-2)"},
        resources={"cohort": 1},
    )


def train_preempted(
    question: Path, url: str, preempt: Callable[[Launched], None], *overrides: str
) -> None:
    """Launch two members, preempt both while they train, and compare with the sweep left in peace."""
    out, alone = question.parent / "launched", question.parent / "alone"
    shared = (f"study.storage={url}", "study.heartbeat_seconds=2")
    said = harness("sweep", str(question), f"paths.out={out}", *shared, *overrides)
    sweep = Launched(out, "launched")
    assert len(sweep.jobs) == 2
    assert all(job.job_id in said for job in sweep.jobs)

    eventually(lambda: lines_of(out) > 10, "members that train")
    preempt(sweep)
    assert lines_of(out) < RUNS * STEPS, "nothing was left to go on with"
    sweep.wait_until("completed", seconds=120)

    state = read_state(SweepDirectory(out, "launched"))
    assert state.status is SweepStatus.finished
    assert [trial.status for trial in state.trials] == ["completed"] * RUNS
    for run_id in losses(out):
        rows = read_metrics(out / "runs" / run_id / "metrics.jsonl").rows
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    harness("sweep", str(question), f"paths.out={alone}", "name=alone")
    assert {run: pytest.approx(loss, abs=1e-6) for run, loss in losses(alone).items()} == losses(
        out
    )
    shown = harness("status", "launched", f"paths.out={out}")
    assert all(line in shown for line in sweep.lines)


@pytest.mark.slow
def test_a_sweep_in_slurm_survives_a_preemption_of_all_its_jobs(slurm, question, postgres_database):
    def preempt(sweep: Launched) -> None:
        slurm.take_the_node()
        sweep.wait_until("pending, BeginTime, requeued once")
        for job in sweep.jobs:
            slurm.begin_again_now(job)

    assert isinstance(slurm, Slurm)
    half = f"launcher.cpus={max(1, (os.cpu_count() or 1) // 2)}"
    launcher = ("launcher=slurm", "launcher.workers=2", "launcher.partition=low", half)
    train_preempted(question, postgres_database, preempt, *launcher)


@pytest.mark.slow
def test_a_sweep_of_local_jobs_survives_it_too(question, postgres_database):
    def preempt(sweep: Launched) -> None:
        for job in sweep.jobs:
            os.kill(int(job.job_id), signal.SIGTERM)
        eventually(lambda: sweep.said.count("Requeued job") == 2, "jobs that begin again")

    launcher = ("launcher=local", "launcher.workers=2")
    train_preempted(question, postgres_database, preempt, *launcher)
