"""A Slurm of one node for the tests that need one, and members that only count."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.launch.jobs import Submitted, job_lines, read_jobs
from harness.launch.submit import launch
from harness.sweeping.state import SweepDirectory
from tests.launch import counting_member
from tests.question import asking
from tests.slurm.one_node import missing, running_slurm
from tests.sweeping.conftest import ask, world

__all__ = ["ask", "world"]  # fixtures

NAME = "counted"
STORAGE = "study.storage=postgresql://nobody@nowhere/none"


@pytest.fixture(scope="session")
def slurm_environment() -> Iterator[dict[str, str]]:
    """What Slurm's commands need in their environment; skipped where no Slurm can be started."""
    problem = missing()
    if problem is not None:
        pytest.skip(problem)
    directory = Path(tempfile.mkdtemp(prefix="harness-slurm-"))
    directory.chmod(0o755)  # munge wants its socket where every user can come
    try:
        with running_slurm(directory) as environment:
            yield environment
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def slurm(slurm_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator["Slurm"]:
    """A running Slurm that commands of this test reach; its jobs are cancelled in the end."""
    for key, value in slurm_environment.items():
        monkeypatch.setenv(key, value)
    yield Slurm()
    subprocess.run(["scancel", "--user=root", "--full", "--quiet"], check=False)
    eventually(lambda: not _said("squeue", "--noheader"), "the end of every job")


class Slurm:
    """What an administrator, or somebody with a better claim to the node, does."""

    def take_the_node(self) -> None:
        """Run a short job that preempts whatever has the node."""
        _said("srun", "--quiet", "-p", "high", f"--cpus-per-task={os.cpu_count()}", "true")

    def begin_again_now(self, job: Submitted) -> None:
        """Let a requeued job begin, which Slurm keeps waiting for two minutes."""
        eventually(lambda: self._state(job) == "PENDING BeginTime", "its turn")
        time.sleep(2)  # the node refuses a job that begins in the second in which it was ended
        _said("scontrol", "update", f"JobId={job.job_id}", "StartTime=now")

    def _state(self, job: Submitted) -> str:
        return _said("squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T %r").strip()

    def cancel(self, job: Submitted) -> None:
        """Cancel a job."""
        _said("scancel", job.job_id)


@dataclass
class Launched:
    """A sweep whose members are jobs."""

    out: Path
    name: str

    @property
    def jobs(self) -> list[Submitted]:
        """What was submitted."""
        return read_jobs(SweepDirectory(self.out, self.name))

    @property
    def lines(self) -> list[str]:
        """What `harness status` says of the jobs."""
        return job_lines(SweepDirectory(self.out, self.name))

    def wait_until(self, words: str, seconds: float = 60) -> None:
        """Wait until every job stands so."""
        deadline = time.monotonic() + seconds
        while not all(words in line for line in self.lines):
            if time.monotonic() > deadline:
                pytest.fail(f"not {words} after {seconds:.0f} s: {self.lines}\n{self.said}")
            time.sleep(0.2)

    @property
    def said(self) -> str:
        """Everything in the jobs' logs."""
        return "\n".join(Path(job.log).read_text() for job in self.jobs if Path(job.log).exists())


class Counted(Launched):
    """A sweep whose members count to a number."""

    @property
    def history(self) -> list[str]:
        """What the members have written, without their process ids."""
        file = self.out / "count.log"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" as ")[0] for line in lines]

    def wait_until_begun(self, times: int = 1) -> None:
        """Wait until members have begun to count so many times."""
        begun = lambda: sum(line.startswith("begins") for line in self.history) >= times  # noqa: E731
        eventually(begun, f"a beginning: {self.history}")
        time.sleep(0.5)  # so that there is something to keep


@pytest.fixture
def counting(tmp_path: Path) -> Callable[..., Counted]:
    """Submit members that count to `number`, with these overrides of the question."""

    def submit(number: int, *overrides: str) -> Counted:
        question = asking.ask(tmp_path, f"name={NAME}", STORAGE, *overrides)
        command = [sys.executable, counting_member.__file__, str(tmp_path / "count"), str(number)]
        launch(question, tmp_path, command)
        return Counted(tmp_path, NAME)

    return submit


def eventually(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until something holds; fail, saying what did not, after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout
