"""`harness run`: one run from the request to the record.

Torch is imported only when everything that can be refused without it has been.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.source import ModelSource, find_model, model_fingerprint
from harness.compose import compose_run
from harness.config import PathsConfig, RunConfig
from harness.console import RunDisplay, print_result
from harness.data.check import check_data, data_fingerprint
from harness.errors import RequestError
from harness.evals.choices import check_choices
from harness.identity import Identity, identify
from harness.provenance import collect_provenance, write_code_diff
from harness.record import Record, RecordError, RunStatus, read_record
from harness.run_directory import RunDirectory
from harness.tracking import check_tracker
from harness.validate import validate

if TYPE_CHECKING:
    from harness.data.prepare import PreparedData
    from harness.training.job import Job

_SETTLED = (RunStatus.completed, RunStatus.pruned, RunStatus.diverged)
"""Ends that training again would only repeat. Failed, interrupted and out-of-memory runs go on."""

_EXIT_CODES = {RunStatus.completed: 0, RunStatus.pruned: 0, RunStatus.interrupted: 130}


def run_command(overrides: Sequence[str], *, as_json: bool) -> int:
    """Train the run that `overrides` describe, or show it if it is done; return the exit code."""
    config = compose_run(overrides)
    record, directory = run(config)
    print_result(record, directory, as_json=as_json)
    return _EXIT_CODES.get(record.status, 1)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request for one run: what it is, and where it is kept."""

    config: RunConfig
    source: ModelSource
    fingerprint: str
    """Of the model's contents."""
    identity: Identity
    directory: RunDirectory


def make_request(config: RunConfig) -> Request:
    """Refuse what is wrong with `config` as far as it shows without torch, and identify the run."""
    check(config)
    source = find_model(config.model)
    check_writable(config.paths)
    memo = Path(config.paths.cache or Path(config.paths.out) / "cache") / "fingerprints.json"
    fingerprint = model_fingerprint(source, memo)
    identity = identify(
        config, model_fingerprint=fingerprint, data_fingerprint=data_fingerprint(config.data)
    )
    directory = RunDirectory(Path(config.paths.out) / "runs" / identity.run_id)
    return Request(config, source, fingerprint, identity, directory)


def run(config: RunConfig) -> tuple[Record, RunDirectory]:
    """Train one run and return its record. A run that has ended well before is not trained again."""
    request = make_request(config)
    directory, source, fingerprint = request.directory, request.source, request.fingerprint
    settled = settled_record(directory)
    if settled is not None:
        return settled, directory
    if directory.path.is_dir():
        with directory.lock():
            pass  # a run that another process trains is refused before torch is loaded

    from harness.measure.memory import is_out_of_memory
    from harness.training.entry import record_without_base
    from harness.training.launch import open_base, prepare
    from harness.training.session import RunEnded, train
    from harness.training.stop import stop_on_signals

    data = prepare(config, source, fingerprint)
    with RunDisplay(request.identity.run_id) as display:
        try:
            shared = open_base(config, source, fingerprint)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            with directory.lock():
                job = make_job(request, data)
                return record_without_base(job, error), directory
        with directory.lock(), stop_on_signals() as stop:
            settled = settled_record(directory)  # by a process that held the lock until just now
            if settled is not None:
                return settled, directory
            job = make_job(request, data)
            for event in train(shared, iter([job]), capacity=1, stop=stop):
                display.show(event)
                if isinstance(event, RunEnded):
                    return event.record, directory
    raise KeyboardInterrupt  # asked to stop before the run was admitted


def check_writable(paths: PathsConfig) -> None:
    """Create the directories of `paths` and refuse one that cannot be written to."""
    for key, name in (("out", paths.out), ("cache", paths.cache)):
        if name is None:
            continue
        directory = Path(name)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise RequestError(
                f"paths.{key}={name} cannot be written to: {error.strerror} "
                f"({directory.absolute()}); give a directory that this user can create files in"
            ) from error


def check(config: RunConfig) -> None:
    """Refuse whatever is wrong with the request, as far as it shows without torch."""
    validate(config)
    check_data(config.data)
    check_choices(config.eval)
    check_tracker(config.tracker)


def settled_record(directory: RunDirectory) -> Record | None:
    """Return the record of a run that need not be trained again, or None."""
    try:
        record = read_record(directory.record)
    except RecordError:
        return None
    return record if record.status in _SETTLED else None


def make_job(request: Request, data: "PreparedData") -> "Job":
    """Return the job of one run, with its provenance collected and its directory begun."""
    from harness.training.job import Job
    from harness.training.launch import data_notes

    write_code_diff(request.directory.code_diff)
    provenance = collect_provenance(
        model_fingerprint=request.fingerprint, data_fingerprint=data.fingerprint
    ).as_tree()
    provenance |= {
        "cell_id": request.identity.cell_id,
        "seed": request.config.seed,
        "data": data.report.as_dict(),
    }
    return Job(
        config=request.config,
        run_id=request.identity.run_id,
        directory=request.directory,
        data=data,
        provenance=provenance,
        notes=data_notes(data),
    )
