"""What a configuration costs alone, from its probe's record into the records of the runs that have it.

Must not import torch, transformers or wandb.
"""

from harness.records.metrics import COHORT_SHARES
from harness.records.record import (
    MeasuredIn,
    Record,
    RecordError,
    RunStatus,
    read_record,
    write_record,
)
from harness.records.run_directory import RunDirectory


def costs_of(probe: RunDirectory) -> dict[str, float | None] | None:
    """Return what a probe measured; None where it has not ended, and nothing where it had no memory."""
    try:
        record = read_record(probe.record)
    except RecordError:
        return None
    if record.measured_in is not MeasuredIn.probe:
        return None
    match record.status:
        case RunStatus.completed:
            return {n: value for n, value in record.metrics.items() if n in COHORT_SHARES}
        case RunStatus.out_of_memory:
            return {}
        case _:
            return None


def take_costs(record: Record, probe: RunDirectory) -> bool:
    """Put a probe's costs into a record; False where there are none, or it has them."""
    costs = costs_of(probe)
    if costs is None or (record.probe == probe.path.name and record.alone == costs):
        return False
    record.probe, record.alone = probe.path.name, costs
    return True


def rewrite_with_costs(directory: RunDirectory, probe: RunDirectory) -> None:
    """Put a probe's costs into the record of a run that has ended, if it lacks them."""
    try:
        record = read_record(directory.record)
    except RecordError:
        return
    if record.status not in (RunStatus.running, RunStatus.interrupted) and take_costs(
        record, probe
    ):
        write_record(directory.record, record)
