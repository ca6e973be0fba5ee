"""A real Slurm of one node for tests: munge, slurmctld and slurmd of Debian's packages in one directory.

Two partitions share the node: a job in `high` preempts those in `low` and in `abrupt`, which are requeued;
`low` lets them have `GRACE_SECONDS` first. Started by root, since slurmd gives each job its owner's rights.
By hand: `python -m tests.slurm.one_node DIRECTORY` prints what to export, and runs until it is interrupted.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
GRACE_SECONDS = 60
_START_SECONDS = 60
_PR_SET_PDEATHSIG = 1  # prctl(2)
_SBIN = ("/usr/sbin", "/usr/local/sbin")

_CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=abrupt Nodes=ALL PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Return why no Slurm can be started here, or None."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurmctld slurmd slurm-client munge"
    if os.getuid() != 0:
        return "slurmd can only be started by root"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


@contextmanager
def running_slurm(directory: Path) -> Iterator[dict[str, str]]:
    """Yield the environment that Slurm's commands need; everything is stopped in the end."""
    host = socket.gethostname().partition(".")[0]
    configuration = directory / "slurm.conf"
    for name in ("state", "spool"):
        (directory / name).mkdir()
    configuration.write_text(
        _CONFIGURATION.format(
            host=host,
            directory=directory,
            cpus=os.cpu_count(),
            memory_mib=_memory_mib() // 2,
            grace=GRACE_SECONDS,
            controller_port=_free_port(),
            node_port=_free_port(),
        )
    )
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environment = {"SLURM_CONF": str(configuration)}
    munge = [f"--socket={directory}/munge.socket", f"--key-file={key}"]
    munge += [f"--seed-file={directory}/munge.seed"]
    munge += [f"--pid-file={directory}/munge.pid", f"--log-file={directory}/munge.log"]
    with ExitStack() as stack:
        daemons = [
            ("munged", ["--foreground", *munge]),
            ("slurmctld", ["-D", "-c", "-f", str(configuration)]),
            ("slurmd", ["-D", "-f", str(configuration)]),
        ]
        for name, arguments in daemons:
            stack.enter_context(_daemon(name, arguments, directory / f"{name}.log"))
            if name == "munged":
                _wait_for("munge's socket", (directory / "munge.socket").exists, directory)
        _wait_for("an idle node", lambda: _is_idle(environment), directory)
        yield environment
        subprocess.run(
            ["scancel", "--user=root", "--full"], env=os.environ | environment, check=False
        )


@contextmanager
def _daemon(name: str, arguments: Sequence[str], log: Path) -> Iterator[None]:
    program = _program(name)
    assert program is not None
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # an interrupt of the tests is not the daemon's
            preexec_fn=_die_with_the_tests,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_the_tests() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return set(done.stdout.split()) == {"idle"}


def _wait_for(what: str, holds, directory: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"{log.name}:\n{log.read_text()[-2000:]}" for log in directory.glob("*.log")
            )
            raise AssertionError(f"no {what} within {_START_SECONDS} s\n{logs}")
        time.sleep(0.1)


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    """Run a Slurm until it is interrupted."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="slurm-"))
    directory.mkdir(parents=True, exist_ok=True)
    problem = missing()
    if problem is not None:
        sys.exit(problem)
    with running_slurm(directory.absolute()) as environment:
        for key, value in environment.items():
            print(f"export {key}={value}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
