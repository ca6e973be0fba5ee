"""Real `harness …` processes, and what each of them must hold however it was asked."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.commands.forked import Command, Done

SECONDS = 240.0
CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 7,
    "PGPASSWORD": "correct-horse-battery",
    "SECRET_TOKEN": "tok-1234567890abcdef",
}
"""Variables of the environment whose values may appear nowhere."""
PASSWORD = "Pa55word"
"""Part of addresses that are given to commands; it, too, may appear nowhere."""


def harness(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end, in a directory of its own and a process that has imported its libraries."""
    with tempfile.TemporaryDirectory() as directory:
        command = Command(list(words), Path(directory), environment=environment)
        try:
            return command.end(SECONDS)
        finally:
            command.process.kill()


def fresh_harness(
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    limit: Callable[[], None] | None = None,
) -> Done:
    """Run a command to its end in a new process; `limit` is called in it before it begins."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        preexec_fn=limit,
        timeout=SECONDS,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def start_command(
    words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own; what it says goes to `log`."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *words],
            stdout=said,
            stderr=said,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


def ends_in_words(done: Done, codes: Sequence[int] = (0, 1, 2, 130)) -> bool:
    """Whether a command ended with a documented code, in words, without a secret or a control character."""
    said = done.out + done.err
    assert "Traceback (most recent call last)" not in said, said[-600:]
    assert "a fault of the harness" not in done.err, done.err[-600:]
    assert done.code in codes, f"exit {done.code}: {done.err[-300:]}"
    assert not secrets_in(said.encode()), secrets_in(said.encode())
    assert all(c.isprintable() or c in "\r\n\t" for c in done.err), done.err[-300:]
    return done.code in (0, 130) or bool(done.err.strip())


def secrets_in(content: bytes) -> list[str]:
    """Return which canaries some bytes hold."""
    return [each for each in (*CANARIES.values(), PASSWORD) if each.encode() in content]


def files_with_secrets(directory: Path) -> list[str]:
    """Return the files below a directory that hold a canary, in their content or their name."""
    found = []
    for path in directory.rglob("*"):
        held = secrets_in(str(path.relative_to(directory)).encode())
        if path.is_file():
            held += secrets_in(path.read_bytes())
        found += [f"{path.relative_to(directory)}: {each}" for each in held]
    return found
