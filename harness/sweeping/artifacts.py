"""Runs in the study's artifact store, for members of a sweep that do not share a file system."""

import io
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from optuna.artifacts import (
    Boto3ArtifactStore,
    FileSystemArtifactStore,
    download_artifact,
    get_all_artifact_meta,
    upload_artifact,
)
from optuna.artifacts.exceptions import ArtifactNotFound

from harness.errors import RequestError
from harness.parsing import home_path
from harness.records.record import RecordError, RunStatus, read_record
from harness.records.run_directory import RunDirectory
from harness.study.study import Study

_SUFFIX = ".tar.gz"
_NAME = re.compile(r"(\w[\w.+-]*)" + re.escape(_SUFFIX), re.ASCII)
_KEPT = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "answers.jsonl",
    "log.txt",
    "code.diff",
    "adapter",
    "model",
)
"""Files of a run that others can use; checkpoints and W&B's files stay where they are."""


class RunArtifacts:
    """Where the runs of one study are left for others."""

    def __init__(self, study: Study, place: str) -> None:
        """`place` is a directory or s3://bucket. Raises RequestError for one that cannot be used."""
        self.place = place
        self._study = study
        self._store = _store_at(place)
        self._pushed: set[str] = set()

    def push(self, directory: RunDirectory) -> None:
        """Leave a run that has ended here, unless somebody has left it before."""
        run_id = directory.path.name
        if run_id in self._pushed or not directory.record.exists():
            return
        self._pushed.add(run_id)
        there = self._known().get(run_id)
        if there is not None and self._is_whole(there):
            return
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / f"{run_id}{_SUFFIX}"
            with tarfile.open(file, "w:gz") as archive:
                for name in _KEPT:
                    if (directory.path / name).exists():
                        archive.add(directory.path / name, name)
            upload_artifact(
                artifact_store=self._store,
                file_path=str(file),
                study_or_trial=self._study.optuna_study,
            )

    def fetch(self, directory: RunDirectory) -> bool:
        """Bring a run that another member has left; returns whether it is here now."""
        if _has_ended(directory):
            return True
        artifact = self._known().get(directory.path.name)
        if artifact is None:
            return False
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "run"
            try:
                download_artifact(
                    artifact_store=self._store, file_path=str(file), artifact_id=artifact
                )
            except ArtifactNotFound:  # it is being written
                return False
            _unpack(file.read_bytes(), directory)
        return True

    def fetch_all(self, runs: Path) -> None:
        """Bring every run that anybody has left and that is not under `runs`."""
        for run_id in self._known():
            self.fetch(RunDirectory(runs / run_id))

    def _is_whole(self, artifact: str) -> bool:
        """Whether an artifact is there: Optuna lists it before it writes it."""
        try:
            self._store.open_reader(artifact).close()
        except ArtifactNotFound:
            return False
        return True

    def _known(self) -> dict[str, str]:
        """Return the artifact of each run that has been left, by its id; others may leave other things."""
        self._study.refresh()
        found = get_all_artifact_meta(self._study.optuna_study)
        named = ((_NAME.fullmatch(meta.filename), meta.artifact_id) for meta in found)
        return {match[1]: artifact for match, artifact in named if match is not None}


def _has_ended(directory: RunDirectory) -> bool:
    """Whether a run's record here says how it ended; one that was lost here has one that does not."""
    try:
        status = read_record(directory.record).status
    except RecordError:
        return False
    return status not in (RunStatus.running, RunStatus.interrupted, RunStatus.failed)


def _unpack(archive: bytes, directory: RunDirectory) -> None:
    """Unpack a run, its record last: a run with a record is whole."""
    directory.path.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        names = [m for m in members.getmembers() if m.name != directory.record.name]
        members.extractall(directory.path, names, filter="data")
        members.extract(directory.record.name, directory.path, filter="data")


def _store_at(place: str) -> Any:
    parts = urlsplit(place)
    if parts.scheme == "s3":
        if parts.path.strip("/"):
            raise RequestError(
                f"study.artifacts={place}: a bucket is used as a whole; give s3://{parts.netloc}"
            )
        try:
            return Boto3ArtifactStore(parts.netloc)
        except ImportError as error:
            raise RequestError(
                f"study.artifacts={place} needs boto3 ({error}): pip install boto3"
            ) from None
    if parts.scheme:
        raise RequestError(
            f"study.artifacts={place}: runs can be left in a directory or in s3://bucket"
        )
    path = home_path(place)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"study.artifacts={place} cannot be made: {error}") from error
    return FileSystemArtifactStore(path)
