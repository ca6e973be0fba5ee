"""The report of a sweep that was killed, stopped, extended and given again is that of an undisturbed one.

Of its tables alone test_crash.py says so in the laptop suite.
"""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from analysis.report import report_sweep
from harness.records.record import RunStatus, read_records
from harness.sweeping.state import SweepDirectory, SweepStatus, read_state
from tests.sweeping.test_crash import start

SECONDS = 240.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def report_of(out: Path, name: str) -> dict[str, bytes]:
    """Write the report anew and return its files; times of day are taken out of the page."""
    directory = SweepDirectory(out, name).report
    shutil.rmtree(directory, ignore_errors=True)
    report_sweep(out, name)
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    page = files["index.html"].decode()
    files["index.html"] = re.sub(r"updated \S+", "updated", page).encode()
    return files


def completed(out: Path) -> int:
    return sum(record.status is RunStatus.completed for record in read_records(out)[0])


def interrupt(file: Path, out: Path, ended: int, how: signal.Signals) -> None:
    """Start the sweep and end it once so many of its runs are completed."""
    process = start(file, out)
    give_up = time.monotonic() + SECONDS
    while process.poll() is None and completed(out) < ended and time.monotonic() < give_up:
        time.sleep(0.02)
    assert process.poll() is None, "it was to be interrupted, and has ended"
    os.killpg(process.pid, how)
    process.wait(SECONDS)


def undisturbed(file: Path, out: Path, name: str) -> dict[str, bytes]:
    """Return the report of one process that found the same records; only the study is gone."""
    shutil.rmtree(out / "sweeps" / name)
    assert start(file, out).wait(SECONDS) == 0
    return report_of(out, name)


def test_a_sweep_that_was_killed_stopped_and_given_again_has_the_report_of_an_undisturbed_one(
    ask, tmp_path
):
    file = ask(
        base=("optim.steps=20",),
        space={"lora.rank": "choice(1,2)"},
        search={"method": "grid", "seeds": [0, 1]},
        constraints={"memory/peak_bytes": {"at_most": "1GiB"}},
        confirm={"top": 1, "seeds": [5, 6]},
        resources={"cohort": 2, "devices": "cpu"},
    )
    out, name = tmp_path / "out", file.stem
    interrupt(file, out, 1, signal.SIGKILL)
    interrupt(file, out, 3, signal.SIGTERM)
    assert start(file, out).wait(SECONDS) == 0
    assert start(file, out).wait(SECONDS) == 0  # nothing is left to do
    disturbed = report_of(out, name)

    state = read_state(SweepDirectory(out, name))
    assert state.status is SweepStatus.finished
    assert len({run.run_id for run in state.runs if run.role == "search"}) == 4
    once = undisturbed(file, out, name)
    assert disturbed.keys() == once.keys()
    for path, content in once.items():
        assert disturbed[path] == content, path
    search = once["tables/search.csv"].decode()
    assert len(search.splitlines()) == 1 + 2


def test_a_sweep_that_was_extended_has_the_report_of_one_that_was_asked_for_at_once(ask, tmp_path):
    space = {"lora.rank": "choice(1,2,4)", "optim.lr": "tag(log, interval(1e-3, 1e-2))"}
    out = tmp_path / "out"

    def asked(trials: int) -> Path:
        search = {"method": "random", "trials": trials}
        return ask(space=space, search=search, confirm={"top": 2, "seeds": [5, 6]})

    assert start(asked(2), out).wait(SECONDS) == 0
    file = asked(4)
    assert start(file, out).wait(SECONDS) == 0
    extended = report_of(out, file.stem)
    assert extended == undisturbed(file, out, file.stem)
