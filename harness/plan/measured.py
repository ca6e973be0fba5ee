"""Measured costs of planned configurations: from records on disk, or by a probe in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.config.compose import config_tree
from harness.config.resources import Shard
from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed
from harness.plan.costs import CostGroup
from harness.plan.probe import probe_config
from harness.records.record import MeasuredIn, Record, RecordError, RunStatus, read_record
from harness.request import Request, make_request

PROBE = "harness.commands.probe"
"""The module that a probe's process runs; it reads a configuration's tree from standard input."""
_MEASURED_ALONE = (MeasuredIn.probe, MeasuredIn.solo)


def find_measured(groups: Sequence[CostGroup], *, probe: bool) -> None:
    """Give each group what a probe or one of its runs alone has measured; with `probe`, measure the rest.

    Raises RunFailed where a probe breaks; one that runs out of memory is a result. Raises RequestError for a
    probe of a run whose base several processes share.
    """
    for group in groups:
        config = group.configs[0]
        if group.refusal is not None or not (probe or _has_runs(config)):
            continue
        if config.resources.shard is not Shard.none:
            if probe:
                raise RequestError(
                    f"--probe measures one process with the whole base, and resources.shard="
                    f"{config.resources.shard.value} divides it; leave one of them out"
                )
            continue
        request = make_request(probe_config(config), writes=False)
        record = _record(request) or next(_alone(group), None)
        if record is None and probe:
            record = _probe(request)
        if record is not None:
            _take(group, record)


def _has_runs(config: RunConfig) -> bool:
    return (Path(config.paths.out) / "runs").is_dir()


def _record(request: Request) -> Record | None:
    """Return the record of a run that measured its own cost and has ended."""
    try:
        record = read_record(request.directory.record)
    except RecordError:
        return None
    ended = record.status in (RunStatus.completed, RunStatus.out_of_memory)
    return record if ended and record.measured_in in _MEASURED_ALONE else None


def _alone(group: CostGroup) -> Iterator[Record]:
    """Yield the records of the group's own runs that had a process to themselves."""
    for config in group.configs:
        record = _record(make_request(config, writes=False))
        if record is not None and not _shares_its_base(record):
            yield record


def _shares_its_base(record: Record) -> bool:
    """Say whether a run's memory is that of one process of several: a record from before could not."""
    return record.config["resources"].get("shard", Shard.none.value) != Shard.none.value


def _probe(request: Request) -> Record:
    done = subprocess.run(
        [sys.executable, "-m", PROBE],
        input=json.dumps(config_tree(request.config)),
        text=True,
        capture_output=True,
        check=False,
    )
    record = _record(request)
    if record is None:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunFailed(f"the probe {request.identity.run_id} failed: {said}")
    return record


def _take(group: CostGroup, record: Record) -> None:
    group.measured = dict(record.metrics)
    step_ms = record.metrics.get("throughput/step_ms")
    if step_ms is not None and group.step_seconds is None:
        group.step_seconds = step_ms / 1e3
