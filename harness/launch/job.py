"""What one job does: run a member of a sweep as a child, and go on later when it is told to stop.

Unpickled by submitit inside the job. Must not import torch, submitit or anything else of the harness but
its errors.
"""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from harness.errors import RunFailed

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

POLL_SECONDS = 0.1
STOPPED = 130
"""The exit code of a member that was asked to stop, and has kept a checkpoint of every run."""
_STOPS = (STOPPED, -signal.SIGTERM)  # the second: while it was still starting
_NOTICE_SECONDS = 5.0
"""Seconds by which a job may hear the signal later than its child, where Slurm sends it to both."""
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(slots=True, kw_only=True)
class MemberJob:
    """One member of a sweep; called by submitit, which requeues it as it is when it is preempted."""

    command: tuple[str, ...]
    """Ends with 0 when the sweep has, and with `STOPPED` soon after a SIGTERM."""
    grace_seconds: float
    """Seconds that the command may take to stop before it is killed."""

    def __call__(self) -> int:
        """Run the command to its end and return its exit code, which is 0.

        Preemption, whether submitit's signal says so or Slurm's SIGTERM, stops the command and hands the
        job to submitit, which requeues it. Raises RunFailed where the command failed.
        """
        notice = _Notice()
        child = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, preexec_fn=notice.become_a_child
        )
        try:
            while (code := child.poll()) is None and not notice.signal:
                time.sleep(POLL_SECONDS)
            if code is None:
                code = self._stopped(child)
        finally:
            child.terminate()  # also where this job itself was interrupted
        if code in _STOPS and notice.came_within(_NOTICE_SECONDS):
            notice.requeue()
        if code != 0:
            said = f"{' '.join(self.command)} ended with exit code {code}"
            raise RunFailed(f"{said}; its own words stand above")
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """Return what is to be run again: the same, since every checkpoint lies with its run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _stopped(self, child: subprocess.Popen[bytes]) -> int:
        """Ask the child to stop and wait for it; return how it ended, also where it was faster."""
        child.terminate()
        try:
            return child.wait(self.grace_seconds)
        except subprocess.TimeoutExpired:
            print(
                f"the command did not stop in {self.grace_seconds:.0f} s and was killed", flush=True
            )
            child.kill()
            child.wait()
            return STOPPED  # what it has kept before goes on


class _Notice:
    """That the job is to end: heard from a signal, answered in the main flow.

    submitit answers its signal in the handler itself, wherever the flow is, and only logs SIGTERM, with
    which Slurm begins a preemption; this takes the place of both.
    """

    def __init__(self) -> None:
        from submitit import JobEnvironment

        self.signal: int | None = None
        self._environment = JobEnvironment()
        self._number: signal.Signals = self._environment._usr_sig()
        answer = signal.getsignal(self._number)
        assert callable(answer), "submitit has set it before it calls a job"
        self._answer: Callable[[int, FrameType | None], None] = answer
        for each in (self._number, signal.SIGTERM):
            signal.signal(each, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def become_a_child(self) -> None:
        """Run in the child: deaf to submitit's signal, which Slurm sends to every process of a job.

        And told to stop, by the kernel, when the job dies without a word.
        """
        signal.signal(self._number, signal.SIG_IGN)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def came_within(self, seconds: float) -> bool:
        """Whether it has come, or comes within so many seconds."""
        until = time.monotonic() + seconds
        while not self.signal and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return self.signal is not None

    def requeue(self) -> None:
        """Let submitit requeue the job; does not return.

        Where Slurm is ending the job already it was cancelled, or Slurm requeues it, and asking for that
        again would be an error.
        """
        assert self.signal is not None
        if self._environment.cluster == "slurm" and _is_ending(self._environment.job_id):
            print(
                "Slurm is ending this job, and starts it again unless it was cancelled", flush=True
            )
            sys.exit(128 + self.signal)
        self._answer(self.signal, None)
        raise AssertionError("submitit ends a job that it has requeued")


def _is_ending(job_id: str) -> bool:
    command = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "COMPLETING"
