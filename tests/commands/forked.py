"""`harness …` in a process that is forked from one in which the libraries are loaded already.

The command line, signals, exit codes and files are those of the real command; only the five seconds of
imports are saved. Imported by the fork server, so that its imports are what is saved.
"""

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

_SECONDS = 240.0
"""Far more than anything takes: what has not ended by then hangs."""


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
        log: Path | None = None,
        script: Path | None = None,
        forks_ranks: bool = False,
    ) -> None:
        """What it prints goes to two files in `directory`, to a terminal, or to the end of a log.

        A script is run in the place of the command. The ranks that torchrun starts may be forked likewise.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.files = (log, log) if log else (directory / "stdout", directory / "stderr")
        targets = (terminal, terminal) if terminal else tuple(map(str, self.files))
        self.process = warm_context().Process(
            target=_harness,
            args=(arguments, str(directory), dict(environment or {}), targets, script, forks_ranks),
        )
        self.process.start()

    @property
    def pid(self) -> int:
        """The process, which leads a group of its own."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        return self.process.exitcode

    def wait(self, seconds: float = _SECONDS) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "still running"
        return self.process.exitcode

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait for a condition; fails if the process ends or nothing happens before it holds."""
        deadline = time.monotonic() + _SECONDS
        while not true():
            assert self.process.is_alive(), f"ended early: {self.end()}"
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.001)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def end(self, seconds: float = _SECONDS) -> Done:
        """Wait for the end."""
        code = self.wait(seconds)
        texts = [file.read_text(errors="replace") if file.exists() else "" for file in self.files]
        return Done(code, *texts)


def _harness(
    arguments: list[str],
    directory: str,
    environment: dict[str, str],
    targets: tuple[str, str],
    script: Path | None,
    forks_ranks: bool,
) -> None:
    from harness.cli.main import main
    from harness.sweeping import pool

    os.setsid()
    os.chdir(directory)
    os.environ.update(environment)
    end = os.O_APPEND if targets[0] == targets[1] else os.O_TRUNC
    for descriptor, target in enumerate(targets, start=1):
        flags = os.O_WRONLY | os.O_CREAT | end | os.O_NOCTTY
        os.dup2(os.open(target, flags, 0o644), descriptor)
    pool.subprocess = starting(ForkedWorker)  # type: ignore[assignment]
    if forks_ranks:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess_handler.Popen = ForkedRank  # type: ignore[assignment, misc]
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [str(script or "harness"), *arguments]
    if script is None:
        main()
    else:
        runpy.run_path(str(script), run_name="__main__")


def warm_context() -> ForkServerContext:
    """Return what starts processes in which the libraries are loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.commands.warm"])
    if SERVER in os.environ and forkserver._forkserver._forkserver_address is None:  # pyright: ignore
        _join_server(os.environ[SERVER])
    return context


SERVER = "TESTS_FORK_SERVER"
"""Environment variable: the address of the fork server that pytest's workers share."""


def start_server() -> None:
    """Start a fork server for this process and for those that it starts: loading takes 12 s."""
    assert SERVER not in os.environ
    warm_context()
    forkserver.ensure_running()
    os.environ[SERVER] = forkserver._forkserver._forkserver_address  # pyright: ignore


def _join_server(address: str) -> None:
    """Let this process use a server that another one keeps; it ends with that one."""
    server: Any = forkserver._forkserver  # pyright: ignore[reportAttributeAccessIssue]
    server._forkserver_address = address
    _, server._forkserver_alive_fd = os.pipe()  # what its processes are given as their server's
    server.ensure_running = resource_tracker.ensure_running


# Workers of a sweep ------------------------------------------------------------------------------


def starting(worker: type) -> SimpleNamespace:
    """Return what a pool of workers needs of `subprocess`, with another way to start one."""
    return SimpleNamespace(
        Popen=worker, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


def _work(command: list[str], descriptor: int, log: str, environment: dict[str, str]) -> None:
    """Be a worker: what `python -m MODULE DESCRIPTOR` does once it has started."""
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream, target in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(target, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [command[2], str(descriptor)]
    sys.modules.pop(command[2], None)
    runpy.run_module(command[2], run_name="__main__")


class _Started:
    """What a pool asks of a process."""

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        raise NotImplementedError

    @property
    def returncode(self) -> int | None:
        """How it ended, or None."""
        return self.poll()


class _Forked(_Started):
    """A process that is forked from this one."""

    def _fork(self, do: Callable[[], None]) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                do()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def wait(self, timeout: float = _SECONDS) -> int:
        """Wait for the end; raises TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.005)
        assert self._code is not None
        return self._code

    def kill(self) -> None:
        """End it now."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedWorker(_Forked):
    """A worker that is forked from its driver, itself a fork of a process that has the libraries loaded."""

    def __init__(
        self,
        command: list[str],
        *,
        pass_fds: Sequence[int],
        stdout: IO[bytes],
        env: dict[str, str],
        **_: object,
    ) -> None:
        (descriptor,) = pass_fds

        def work() -> None:
            # A sibling's pipe that stays open here is never at its end.
            os.closerange(3, descriptor)
            os.closerange(descriptor + 1, 4096)
            _work(command, descriptor, stdout.name, env)

        self._fork(work)


class ForkedRank(_Forked):
    """A rank that is forked from torchrun's agent: `python -m MODULE ARGUMENT`, as a new process has it."""

    def __init__(self, args: Sequence[str], *, env: dict[str, str], **_: object) -> None:
        module, *arguments = args[list(args).index("-m") + 1 :]

        def take_part() -> None:
            os.setsid()
            os.closerange(3, 4096)
            logging.disable(logging.NOTSET)
            for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(env)
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__")

        self._fork(take_part)


class ServedWorker(_Started):
    """A worker that the fork server starts, for a driver in the tests' own process, which must not fork."""

    def __init__(
        self,
        command: list[str],
        *,
        pass_fds: Sequence[int],
        stdout: IO[bytes],
        env: dict[str, str],
        **_: object,
    ) -> None:
        (descriptor,) = pass_fds
        with Connection(os.dup(descriptor)) as theirs:
            self._process = warm_context().Process(
                target=_served, args=(command, theirs, stdout.name, env)
            )
            self._process.start()

    @property
    def pid(self) -> int | None:
        """The process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        return self._process.exitcode

    def wait(self, timeout: float = _SECONDS) -> int:
        """Wait for the end; raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        """End it now."""
        self._process.kill()


def _served(command: list[str], theirs: Connection, log: str, environment: dict[str, str]) -> None:
    _work(command, os.dup(theirs.fileno()), log, environment)


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
