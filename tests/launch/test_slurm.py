"""Jobs in a real Slurm of one node: preempted, requeued and finished, out of time, cancelled, refused."""

import os

import pytest

from harness.errors import RequestError
from tests.launch.conftest import eventually

ENDLESS = 10**6
"""Longer than a test: whoever counts so far ends because it is told to."""
WHOLE_NODE = ("launcher=slurm", f"launcher.cpus={os.cpu_count()}")


@pytest.mark.parametrize("partition", ["low", "abrupt"])
def test_a_preempted_job_is_requeued_and_goes_on_where_it_was(slurm, counting, partition):
    counted = counting(1000, *WHOLE_NODE, f"launcher.partition={partition}")
    counted.wait_until_begun()
    slurm.take_the_node()
    counted.wait_until("requeued once")
    slurm.begin_again_now(*counted.jobs)
    counted.wait_until("completed")
    first, stopped, again, ended = counted.history
    kept = stopped.removeprefix("stops at ")
    assert (first, ended) == ("begins at 0", "ends at 1000")
    assert 0 < int(kept) < 1000
    assert again == f"begins at {kept}"
    assert "completed" in counted.lines[0]
    assert "requeued once" in counted.lines[0]


def test_a_job_whose_time_is_over_goes_on_in_the_requeued_one(slurm, counting):
    limits = ("launcher.time_minutes=1", "launcher.grace_seconds=55")
    counted = counting(ENDLESS, "launcher=slurm", *limits)
    counted.wait_until("requeued once")
    slurm.begin_again_now(*counted.jobs)
    counted.wait_until_begun(2)
    first, stopped, again = counted.history[:3]
    assert first == "begins at 0"
    assert stopped.replace("stops", "begins") == again
    assert "this job is timed-out" in counted.said


def test_several_jobs_are_one_array_and_each_is_a_member(slurm, counting):
    counted = counting(20, "launcher=slurm", "launcher.workers=3", "launcher.memory_gib=0.5")
    assert [job.job_id.partition("_")[2] for job in counted.jobs] == ["0", "1", "2"]
    counted.wait_until("completed")
    assert sum(line.startswith("begins") for line in counted.history) == 3


def test_a_cancelled_job_keeps_what_it_has_and_is_not_begun_again(slurm, counting):
    counted = counting(ENDLESS, "launcher=slurm")
    counted.wait_until_begun()
    slurm.cancel(*counted.jobs)
    counted.wait_until(
        "cancelled"
    )  # which Slurm says at once, and its processes hear a little later
    eventually(lambda: counted.history[-1].startswith("stops at "), "the member's stop")
    assert "requeued" not in counted.lines[0]


def test_what_slurm_cannot_give_is_refused_in_its_words(slurm, counting):
    with pytest.raises(RequestError, match=r"Slurm refused the jobs: .*invalid partition"):
        counting(1, "launcher=slurm", "launcher.partition=gpus_of_others")


def test_lines_of_setup_come_before_the_member(slurm, counting, tmp_path):
    mark = tmp_path / "prepared"
    counted = counting(1, "launcher=slurm", f"launcher.setup=[touch {mark}]")
    counted.wait_until("completed")
    assert mark.exists()
