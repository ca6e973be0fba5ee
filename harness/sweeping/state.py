"""`out/sweeps/<name>/`: what a sweep leaves behind, and `state.json`, which anybody may read at any time.

The truth is the study and the runs' records; this file is written so that `harness status` needs neither
Optuna nor the driver. Must not import torch or optuna.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from harness.errors import RequestError, near_names
from harness.records.metrics_log import spell_not_finite
from harness.records.redact import redact
from harness.records.run_directory import utc_now, write_text

STATE_VERSION = 1
LOCK_SECONDS = 0.3
UNENDED = ("waiting", "training", "elsewhere")
"""What a run's line says that has not ended."""


class SweepStatus(Enum):
    """How a sweep stands."""

    running = "running"
    interrupted = "interrupted"
    finished = "finished"


@dataclass(kw_only=True, slots=True)
class RunLine:
    """One run of a sweep."""

    run_id: str
    role: str
    seed: int
    status: str
    """waiting, training, elsewhere (another member has it), or how it ended."""
    step: int
    total_steps: int | None
    was_there: bool
    error: str | None


@dataclass(kw_only=True, slots=True)
class TrialLine:
    """One trial of a search."""

    number: int
    point: dict[str, str]
    status: str
    values: list[float] | None
    """One per objective, over the seeds."""
    feasible: bool
    runs: list[str]
    reason: str | None


@dataclass(kw_only=True, slots=True)
class ConfirmedLine:
    """One confirmed cell: fresh seeds, test split."""

    point: dict[str, str]
    trial: int
    runs: list[str]
    values: dict[str, list[float]]
    """Objective metric -> the value of each completed run."""


@dataclass(kw_only=True, slots=True)
class DeviceLine:
    """One worker."""

    name: str
    doing: str
    packing: str
    """How many runs share a pass, and what that gains."""
    runs: list[str]
    seconds: float
    """Since its first run began."""
    waited_seconds: float
    """How much of that it had nothing to do."""


@dataclass(kw_only=True, slots=True)
class SweepState:
    """Everything that `harness status` shows."""

    name: str
    question: str
    expect: str
    method: str
    objectives: dict[str, str]
    """Metric -> minimize or maximize."""
    trials_requested: int
    status: SweepStatus = SweepStatus.running
    holder: str = field(default_factory=lambda: f"pid {os.getpid()} on {socket.gethostname()}")
    started_at: str = field(default_factory=utc_now)
    updated_at: str = field(default_factory=utc_now)
    share_done: float = 0.0
    seconds_left: float | None = None
    devices: list[DeviceLine] = field(default_factory=list)
    trials: list[TrialLine] = field(default_factory=list)
    runs: list[RunLine] = field(default_factory=list)
    confirmed: list[ConfirmedLine] = field(default_factory=list)
    complaint: str | None = None
    """Why the driver has stopped though nobody asked for it."""
    version: int = STATE_VERSION


class SweepDirectory:
    """The layout of `out/sweeps/<name>/`."""

    def __init__(self, out: Path, name: str) -> None:
        self.path = out / "sweeps" / name
        self.question = self.path / "sweep.yaml"
        self.state = self.path / "state.json"
        self.workers = self.path / "workers"
        self.log = self.path / "log.txt"
        self.report = self.path / "report"

    @property
    def storage(self) -> str:
        """The SQLAlchemy url of the study's default place."""
        return f"sqlite:///{(self.path / 'study.db').absolute()}"

    def append_log(self, line: str) -> None:
        """Append one line to log.txt, with the time and the host in front: members share the file."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{utc_now()} {socket.gethostname()} {redact(line)}\n")

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the sweep for this driver, or with other members; free when the process ends, however.

        Raises RequestError, naming the holder, when somebody has it who does not share it with us.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"  # never deleted: a lock on a deleted file excludes nobody
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            if not _locked_within(descriptor, LOCK_SECONDS, kind):
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
                raise RequestError(
                    f"{self.path} is being driven by another process ({holder or 'unknown'}); "
                    "`harness status` shows it; wait for it, stop it, or give name=OTHER"
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def is_driven(self) -> bool:
        """Whether a living driver of this machine holds the sweep."""
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR)
        except OSError:
            return False
        try:
            return not _locked_within(descriptor, 0.0, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)


def _locked_within(descriptor: int, seconds: float, kind: int) -> bool:
    """Take the lock; whoever only looks whether it is taken holds it for a moment, so try for a while."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.02)
        else:
            return True


def write_state(directory: SweepDirectory, state: SweepState) -> None:
    """Replace `state.json` atomically."""
    state.updated_at = utc_now()
    write_text(directory.state, state_text(state))


def state_text(state: SweepState) -> str:
    """Return a state as one line of JSON."""
    return json.dumps(state_tree(state), allow_nan=False) + "\n"


def state_tree(state: SweepState) -> dict[str, Any]:
    """Return a state as JSON has it, infinities spelt as in a record."""
    return spell_not_finite(asdict(state) | {"status": state.status.value})


def read_state(directory: SweepDirectory) -> SweepState:
    """Read `state.json`. Raises RequestError where there is none, or one of another version."""
    try:
        tree: dict[str, Any] = json.loads(directory.state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = [path.parent.name for path in directory.path.parent.glob("*/state.json")]
        raise RequestError(
            f"no sweep has run at {directory.path}{near_names(directory.path.name, known)}; "
            f"there are: {', '.join(sorted(known)) or 'none'}"
        ) from None
    if tree.get("version") != STATE_VERSION:
        raise RequestError(
            f"{directory.state} has version {tree.get('version')}; this harness reads {STATE_VERSION}"
        )
    tree["status"] = SweepStatus(tree["status"])
    tree["devices"] = [DeviceLine(**line) for line in tree["devices"]]
    tree["runs"] = [RunLine(**line) for line in tree["runs"]]
    tree["confirmed"] = [ConfirmedLine(**_numbers(line)) for line in tree["confirmed"]]
    tree["trials"] = [TrialLine(**_numbers(line)) for line in tree["trials"]]
    state = SweepState(**tree)
    if state.status is SweepStatus.running and not directory.is_driven():
        state.status = SweepStatus.interrupted  # killed before it could say so
    return state


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Read back the spelt infinities of a line's values."""
    values = line["values"]
    if isinstance(values, dict):
        return line | {"values": {k: [float(v) for v in found] for k, found in values.items()}}
    return line | {"values": None if values is None else [float(value) for value in values]}
