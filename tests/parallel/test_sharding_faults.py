"""Processes hold a base together, and one of them fails: what the run says, and that nobody waits on it."""

import os
import sys
from enum import Enum
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from harness.config.schema import QuantConfig, RunConfig
from harness.parallel import shares
from harness.parallel.group import join
from harness.parallel.leader import Leader
from harness.records.record import RunStatus, read_record
from harness.training.job import Job
from tests.commands.forked import warm_context
from tests.parallel.conftest import Sharding, asked, free_port
from tests.parallel.following import Harm, follow, opened
from tests.parallel.test_ranks import curve, run_all
from tests.training.conftest import MakeBase, MakeJob


def test_a_base_that_does_not_fit_beside_another_process_is_told_before_a_run(
    sharding: Sharding,
) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"process 1: .*no room for the base"),
        sharding(QuantConfig(), harm=Harm.base_does_not_fit),
    ):
        pass


def test_a_pass_that_fails_in_another_process_ends_the_run(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding
) -> None:
    whole = make_base()
    with sharding(QuantConfig(), harm=Harm.second_pass_fails, exit_code=1) as (leader, half):
        job = make_job(whole, "run")
        record = run_all(half, [job], leader)["run"]
    assert record.status is RunStatus.failed
    assert "another process of the run is gone" in (record.error or "")
    assert len(curve(job)) == 1


def test_a_micro_batch_that_leaves_a_process_without_rows_is_refused_and_the_next_run_goes_on(
    make_base: MakeBase, make_job: MakeJob, sharding: Sharding
) -> None:
    whole = make_base()
    jobs = [make_job(whole, name, optim={"steps": 2}) for name in ("tiny", "next")]
    jobs[0].config.optim.micro_batch_size = 1
    with sharding(QuantConfig()) as (leader, half):
        records = run_all(half, jobs, leader)
    assert records["tiny"].status is RunStatus.failed
    assert "fewer rows than 2 processes" in (records["tiny"].error or "")
    assert records["next"].status is RunStatus.completed


class Breaks(Enum):
    """Where the leader has no memory."""

    in_a_pass = "in_a_pass"
    in_an_evaluation = "in_an_evaluation"


def lead_until_it_breaks(
    config: RunConfig, job: Job, breaks: Breaks, environment: dict[str, str]
) -> None:
    """Be the leader of a run that runs out of memory; exit code 3 if it knows that it was in a pass."""
    os.environ.update(environment)
    error = torch.OutOfMemoryError("no room")
    with join(config.resources) as group, Leader(group, [Path("0"), Path("1")]) as leader:
        base = opened(config, shard=leader.shard)
        match breaks:
            case Breaks.in_a_pass:
                with patch.object(shares, "packed_gradients", side_effect=error):
                    run_all(base, [job], leader)
            case Breaks.in_an_evaluation:
                block = base.model.get_submodule("model.layers.1")
                with patch.object(type(block), "forward", side_effect=error):
                    run_all(base, [job], leader)
    if leader.fault is not None and leader.fault.is_out_of_memory:
        sys.exit(3)


@pytest.mark.parametrize("breaks", Breaks)
def test_a_leader_out_of_memory_ends_the_run_and_leaves_nobody_waiting(
    make_base: MakeBase, make_job: MakeJob, pretrained: Path, tmp_path: Path, breaks: Breaks
) -> None:
    job = make_job(make_base(), "run")
    config = asked(pretrained, tmp_path, tmp_path / "cache", QuantConfig(), 2)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    context = warm_context()
    leader = context.Process(
        target=lead_until_it_breaks, args=(config, job, breaks, {**common, "RANK": "0"})
    )
    follower = context.Process(target=follow, args=(config, Harm.none, {**common, "RANK": "1"}))
    try:
        for process in (leader, follower):
            process.start()
        for process in (leader, follower):
            process.join(30)
        codes = leader.exitcode, follower.exitcode
    finally:
        for process in (leader, follower):
            process.kill()
    record = read_record(job.directory.record)
    match breaks:
        case Breaks.in_a_pass:  # whose exit code says so to the command that has started it
            assert (*codes, record.status) == (3, 1, RunStatus.failed)
            assert "OutOfMemoryError: no room (the other process cannot" in (record.error or "")
        case Breaks.in_an_evaluation:
            assert (*codes, record.status) == (0, 1, RunStatus.out_of_memory)
