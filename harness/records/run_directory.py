"""Where the files of one run lie, and the lock that keeps two processes from training it at once.

Must not import torch, transformers or wandb.
"""

import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config.schema import LoraConfig
from harness.errors import RequestError
from harness.records.redact import redact, redact_tree


class RunLocked(RequestError):
    """Another process trains this run."""


def utc_now() -> str:
    """Return the time of day in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The layout of `out/runs/<run_id>/`."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def scores(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def asked(self) -> Path:
        """Answers to what `harness ask` was asked."""
        return self.path / "asked.jsonl"

    @property
    def exports(self) -> Path:
        """What was exported, with the loss of each."""
        return self.path / "exports.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The trained model of full fine-tuning, as transformers loads it."""
        return self.path / "model"

    def trained(self, lora: LoraConfig) -> Path:
        """Return where a completed run keeps what it has trained: its adapter, or all of the model."""
        return self.model if lora.trains_all else self.adapter

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def code_diff(self) -> Path:
        return self.path / "code.diff"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process, creating its directory; free when the process ends, however.

        Raises RunLocked, naming the holder, when a process (this one included) already holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"  # never deleted: a lock on a deleted file excludes nobody
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock_or_refuse(descriptor, lock)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
            sweep_staged(self.path)
            for begun in self.checkpoint.glob(".step-*.new"):  # by a process that held the lock
                remove(begun)
            with reserved(self.path):
                yield
        finally:
            os.close(descriptor)  # frees the lock, if it was ours

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """Write config.yaml without secrets."""
        import yaml  # 20 ms that readers of records need not spend

        write_text(self.config, yaml.safe_dump(redact_tree(tree), sort_keys=False))

    def append_log(self, line: str) -> None:
        """Append one line to log.txt, with the time in front and without secrets."""
        with self.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{utc_now()} {redact(line)}\n")


def _lock_or_refuse(descriptor: int, lock: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "unknown process"
        raise RunLocked(
            f"{lock.parent} is being trained by another process ({holder}); "
            "wait for it, stop it, or choose another paths.out"
        ) from None
    except OSError as error:  # some network file systems
        raise RequestError(
            f"{lock.parent} lies on a file system without file locks ({error.strerror}); "
            "choose a paths.out on one that has them"
        ) from error


def set_aside(path: Path) -> Path:
    """Rename a damaged file or directory, so that another can take its place; return its new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = next(
        each
        for number in itertools.count()
        if not (each := path.with_name(f"{path.name}.damaged-{stamp}{number or ''}")).exists()
    )
    path.rename(aside)
    return aside


def sqlite_url(file: Path) -> str:
    """Return the SQLAlchemy url of a SQLite file, also where its path has what means something in a url."""
    path = re.sub("[%?#]", lambda found: f"%{ord(found[0]):02X}", str(file.absolute()))
    return f"sqlite:///{path}"


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a machine that fails, sees the old or the new one, never half.

    On a full disk it takes the room that its directory has kept for its end.
    """
    try:
        _write_text(path, text)
    except OSError as error:
        reserve = path.parent / RESERVE
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not reserve.exists():
            raise
        reserve.unlink(missing_ok=True)
        _write_text(path, text)


def _write_text(path: Path, text: str) -> None:
    temporary = staged(path)
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)  # a file's name may be no text
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


# What a process leaves that is killed ------------------------------------------------------------

RESERVE = ".reserve"
"""Room for the last words of what works in a directory, should the disk be full by then."""
RESERVE_BYTES = 256 * 1024


def staged(path: Path) -> Path:
    """Return where a file or directory is written before it gets its name, in the same directory."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def sweep_staged(directory: Path) -> None:
    """Remove what processes of this machine had staged in a directory and have died over."""
    host = re.escape(socket.gethostname())
    for path in directory.glob(".*"):
        of_process = re.fullmatch(rf"\..+\.{host}\.(\d+)", path.name)
        if of_process is not None and not _is_alive(int(of_process[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def reserved(directory: Path) -> Iterator[None]:
    """Keep room in a directory for what is written last; raises OSError where there is none even now."""
    reserve = directory / RESERVE
    try:
        descriptor = os.open(reserve, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)
        yield
    finally:
        reserve.unlink(missing_ok=True)
