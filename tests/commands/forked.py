"""`harness …` in a process that is forked from one in which the libraries are loaded already.

The command line, signals, exit codes and files are those of the real command; only the five seconds of
imports are saved. Imported by the fork server, so that its imports are what is saved.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended; a code below zero is the signal that killed it."""

    code: int
    out: str
    err: str


class Command:
    """A running `harness …`."""

    def __init__(
        self,
        arguments: list[str],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        terminal: str | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.files = (directory / "stdout", directory / "stderr")
        targets = (terminal, terminal) if terminal else tuple(map(str, self.files))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.commands.warm"])
        self.process = context.Process(
            target=_harness, args=(arguments, str(directory), dict(environment or {}), targets)
        )
        self.process.start()

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait for a condition; fails if the process ends or nothing happens before it holds."""
        deadline = time.monotonic() + _SECONDS
        while not true():
            assert self.process.is_alive(), f"ended early: {self.end()}"
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.001)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self, seconds: float = _SECONDS) -> Done:
        """Wait for the end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "still running"
        texts = [file.read_text(errors="replace") if file.exists() else "" for file in self.files]
        return Done(self.process.exitcode, *texts)


def _harness(
    arguments: list[str], directory: str, environment: dict[str, str], targets: tuple[str, str]
) -> None:
    from harness.cli.main import main

    os.chdir(directory)
    os.environ.update(environment)
    for descriptor, target in enumerate(targets, start=1):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
        os.dup2(os.open(target, flags, 0o644), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["harness", *arguments]
    main()


def real_harness(arguments: list[str], directory: Path) -> Done:
    """Run `python -m harness` as a user does, imports and all."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)
