"""From a question with a launcher to jobs that train it: one submission, after which nobody waits.

Must not import torch or optuna; submitit only when something is submitted.
"""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from harness.config.devices import visible_cuda_devices
from harness.errors import RequestError
from harness.launch.job import MemberJob
from harness.launch.jobs import Submitted, cluster_name, keep_jobs, logs_of, make_private
from harness.question.question import Question
from harness.question.settings import LauncherKind, LauncherSettings
from harness.records.run_directory import utc_now

if TYPE_CHECKING:
    from submitit import Executor

_NO_LIMIT = 100_000
"""Requeues after a job's time was over; a sweep ends by itself."""


def launch(question: Question, out: Path, command: Sequence[str] | None = None) -> list[Submitted]:
    """Submit the members of a sweep and return at once, with what was submitted.

    Args:
        question: with a launcher; its study must have begun, since a member joins it by name.
        out: the directory `paths.out`, which every job must see at the same path.
        command: what each job runs, if not `harness worker` of this interpreter; see `MemberJob`.

    Raises:
        RequestError: submitit or Slurm is not there, or Slurm refuses what the launcher asks for.
    """
    settings = question.launcher
    assert settings is not None
    job = MemberJob(
        command=tuple(command or member_command(question, out)),
        grace_seconds=settings.grace_seconds,
    )
    folder = logs_of(out, question.name)
    make_private(folder)
    match settings.kind:
        case LauncherKind.slurm:
            where = cluster_name()
            ids = _submit_to_slurm(settings, folder, f"harness-{question.name}", job)
        case LauncherKind.local:
            where = socket.gethostname()
            ids = _start_here(settings, folder, job)
        case _:
            assert_never(settings.kind)
    submitted = [
        Submitted(
            job_id=each,
            launcher=settings.kind.value,
            where=where,
            submitted_at=utc_now(),
            log=str(folder / f"{each}_0_log.out"),
        )
        for each in ids
    ]
    keep_jobs(out, question.name, submitted)
    return submitted


def member_command(question: Question, out: Path) -> list[str]:
    """Return the command with which a machine joins the sweep."""
    command = [sys.executable, "-m", "harness", "worker", question.name]
    command += [f"study.storage={question.study.storage}", f"paths.out={out.absolute()}"]
    devices = question.resources.devices
    if isinstance(devices, tuple):
        command.append(f"resources.devices=[{','.join(map(str, devices))}]")
    elif devices != "auto":
        command.append(f"resources.devices={devices}")
    return command


def slurm_parameters(settings: LauncherSettings, job_name: str) -> dict[str, Any]:
    """Return what submitit's SlurmExecutor is to write into its batch file."""
    given = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "gpus_per_node": settings.gpus,
        "cpus_per_task": settings.cpus,
        "mem": None if settings.memory_gib is None else f"{round(settings.memory_gib * 1024)}M",
        "setup": list(settings.setup) or None,
        # a step does not take over the job's CPUs (since Slurm 22.05)
        "srun_args": None if settings.cpus is None else [f"--cpus-per-task={settings.cpus}"],
    }
    return {key: value for key, value in given.items() if value is not None} | {
        "job_name": job_name,
        "time": settings.time_minutes,
        "signal_delay_s": settings.grace_seconds,
        "array_parallelism": settings.workers,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }


def _submit_to_slurm(
    settings: LauncherSettings, folder: Path, job_name: str, job: MemberJob
) -> list[str]:
    submitit = _submitit()
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_NO_LIMIT)
    executor.update_parameters(**slurm_parameters(settings, job_name))
    try:
        return _submitted(executor, job, settings.workers)
    except submitit.core.utils.FailedJobError as error:
        raise RequestError(f"Slurm refused the jobs: {' '.join(str(error).split())}") from error


def _start_here(settings: LauncherSettings, folder: Path, job: MemberJob) -> list[str]:
    submitit = _submitit()
    gpus = settings.gpus or 0
    visible = visible_cuda_devices()
    if gpus * settings.workers > visible:
        raise RequestError(
            f"launcher.gpus={gpus} for each of launcher.workers={settings.workers}, and this machine shows "
            f"{visible} CUDA devices; give fewer workers or GPUs"
        )
    ids = []
    for index in range(settings.workers):
        executor = submitit.LocalExecutor(folder, max_num_timeout=_NO_LIMIT)
        executor.update_parameters(
            timeout_min=settings.time_minutes,
            signal_delay_s=settings.grace_seconds,
            gpus_per_node=gpus,
            visible_gpus=range(index * gpus, (index + 1) * gpus),
            stderr_to_stdout=True,
            setup=settings.setup,
        )
        with _words_into(folder / "submitit.log"):
            ids += _submitted(executor, job, 1)
    return ids


@contextmanager
def _words_into(file: Path) -> Iterator[None]:
    """Let processes started here write into `file`: a pipe of ours would stay open as long as they live."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for stream in kept:
            os.dup2(descriptor, stream)
        yield
    finally:
        os.close(descriptor)
        for stream, ours in kept.items():
            os.dup2(ours, stream)
            os.close(ours)


def _submitted(executor: "Executor", job: MemberJob, count: int) -> list[str]:
    """Submit `count` jobs, as one array where there are several; return their ids."""
    with executor.batch():
        jobs = [executor.submit(job) for _ in range(count)]
    return [each.job_id for each in jobs]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise RequestError(
            "a launcher needs submitit, which is not installed: pip install 'qlora-harness[cluster]'"
        ) from None
    return submitit
