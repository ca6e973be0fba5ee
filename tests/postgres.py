"""A real PostgreSQL server for tests: one per pytest process, on a free loopback port, gone at the end."""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_SECONDS = 60
_ATTEMPTS = 3  # another process may take the free port first
_DEBIAN = Path("/usr/lib/postgresql")
_PR_SET_PDEATHSIG = 1  # prctl(2)


def server_programs() -> Path | None:
    """Return the directory with `initdb` and `postgres`: Debian's newest, or that of the path."""
    versions = [each for each in _DEBIAN.glob("*/bin") if (each / "postgres").exists()]
    if versions:
        return max(versions, key=lambda each: float(each.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def server_user() -> str | None:
    """Return whom the server runs as instead of root, whom it refuses; None for the caller."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


class Server:
    """A running server, which may be killed and started again where it was."""

    def __init__(self, programs: Path, data: Path) -> None:
        self._programs, self._data, self._user = programs, data, server_user()
        _initialize(programs, data, self._user)
        self.process, self._port = _start(programs, data, self._user)

    @property
    def url(self) -> str:
        """The url of its database `postgres`."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def kill(self) -> None:
        """End it and all its processes at once, as a machine does that is switched off."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def start(self) -> None:
        """Start it again on what it has left, at the same port."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self.process, self._port = _start(self._programs, self._data, self._user, self._port)


@contextmanager
def running_server(programs: Path) -> Iterator[Server]:
    """Yield a new server; stops and removes it in the end."""
    user = server_user()
    directory = Path(tempfile.mkdtemp(prefix="harness-postgres-"))
    try:
        if user is not None:
            shutil.chown(directory, user)
        server = Server(programs, directory / "data")
        try:
            yield server
        finally:
            _stop(server.process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _initialize(programs: Path, data: Path, user: str | None) -> None:
    command = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    done = subprocess.run(
        [*command, "--no-locale", "--no-sync"],
        user=user,
        group=_group(user),
        cwd=data.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _start(
    programs: Path, data: Path, user: str | None, at_port: int | None = None
) -> tuple[subprocess.Popen, int]:
    said = ""
    for _ in range(_ATTEMPTS):
        port = at_port or _free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 100,
            "shared_buffers": "32MB",
        }
        log = data.parent / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data]
                + [f"--{key}={value}" for key, value in settings.items()],
                user=user,
                group=_group(user),
                cwd=data.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt of the tests is not the server's
                preexec_fn=_die_with_the_tests,
            )
        if _accepts(programs, port, process):
            return process, port
        _stop(process)
        said = log.read_text(errors="replace")
    raise AssertionError(f"PostgreSQL did not start in {_START_SECONDS} seconds:\n{said}")


def _group(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def _die_with_the_tests() -> None:
    """Ask the kernel to end the server at once when its parent is killed, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _accepts(programs: Path, port: int, process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    command = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run(command, check=False).returncode == 0:
            return process.poll() is None
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)  # PostgreSQL's "fast": clients are disconnected
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The url of a running server's database `postgres`; skipped where no server is installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed here: apt-get install postgresql")
    with running_server(programs) as server:
        yield server.url


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The url of a fresh, empty database."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    name = f"test_{uuid.uuid4().hex[:12]}"
    database = Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(database))
        try:
            yield postgres_url.removesuffix("/postgres") + f"/{name}"
        finally:
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(database))
