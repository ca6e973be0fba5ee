"""`out/sweeps/<name>/`: what a sweep leaves behind, and `state.json`, which anybody may read at any time.

The truth is the study and the runs' records; this file is written so that `harness status` needs neither
Optuna nor the driver. Must not import torch or optuna.
"""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from harness.errors import RequestError, near_names
from harness.parsing import Unreadable, read_json, shaped
from harness.question.keys import NAME, NAME_WANTED
from harness.records.metrics import METRICS
from harness.records.metrics_log import spell_not_finite
from harness.records.redact import redact
from harness.records.run_directory import (
    reserved,
    sqlite_url,
    sweep_staged,
    utc_now,
    write_text,
)

STATE_VERSION = 1
LOCK_SECONDS = 0.3
UNENDED = ("waiting", "training", "elsewhere")
"""Words in the line of a run that has not ended."""


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
    """Values, one per objective, over the seeds."""
    feasible: bool
    runs: list[str]
    reason: str | None
    probe: str | None = None
    """The run that measured, alone, what its configuration costs."""


@dataclass(kw_only=True, slots=True)
class ConfirmedLine:
    """One confirmed cell: fresh seeds, test split."""

    point: dict[str, str]
    trial: int
    runs: list[str]
    values: dict[str, list[float]]
    """Objective metric -> the value of each completed run."""
    compared: list[dict[str, str]] = field(default_factory=list)
    """The combinations of compared levels whose best cell it is."""


@dataclass(kw_only=True, slots=True)
class DeviceLine:
    """One worker."""

    name: str
    doing: str
    packing: str
    """Number of runs that share a pass, and what that gains."""
    runs: list[str]
    seconds: float
    """Seconds since its first run began."""
    waited_seconds: float
    """Seconds of these in which it had nothing to do."""


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
        """Raises RequestError for a name that is none: it comes from a command line, and becomes a path."""
        if not re.fullmatch(NAME, name, re.ASCII):
            raise RequestError(f"{name!r} cannot be the name of a sweep; {NAME_WANTED}")
        self.path = out / "sweeps" / name
        self.question = self.path / "sweep.yaml"
        self.state = self.path / "state.json"
        self.study = self.path / "study.db"
        self.workers = self.path / "workers"
        self.log = self.path / "log.txt"
        self.instructions = self.path / "instructions.jsonl"
        self.report = self.path / "report"
        self.wandb = self.path / "wandb"

    @property
    def storage(self) -> str:
        """The SQLAlchemy url of the study's default place."""
        return sqlite_url(self.study)

    def append_log(self, line: str) -> None:
        """Append one line to log.txt, with the time and the host in front: members share the file."""
        with self.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
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
            sweep_staged(self.path)
            with reserved(self.path):
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
    """Return a state as JSON has it, infinities spelt as in a record, without secrets."""
    tree: dict[str, Any] = asdict(state) | {"status": state.status.value}
    _redact_words(tree, ("question", "expect", "complaint"))
    for line in tree["runs"]:
        _redact_words(line, ("error",))
    for line in tree["trials"]:
        _redact_words(line, ("reason",))
    for line in tree["devices"]:
        _redact_words(line, ("doing",))
    return spell_not_finite(tree)


def _redact_words(tree: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Take secrets out of what was said in words; the rest of a state holds none, and is long."""
    for key in keys:
        if tree[key]:
            tree[key] = redact(tree[key])


def read_state(directory: SweepDirectory) -> SweepState:
    """Read `state.json`. Raises RequestError where there is none, or one that is damaged."""
    state: SweepState = shaped(SweepState, read_state_tree(directory))
    if state.status is SweepStatus.running and not directory.is_driven():
        state.status = SweepStatus.interrupted  # killed before it could say so
    return state


def read_state_tree(directory: SweepDirectory) -> dict[str, Any]:
    """Return `state.json` as plain values, checked. Raises RequestError as `read_state` does."""
    try:
        tree = read_json(directory.state.read_bytes())
        version = tree.get("version") if isinstance(tree, dict) else None
        if version != STATE_VERSION:
            raise Unreadable(f"it has version {version}, and this harness reads {STATE_VERSION}")
        _check_coherence(shaped(SweepState, tree))
        return tree
    except FileNotFoundError:
        known = [path.parent.name for path in directory.path.parent.glob("*/state.json")]
        raise RequestError(
            f"no sweep has run at {directory.path}{near_names(directory.path.name, known)}; "
            f"there are: {', '.join(sorted(known)) or 'none'}"
        ) from None
    except (OSError, Unreadable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(
            f"{directory.state} cannot be used: {reason}; `harness sweep {directory.path.name}` writes it "
            "again from the study and the records, and `harness report` without a name shows the records"
        ) from error


def _check_coherence(state: SweepState) -> None:
    """Refuse a state that no driver writes, though each of its values is possible."""
    named = {*state.objectives, *(m for line in state.confirmed for m in line.values)}
    unknown = sorted(name for name in named if name not in METRICS)
    if unknown or not state.objectives:
        raise Unreadable(f"its objectives are {', '.join(unknown) or 'none'}")
    for trial in state.trials:
        if trial.values is not None and len(trial.values) != len(state.objectives):
            raise Unreadable(f"trial {trial.number} has {len(trial.values)} values")
    for line in state.confirmed:
        if line.values.keys() != state.objectives.keys():
            raise Unreadable(f"the confirmation of trial {line.trial} has other objectives")
