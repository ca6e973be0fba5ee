"""Many runs from request to record: those that share a base and data train side by side."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness.base.source import find_model, model_fingerprint
from harness.commands.run import check, make_job, settled_record
from harness.config import RunConfig
from harness.data.check import data_fingerprint
from harness.identity import Identity, identify
from harness.record import Record
from harness.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class _Request:
    config: RunConfig
    identity: Identity
    directory: RunDirectory
    fingerprint: str

    @property
    def cohort(self) -> str:
        """What runs must share to train side by side: base, rows of one length, device."""
        config = self.config
        return repr((self.fingerprint, config.quant, config.data, config.resources, config.paths))


def run_together(configs: Sequence[RunConfig], capacity: int) -> list[Record]:
    """Train `configs`, at most `capacity` side by side; records in the same order.

    All are checked before any is trained, runs that have ended are only read, and the same run asked for
    twice is trained once. KeyboardInterrupt after a polite stop: every run's checkpoint is on disk.
    """
    requests = [_request(config) for config in configs]
    records = {r.identity.run_id: settled_record(r.directory) for r in requests}
    waiting = {r.identity.run_id: r for r in requests if records[r.identity.run_id] is None}
    for cohort in dict.fromkeys(request.cohort for request in waiting.values()):
        members = [request for request in waiting.values() if request.cohort == cohort]
        for record in _train_cohort(members, capacity):
            records[record.run_id] = record
            print(f"{record.run_id}  {record.status.value}", file=sys.stderr)
    found = [records[request.identity.run_id] for request in requests]
    return [record for record in found if record is not None]


def _request(config: RunConfig) -> _Request:
    check(config)
    source = find_model(config.model)
    memo = Path(config.paths.cache or Path(config.paths.out) / "cache") / "fingerprints.json"
    fingerprint = model_fingerprint(source, memo)
    identity = identify(
        config, model_fingerprint=fingerprint, data_fingerprint=data_fingerprint(config.data)
    )
    directory = RunDirectory(Path(config.paths.out) / "runs" / identity.run_id)
    return _Request(config, identity, directory, fingerprint)


def _train_cohort(requests: Sequence[_Request], capacity: int) -> list[Record]:
    from harness.training.launch import open_base, prepare
    from harness.training.session import RunEnded, train
    from harness.training.stop import stop_on_signals

    first = requests[0]
    source = find_model(first.config.model)
    prepared = [prepare(r.config, source, r.fingerprint) for r in requests]
    with ExitStack() as held, stop_on_signals() as stop:
        for request in requests:
            held.enter_context(request.directory.lock())
        jobs = (
            make_job(r.config, r.identity, r.directory, r.fingerprint, p.data)
            for r, p in zip(requests, prepared, strict=True)
        )
        shared = open_base(first.config, source, first.fingerprint)
        events = train(shared, jobs, capacity=capacity, stop=stop)
        records = [event.record for event in events if isinstance(event, RunEnded)]
    if stop:
        raise KeyboardInterrupt
    return records
