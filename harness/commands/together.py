"""Many runs from request to record: those that share a base and data train side by side."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from harness.config.schema import RunConfig
from harness.records.record import Record
from harness.request import Request, make_request, settled_record


def _cohort(request: Request) -> str:
    """Return what runs must share to train side by side: base, rows of one length, device."""
    config = request.config
    return repr((request.fingerprint, config.quant, config.data, config.resources, config.paths))


def run_together(configs: Sequence[RunConfig], capacity: int) -> list[Record]:
    """Train `configs`, at most `capacity` side by side; records in the same order.

    All are checked before any is trained, runs that have ended are only read, and the same run asked for
    twice is trained once. KeyboardInterrupt after a polite stop: every run's checkpoint is on disk.
    """
    requests = [make_request(config) for config in configs]
    records = {r.identity.run_id: settled_record(r.directory) for r in requests}
    waiting = {r.identity.run_id: r for r in requests if records[r.identity.run_id] is None}
    for cohort in dict.fromkeys(_cohort(request) for request in waiting.values()):
        members = [request for request in waiting.values() if _cohort(request) == cohort]
        for record in _train_cohort(members, capacity):
            records[record.run_id] = record
            print(f"{record.run_id}  {record.status.value}", file=sys.stderr)
    found = [records[request.identity.run_id] for request in requests]
    return [record for record in found if record is not None]


def _train_cohort(requests: Sequence[Request], capacity: int) -> list[Record]:
    from harness.training.entry import RunEntry
    from harness.training.launch import make_job, open_base, prepare
    from harness.training.packing import Packing
    from harness.training.session import Queue, RunEnded, train
    from harness.training.stop import stop_on_signals

    first = requests[0]
    prepared = [prepare(r.config, r.source, r.fingerprint) for r in requests]
    with ExitStack() as held, stop_on_signals() as stop:
        for request in requests:
            held.enter_context(request.directory.lock())
        jobs = (make_job(request, data) for request, data in zip(requests, prepared, strict=True))
        shared = open_base(first.config, first.source, first.fingerprint)
        packing = Packing(max_slots=capacity, predicted_bytes=RunEntry.predicted_pass_bytes)
        events = train(shared, Queue(jobs), packing=packing, stop=stop)
        records = [event.record for event in events if isinstance(event, RunEnded)]
    if stop:
        raise KeyboardInterrupt
    return records
