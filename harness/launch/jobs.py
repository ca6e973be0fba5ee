"""`out/sweeps/<name>/jobs.json`: what a sweep has submitted, and how each job stands now.

Must not import torch, optuna or submitit: `harness status` reads it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import RequestError
from harness.parsing import Unreadable, read_json, shaped
from harness.records.run_directory import set_aside, write_text
from harness.sweeping.state import SweepDirectory

_ASK_SECONDS = 30
_JOB_ID = re.compile(r"[1-9][0-9]{0,9}(_[0-9]{1,9})?", re.ASCII)
_FIELDS = ("JobArrayID", "State", "RestartCnt", "TimeUsed", "NodeList", "Reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """One job, as it was submitted."""

    job_id: str
    """Slurm's number (`17`, in an array `17_3`), or a process id on this machine."""
    launcher: str
    """slurm or local."""
    where: str
    """The cluster's name, or the machine's."""
    submitted_at: str
    log: str


def logs_of(out: Path, name: str) -> Path:
    """Return where the jobs of a sweep write."""
    return SweepDirectory(out.absolute(), name).path / "jobs"


def make_private(folder: Path) -> None:
    """Make the directory of the jobs' pickles, which whoever can write there could let a job run.

    Raises RequestError where it is another user's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RequestError(
            f"{folder} belongs to another user, and a job would run what is put there; give another paths.out"
        )
    folder.chmod(0o700)


def _file_of(directory: SweepDirectory) -> Path:
    return directory.path / "jobs.json"


def keep_jobs(out: Path, name: str, submitted: Sequence[Submitted]) -> None:
    """Add to what the sweep has submitted before."""
    directory = SweepDirectory(out, name)
    directory.path.mkdir(parents=True, exist_ok=True)
    try:
        before = read_jobs(directory)
    except RequestError:  # what has just been submitted must be found again
        set_aside(_file_of(directory))
        before = []
    jobs = [*before, *submitted]
    lines = ",\n ".join(json.dumps(asdict(job)) for job in jobs)
    write_text(_file_of(directory), f"[{lines}]\n")


def read_jobs(directory: SweepDirectory) -> list[Submitted]:
    """Return everything that a sweep has submitted, oldest first."""
    file = _file_of(directory)
    try:
        jobs: list[Submitted] = shaped(list[Submitted], read_json(file.read_bytes()))
        for job in jobs:
            if not _JOB_ID.fullmatch(job.job_id) or "\0" in job.log:
                raise Unreadable(f"{job.job_id!r} with the log {job.log!r} is no job")
        return jobs
    except FileNotFoundError:
        return []
    except Unreadable as error:
        raise RequestError(
            f"{file} cannot be used: {error}; move it away, and jobs are listed from the next one on"
        ) from error


# How they stand ----------------------------------------------------------------------------------


def job_lines(directory: SweepDirectory) -> list[str]:
    """Return a line for each job that the sweep has submitted: where it is, and how it stands.

    Asks Slurm where there is one; says `unknown here` where the job cannot be seen from this machine.
    """
    jobs = read_jobs(directory)
    in_slurm = [job.job_id for job in jobs if job.launcher == "slurm"]
    here = _cluster_here() if in_slurm else None
    states = _slurm_states(in_slurm) if here is not None else {}
    lines = []
    for job in jobs:
        if job.launcher == "local":
            state = _local_state(job)
        elif here != job.where:
            state = "unknown here"
        else:
            state = states.get(job.job_id) or _ended(job) or "gone: Slurm knows it no longer"
        kind = "job" if job.launcher == "slurm" else "process"
        lines.append(f"{kind} {job.job_id} on {job.where}: {state}; {job.log}")
    return lines


def _cluster_here() -> str | None:
    try:
        return cluster_name()
    except RequestError:
        return None


def cluster_name() -> str:
    """Return the name of the Slurm cluster that commands given here go to.

    Raises RequestError where Slurm's commands are missing or nothing answers them.
    """
    if shutil.which("scontrol") is None:
        raise RequestError(
            "launcher=slurm needs Slurm's commands (sbatch, squeue, scontrol), and there are none here; run "
            "this on a login node, or take launcher=local"
        )
    done = _asked(["scontrol", "show", "config"])
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ClusterName":
            return value.strip()
    said = " ".join((done.stderr or done.stdout).split())
    raise RequestError(f"Slurm's controller does not answer: {said}")


def _slurm_states(job_ids: Sequence[str]) -> dict[str, str]:
    """Return what Slurm says of each job that it still knows."""
    whole = sorted({job_id.partition("_")[0] for job_id in job_ids})
    command = ["squeue", "--array", "--noheader", "--states=all", f"--jobs={','.join(whole)}"]
    done = _asked([*command, f"--Format={','.join(f'{name}:|' for name in _FIELDS)}"])
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {row[0]: _slurm_state(*row[1:6]) for row in rows if len(row) > len(_FIELDS)}


def _slurm_state(state: str, restarts: str, used: str, nodes: str, reason: str) -> str:
    words = [state.lower()]
    if nodes:
        words.append(f"{used} on {nodes}")
    elif reason not in ("", "None"):
        words.append(reason)
    if restarts.isdecimal() and int(restarts):
        words.append(f"requeued {restarts} times" if int(restarts) > 1 else "requeued once")
    return ", ".join(words)


def _local_state(job: Submitted) -> str:
    if job.where != socket.gethostname():
        return "unknown here"
    import psutil

    try:
        number = int(job.job_id.partition("_")[0])
        running = "submitit.local._local" in psutil.Process(number).cmdline()
    except (psutil.Error, OverflowError):  # of a number that no process can have
        running = False
    return "running" if running else _ended(job) or "gone"


def _ended(job: Submitted) -> str | None:
    """Return how a job ended by what submitit has written; None where it was ended."""
    file = Path(job.log.removesuffix("_log.out") + "_result.pkl")
    try:
        begins = file.read_bytes()[:64]  # not unpickled: that would run what anybody has put there
    except OSError:
        return None
    return "completed" if b"success" in begins else "failed"


def _asked(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ASK_SECONDS
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            command, 1, stdout="", stderr=f"no answer in {_ASK_SECONDS} s"
        )
