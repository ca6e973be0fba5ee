"""`harness status`: how a sweep stands, from its files alone, while it runs and afterwards."""

from collections.abc import Sequence
from pathlib import Path

from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.launch.jobs import job_lines
from harness.records.redact import message
from harness.sweeping.display import print_state, progress_text
from harness.sweeping.state import SweepDirectory, read_state, state_text


def _line(out: Path, name: str) -> str:
    """Say how a sweep stands, or why that cannot be said: a damaged one hides no other."""
    try:
        return progress_text(read_state(SweepDirectory(out, name)))
    except RequestError as error:
        return message(f"{name}: {error}")


def _jobs(directory: SweepDirectory) -> list[str]:
    try:
        return job_lines(directory)
    except RequestError as error:
        return [message(str(error))]


def status_command(words: Sequence[str], *, as_json: bool) -> int:
    """Print one sweep, or a line for each; `paths.out=` says where they are."""
    names = [word for word in words if "=" not in word]
    out = Path(compose_run([word for word in words if "=" in word]).paths.out)
    if len(names) > 1:
        raise RequestError(f"harness status takes one sweep's name, got {', '.join(names)}")
    if names:
        directory = SweepDirectory(out, names[0])
        state = read_state(directory)
        if as_json:
            print(state_text(state), end="")
        else:
            print_state(state, file=str(directory.state))
            lines = _jobs(directory)
            print("".join(f"{line}\n" for line in lines), end="")
            if any(": pending" in line or ": running" in line for line in lines):
                print("its jobs go on by themselves")
        return 0
    if as_json:
        raise RequestError("harness status --json needs the name of a sweep")
    found = sorted((out / "sweeps").glob("*/state.json"))
    for file in found:
        print(_line(out, file.parent.name))
    if not found:
        print(f"no sweep has run under {out / 'sweeps'}")
    return 0
