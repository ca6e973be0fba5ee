"""The same path without Slurm: submitit's processes on this machine, told to stop, killed, and shown."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.errors import RequestError
from harness.launch.jobs import Submitted, job_lines, keep_jobs
from harness.sweeping.state import SweepDirectory
from tests.launch.conftest import eventually


def test_a_job_that_is_told_to_stop_goes_on_where_it_was(counting):
    counted = counting(1000, "launcher=local")
    counted.wait_until_begun()
    os.kill(int(counted.jobs[0].job_id), signal.SIGTERM)
    counted.wait_until_begun(2)
    counted.wait_until("completed")
    first, stopped, again, ended = counted.history
    assert (first, ended) == ("begins at 0", "ends at 1000")
    assert 0 < int(stopped.removeprefix("stops at ")) < 1000
    assert stopped.replace("stops", "begins") == again


def test_every_worker_is_a_process_of_its_own(counting):
    counted = counting(100, "launcher=local", "launcher.workers=2")
    assert all("running" in line for line in counted.lines)
    counted.wait_until("completed")
    assert sorted(counted.history) == ["begins at 0"] * 2 + ["ends at 100"] * 2


def test_a_member_whose_job_is_killed_stops_too_and_keeps_its_count(counting):
    counted = counting(10**6, "launcher=local")
    counted.wait_until_begun()
    controller = psutil.Process(int(counted.jobs[0].job_id))
    (job,) = controller.children()
    (member,) = job.children()
    job.kill()
    eventually(lambda: not member.is_running(), "the end of the member")
    assert counted.history[-1].startswith("stops at ")
    counted.wait_until("gone")


def test_a_member_that_fails_fails_its_job(counting, tmp_path):
    (tmp_path / "count").write_text("no number")
    counted = counting(1, "launcher=local")
    counted.wait_until("failed")
    assert "ended with exit code 1; its own words stand above" in counted.said
    assert "invalid literal for int()" in counted.said


def test_gpus_that_are_not_here_are_refused(counting, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(RequestError, match="this machine shows 3 CUDA devices"):
        counting(1, "launcher=local", "launcher.gpus=2", "launcher.workers=2")


def test_jobs_that_cannot_be_asked_from_here_are_unknown_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for launcher in ("slurm", "local"):
        job = Submitted(
            job_id="17", launcher=launcher, where="elsewhere", submitted_at="then", log="17.log"
        )
        keep_jobs(tmp_path, "old", [job])
    assert job_lines(SweepDirectory(tmp_path, "old")) == [
        "job 17 on elsewhere: unknown here; 17.log",
        "process 17 on elsewhere: unknown here; 17.log",
    ]


def test_without_slurm_a_launcher_says_what_is_missing(counting, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RequestError, match="there are none here; run this on a login node"):
        counting(1, "launcher=slurm")


def test_nothing_heavy_is_loaded_to_show_jobs():
    code = "import harness.launch.jobs, harness.launch.submit, sys; print(*sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"torch", "optuna", "submitit", "sqlalchemy"} & set(done.stdout.split())
