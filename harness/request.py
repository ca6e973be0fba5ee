"""A checked, identified request for one run, and whether it has been answered. Imports no torch.

Everything that can be refused without torch is refused here.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.base.source import ModelSource, find_model, model_fingerprint
from harness.config.compose import config_of_tree
from harness.config.identity import Identity, identify
from harness.config.resources import ResourcesConfig
from harness.config.schema import PathsConfig, RunConfig
from harness.config.validate import validate
from harness.data.check import check_data, data_fingerprint
from harness.errors import RequestError
from harness.evals.choices import check_choices
from harness.evals.domain_text import check_base_domain
from harness.evals.tasks import check_tasks, tasks_fingerprint
from harness.records.record import Record, RecordError, RunStatus, read_record
from harness.records.redact import REDACTED, redact
from harness.records.run_directory import RunDirectory
from harness.tracking import check_tracker

_SETTLED = (RunStatus.completed, RunStatus.diverged)
"""Ends that training again would only repeat. Failed, interrupted and out-of-memory runs go on; a run that a
sweep has pruned begins anew."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request for one run: what it is, and where it is kept."""

    config: RunConfig
    source: ModelSource
    fingerprint: str
    """Fingerprint of the model's contents."""
    identity: Identity
    directory: RunDirectory


def make_request(config: RunConfig, *, writes: bool = True) -> Request:
    """Refuse what is wrong with `config` as far as it shows without torch, and identify the run.

    What only looks (`writes=False`) leaves the disk as it is, and may find one that cannot be written to.
    """
    check(config)
    source = find_model(config.model)
    if writes:
        check_writable(config.paths)
    memo = _cache(config.paths) / "fingerprints.json"
    fingerprint = model_fingerprint(source, memo, keep=writes)
    identity = identify(
        config,
        model_fingerprint=fingerprint,
        data_fingerprint=data_fingerprint(config.data),
        tasks_fingerprint=tasks_fingerprint(config.eval),
    )
    directory = RunDirectory(Path(config.paths.out) / "runs" / identity.run_id)
    return Request(config, source, fingerprint, identity, directory)


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run that has left an adapter, or a base alone, to be opened again."""

    name: str
    """Run's id, or `base`."""
    config: RunConfig
    source: ModelSource
    fingerprint: str
    """Fingerprint of the model's contents, as it was trained on and as it is now."""
    record: Record | None = None
    """None: the base alone."""
    directory: RunDirectory | None = None

    @property
    def base_key(self) -> str:
        """What runs must have in common to be computed on one base in memory."""
        lora = self.config.lora
        adapted = (lora.rewrites_base or lora.train_also) and self.directory is not None
        return f"{self.fingerprint} {self.config.model} {self.config.quant} {self.name if adapted else ''}"

    @property
    def cache(self) -> Path:
        """Where quantized bases are kept."""
        return _cache(self.config.paths)


def saved_run(directory: RunDirectory, paths: PathsConfig, resources: ResourcesConfig) -> SavedRun:
    """Return the completed run of a directory, to be opened with other resources.

    Raises RequestError where it has left no adapter, or its model is not what it was.
    """
    try:
        record = read_record(directory.record)
    except RecordError as error:
        raise RequestError(str(error)) from error
    if record.status is not RunStatus.completed:
        raise RequestError(
            f"{record.run_id} is {record.status.value}: only a completed run leaves an adapter"
        )
    config = config_of_tree(record.config)
    what, file = "adapter", directory.adapter / "adapter_model.safetensors"
    if config.lora.trains_all:
        what, file = "model", directory.model / "model.safetensors"
    if not file.is_file():
        raise RequestError(f"{record.run_id} has no {what}: {file.parent} lacks its weights")
    if REDACTED in (config.data.system or ""):
        raise RequestError(
            f"data.system of {record.run_id} held what looks like a secret, which its record leaves out: it "
            "cannot be asked or exported as it was trained"
        )
    config.paths, config.resources = paths, resources
    source = find_model(config.model)
    fingerprint = model_fingerprint(source, _cache(paths) / "fingerprints.json")
    trained_on = record.provenance.get("model_fingerprint")
    if fingerprint != trained_on:
        raise RequestError(
            f"model={config.model.name} is not what {record.run_id} was trained on: its contents are "
            f"{fingerprint}, and were {trained_on}; an adapter fits only the weights that it was made for"
        )
    return SavedRun(record.run_id, config, source, fingerprint, record, directory)


def saved_base(config: RunConfig) -> SavedRun:
    """Return the base of a configuration alone. Raises RequestError for what is wrong with it."""
    validate(config)
    source = find_model(config.model)
    memo = _cache(config.paths) / "fingerprints.json"
    return SavedRun("base", config, source, model_fingerprint(source, memo))


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


def _cache(paths: PathsConfig) -> Path:
    return Path(paths.cache or Path(paths.out) / "cache")


def check(config: RunConfig) -> None:
    """Refuse whatever is wrong with the request, as far as it shows without torch."""
    validate(config)
    check_data(config.data)
    check_choices(config.eval)
    check_base_domain(config.eval)
    check_tasks(config.eval)
    check_tracker(config.tracker)
    _refuse_secret_names(config)


def _refuse_secret_names(config: RunConfig) -> None:
    """Refuse names that would be parts of a run's id, and so of a directory, in every list and in W&B."""
    for key, name in (
        ("model", config.model.name),
        ("data.path", config.data.path),
        ("data.hub", config.data.hub),
    ):
        last = Path(name or "").name
        if redact(last) != last:
            raise RequestError(
                f"{key}: {last} holds what looks like a secret, and the names of runs would hold it too; "
                "rename it"
            )


def settled_record(directory: RunDirectory) -> Record | None:
    """Return the record of a run that need not be trained again, or None."""
    try:
        record = read_record(directory.record)
    except RecordError:
        return None
    return record if record.status in _SETTLED else None
