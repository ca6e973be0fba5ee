"""Signals, kills, full disks and readers that leave, on real processes."""

import contextlib
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from analysis.sources import load_sweep
from harness.records.record import RunStatus, read_records
from tests.commands.forked import Command
from tests.sweeping.test_crash import kill_at_random, lines_of, losses
from tests.sweeping.test_crash import start_python as start

SECONDS = 120.0
LONG = int(os.environ.get("FAULTS_KILLS", "6"))
"""Kills of the long mode; 100 with `make faults KILLS=100`."""


def command(file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "harness", "sweep", str(file), f"paths.out={out}"]


def wait_for(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < give_up, "nothing happened"
        time.sleep(0.02)


def statuses(out: Path) -> set[RunStatus]:
    return {record.status for record in read_records(out)[0]}


@contextlib.contextmanager
def in_a_terminal(words: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command on a terminal of its own, of which the other end is given; the kernel hangs up."""
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        with contextlib.suppress(OSError):
            os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def drained(descriptor: int) -> None:
    """Read what a terminal shows, or the command waits for room."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError, OSError):
        while os.read(descriptor, 65536):
            pass


def slow(ask, out: Path) -> Path:
    return ask(base=("optim.steps=400", f"paths.out={out}"), resources={"devices": "cpu"})


@pytest.mark.faults
def test_a_terminal_that_is_closed_leaves_checkpoints(ask, tmp_path, tally):
    out = tmp_path / "out"
    with in_a_terminal(command(slow(ask, out), out)) as (process, terminal):
        wait_for(lambda: (drained(terminal), lines_of(out) >= 5)[1])
        os.close(terminal)
        with tally("terminal closed (SIGHUP)") as row:
            row.check("ends with 130", lambda: process.wait(SECONDS) == 130)
            row.check("records", lambda: statuses(out) <= {RunStatus.interrupted})
            row.check("checkpoint", lambda: bool(list(out.glob("runs/*/checkpoint/step-*"))))
            row.check("workers", lambda: not list_workers(out))


def list_workers(out: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            is_worker = "harness.sweeping.worker" in (process.info["cmdline"] or [])
            if is_worker and any(str(out) in str(each.path) for each in process.open_files()):
                found.append(process)
    return found


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_keeps_a_checkpoint_and_goes_on(world, tmp_path, tally, how):
    out = tmp_path / "out"
    words = [
        *("run", f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"),
        *("data.validation_rows=8", "data.test_rows=8", "data.max_length=64", "eval=loss"),
        *("optim.steps=400", "optim.batch_size=4", "tracker=none", f"paths.out={out}"),
    ]
    with tally("a run told to stop") as row:
        run = Command(words, tmp_path / "first")
        run.wait_until(lambda: lines_of(out) >= 5)
        run.send(how)
        row.check(f"{how.name} ends with 130", lambda: run.end(SECONDS).code == 130)
        row.check(f"{how.name} record", lambda: statuses(out) == {RunStatus.interrupted})
        row.check(
            f"{how.name} checkpoint", lambda: bool(list(out.glob("runs/*/checkpoint/step-*")))
        )
        again = Command(words, tmp_path / "again")
        row.check(f"{how.name} goes on", lambda: again.end(SECONDS).code == 0)
        row.check(f"{how.name} every step once", lambda: lines_of(out) == 400)


@pytest.mark.faults
def test_ctrl_c_twice_leaves_no_record_running(ask, tmp_path, tally):
    out = tmp_path / "out"
    process = start(slow(ask, out), out)
    wait_for(lambda: lines_of(out) >= 5)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    with tally("Ctrl-C twice") as row:
        row.check("ends with 130", lambda: process.wait(SECONDS) == 130)
        row.check("records", lambda: RunStatus.running not in statuses(out))


@pytest.mark.faults
def test_workers_end_soon_after_their_driver_at_any_moment(ask, tmp_path, tally):
    chance = random.Random(21)
    with tally("orphans") as row:
        for number in range(3):
            out = tmp_path / str(number)
            process = start(slow(ask, out), out)
            time.sleep(chance.uniform(0.5, 6.0))
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            row.check(
                f"{len(workers)} workers",
                lambda workers=workers: not psutil.wait_procs(workers, 8)[1],
            )


@pytest.mark.faults
def test_a_worker_that_is_killed_before_its_first_run_costs_a_retry(ask, tmp_path, tally):
    out = tmp_path / "out"
    file = ask(base=(f"paths.out={out}",), resources={"devices": "cpu"})
    process = start(file, out)
    wait_for(lambda: bool(psutil.Process(process.pid).children()))
    time.sleep(0.5)
    for child in psutil.Process(process.pid).children():
        child.kill()
    with tally("worker killed before its first run") as row:
        row.check("goes on", lambda: process.wait(SECONDS) == 0)
        row.check("completed", lambda: statuses(out) == {RunStatus.completed})


@pytest.mark.faults
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(ask, tmp_path, tally):
    """The disk is full for files that would grow beyond a size, as a quota is: it needs no root."""
    chance = random.Random(22)
    with tally("disk full") as row:
        for number in range(3):
            out = tmp_path / str(number)
            file = ask(base=(f"paths.out={out}",), resources={"devices": "cpu"})
            limit = chance.choice((0, 300, 3_000, 8_000, 20_000, 100_000))
            done = subprocess.run(
                command(file, out),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                preexec_fn=lambda limit=limit: resource.setrlimit(
                    resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
                ),
            )
            said = f"{limit} bytes: exit {done.returncode}: {done.stderr[-300:]}"
            row.check(said, lambda done=done: done.returncode in (0, 1, 2))
            row.check(said, lambda done=done: "Traceback" not in done.stderr + done.stdout)
            again = subprocess.run(command(file, out), capture_output=True, timeout=SECONDS)
            row.check(f"{limit} bytes, again", lambda again=again: again.returncode == 0)
            row.check(
                f"{limit} bytes, completed",
                lambda out=out: statuses(out) == {RunStatus.completed},
            )


@pytest.mark.faults
def test_a_directory_that_cannot_be_written_is_exit_code_2(trained, tally, capfd):
    with tally("not writable") as row:
        for words in (
            ["sweep", str(trained[0]), "paths.out=/proc/nowhere"],
            ["run", "paths.out=/proc/nowhere"],
            ["run", "paths.out=/dev/null/x"],
            ["status", "small", "paths.out=/dev/null"],
            ["report", "small", "paths.out=/dev/null"],
        ):
            from harness.cli.main import dispatch

            row.check(" ".join(words), lambda words=words: dispatch(words) == 2)


@pytest.mark.faults
def test_a_dry_run_writes_nothing(trained, tmp_path, tally, monkeypatch, capfd):
    from harness.cli.main import dispatch

    monkeypatch.chdir(tmp_path)
    words = ["sweep", str(trained[0]), "--dry-run", f"paths.out={tmp_path / 'out'}"]
    with tally("dry run") as row:
        row.check("plans", lambda: dispatch(words) == 0)
        row.check("writes nothing", lambda: not list(tmp_path.iterdir()))


@pytest.mark.faults
def test_a_reader_that_leaves_does_not_stop_a_sweep(ask, tmp_path, tally):
    out = tmp_path / "out"
    file = ask(base=(f"paths.out={out}",), resources={"devices": "cpu"})
    process = subprocess.Popen(
        command(file, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.close()
    with tally("reader of stderr leaves") as row:
        row.check("goes on", lambda: process.wait(SECONDS) in (0, 120))
        row.check("completed", lambda: statuses(out) == {RunStatus.completed})


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_kills_lose_nothing_and_the_report_knows_every_run(ask, tmp_path, tally):
    base = ("optim.steps=12",)
    parts = {"space": {"lora.rank": "choice(1,2,4)"}, "search": {"method": "grid", "seeds": [0, 1]}}
    file = ask(base=base, resources={"devices": "cpu", "cohort": 1}, **parts)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(file, undisturbed).wait(SECONDS) == 0
    chance = random.Random(23)
    with tally("kills at random moments") as row:
        for number in range(LONG):
            victim = kill_at_random(start(file, killed), killed, chance)
            row.check(f"{number} {victim}", lambda: not read_records(killed)[1])
        row.check("ends", lambda: start(file, killed).wait(SECONDS) == 0)
        row.check("same losses", lambda: losses(killed) == losses(undisturbed))
        wanted = {row["run_id"] for row in load_sweep(undisturbed, file.stem).rows}
        row.check(
            "the report has every run",
            lambda: {row["run_id"] for row in load_sweep(killed, file.stem).rows} == wanted,
        )
        row.check("nothing staged is left", lambda: not list(killed.rglob(".*.json.*")))
