"""Start a child of the bench, hear its marks, let it wait for its turn, and watch its memory."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from bench.peers.channel import BLOCK_STEPS, DESCRIPTOR

SILENT_SECONDS = 900.0
"""A child that says nothing for so long has failed."""
_SAMPLE_SECONDS = 0.02
_FAMILY_SECONDS = 0.5  # how often new descendants are looked for


class ChildFailed(RuntimeError):
    """A child has ended with an error; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A child that has done its work."""

    seconds: float
    """Seconds from the command to the end of the process."""
    marks: dict[str, float]
    """Seconds from the command to each mark; of repeated ones to the last."""
    peak_bytes: int
    """Resident peak: of the process, or the sum of the peaks of all of its processes."""
    result: dict[str, Any] = field(default_factory=dict)
    """Result that the process printed at its mark `result`."""
    jobs: list[float] = field(default_factory=list)
    """Seconds of each job of a multirun."""


def environment(threads: int, **more: str) -> dict[str, str]:
    """Return what every child gets: the same number of threads, nothing from the network, no noise."""
    given = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **given, **more}


class PeakMemory:
    """Watches the resident peak of a process, and of its descendants.

    The kernel keeps the peak; it is read every 20 ms because a run of ours resets it between its phases.
    Pages that several processes map are counted in each.
    """

    def __init__(self, pid: int) -> None:
        self._peaks = {pid: 0}
        self._root = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Return the peak in bytes."""
        self._over.set()
        self._thread.join()
        return sum(self._peaks.values())

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while not self._over.wait(_SAMPLE_SECONDS):
            for pid in self._peaks:
                self._peaks[pid] = max(self._peaks[pid], resident_peak_bytes(pid))
            if time.monotonic() - looked_at >= _FAMILY_SECONDS:
                looked_at = time.monotonic()
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(self._root).children(recursive=True):
                        self._peaks.setdefault(child.pid, 0)


def resident_peak_bytes(pid: int) -> int:
    """Return the peak that the kernel has noted for a process, 0 for one that has gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Child:
    """A process of the bench; use it as a context, which kills what is left of it."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        *,
        block_steps: int = 0,
        directory: Path | None = None,
    ) -> None:
        """`block_steps`: it waits for `go` after every so many steps; 0: never."""
        ours, theirs = socket.socketpair()
        ours.settimeout(SILENT_SECONDS)
        descriptor = theirs.fileno()
        given = {DESCRIPTOR: str(descriptor), BLOCK_STEPS: str(block_steps)}
        self._log = log
        self._marks: dict[str, float] = {}
        self._result: dict[str, Any] = {}
        self._jobs: list[float] = []
        with theirs, log.open("wb") as output:
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                command,
                env=environment | given,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                pass_fds=[descriptor],
            )
        self._peak = PeakMemory(self._process.pid)
        self._socket = ours
        self._lines = ours.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peak.stop()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._lines.close()
        self._socket.close()

    def until(self, mark: str) -> dict[str, Any] | None:
        """Return what the child says at its next such mark; None if it ends before."""
        for line in self._lines:
            said = json.loads(line)
            self._hear(said)
            if said["mark"] == mark:
                return said
        return None

    def go(self) -> None:
        """Let a waiting child make its next block of steps."""
        self._socket.sendall(b"go\n")

    def finish(self) -> Finished:
        """Wait for the end of a child; raises ChildFailed for an error."""
        self.until("")
        code = self._process.wait()
        seconds = time.monotonic() - self._began
        peak = self._peak.stop()
        if code != 0:
            words = self._log.read_text(errors="replace").strip().splitlines()
            raise ChildFailed(f"{self._process.args} ended with {code}: " + "\n".join(words[-15:]))
        return Finished(
            seconds=seconds,
            marks=self._marks,
            peak_bytes=peak,
            result=self._result,
            jobs=self._jobs,
        )

    def _hear(self, said: dict[str, Any]) -> None:
        self._marks[said["mark"]] = said["at"] - self._began
        if said["mark"] == "result":
            self._result = said
        elif said["mark"] == "job":
            self._jobs.append(said["seconds"])


def run(command: Sequence[str], environment: dict[str, str], log: Path) -> Finished:
    """Run a child from its command to its end."""
    with Child(command, environment, log) as child:
        return child.finish()
