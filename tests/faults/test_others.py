"""What happens around a sweep: a server that dies, a second driver, clocks that jump."""

import os
import re
import time
from pathlib import Path

import pytest

from harness.records.record import RunStatus, read_metrics, read_records
from harness.sweeping.state import SweepDirectory, SweepStatus, read_state
from tests.faults.commands import SECONDS, ends_in_words, fresh_harness, harness, start_command
from tests.postgres import running_server, server_programs
from tests.sweeping.test_crash import lines_of, losses

STEPS = 60
GRID = {
    "space": {"lora.rank": "choice(1,2,4)"},
    "search": {"method": "grid", "seeds": [0, 1]},
    "resources": {"devices": "cpu"},
}


def every_step_once(out: Path, steps: int) -> bool:
    """Whether each run has logged each of its steps exactly once."""
    wanted = list(range(1, steps + 1))
    return all(
        [row["step"] for row in read_metrics(file).rows] == wanted
        for file in out.glob("runs/*/metrics.jsonl")
    )


def wait_for_lines(out: Path, count: int) -> None:
    give_up = time.monotonic() + SECONDS
    while lines_of(out) < count:
        assert time.monotonic() < give_up, "nothing happened"
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_server_that_is_killed_in_the_middle_loses_no_run(ask, tmp_path, tally):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed here")
    out, alone = tmp_path / "out", tmp_path / "alone"
    file = ask(base=(f"optim.steps={STEPS}",), **GRID)
    with running_server(programs) as server, tally("PostgreSQL killed") as row:
        storage, place = f"study.storage={server.url}", f"paths.out={out}"
        driver = start_command(["sweep", str(file), storage, place], tmp_path / "driver.log")
        wait_for_lines(out, 1)
        member = start_command(["worker", "small", storage, place], tmp_path / "member.log")
        members = out / "sweeps/small/workers"
        give_up = time.monotonic() + SECONDS
        while len(list(members.glob("*/"))) < 2:  # one that begins without a server is refused
            assert driver.poll() is None, "the driver was done before a member had begun"
            assert time.monotonic() < give_up, "no member has begun"
            time.sleep(0.1)
        for kill in range(2):
            wait_for_lines(out, 40 * (kill + 1))
            server.kill()
            time.sleep(3)
            server.start()
        for name, process in (("driver", driver), ("member", member)):
            row.check(f"{name} ends", lambda process=process: process.wait(SECONDS) == 0)
            said = (tmp_path / f"{name}.log").read_text()
            row.check(f"{name} in words", lambda said=said: "Traceback" not in said)
        state = read_state(SweepDirectory(out, "small"))
        row.check("finished", lambda: state.status is SweepStatus.finished)
        for trial in state.trials:
            row.check(f"trial {trial.number}", lambda t=trial: t.status == "completed")
        row.check("every step once", lambda: every_step_once(out, STEPS))
        undisturbed = harness(["sweep", str(file), f"paths.out={alone}"])
        assert undisturbed.code == 0, undisturbed
        for run_id, wanted in losses(alone).items():
            row.check(
                run_id, lambda r=run_id, w=wanted: losses(out)[r] == pytest.approx(w, abs=1e-6)
            )
        server.kill()  # for good: what is on disk says all
        row.check("status", lambda: ends_in_words(harness(["status", "small", place])))
        row.check("report", lambda: ends_in_words(harness(["report", "small", place])))
        row.check("worker", lambda: harness(["worker", "small", storage, place]).code == 2)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_of_several_drivers_one_trains_and_the_others_are_told(ask, tmp_path, tally):
    out = tmp_path / "out"
    file = ask(base=(f"optim.steps={STEPS}", f"paths.out={out}"), **GRID)
    with tally("several drivers") as row:
        drivers = [start_command(["sweep", str(file)], tmp_path / f"{n}.log") for n in range(3)]
        codes = [driver.wait(SECONDS) for driver in drivers]
        said = [(tmp_path / f"{n}.log").read_text() for n in range(3)]
        row.check("exit codes", lambda: sorted(codes) in ([0, 2, 2], [0, 0, 2], [0, 0, 0]))
        for code, text in zip(codes, said, strict=True):
            row.check("in words", lambda text=text: "Traceback" not in text)
            row.check("says who", lambda c=code, t=text: c == 0 or bool(re.search(r"pid \d+", t)))
        row.check("all trained", lambda: len(read_records(out)[0]) == 6)
        row.check("every step once", lambda: every_step_once(out, STEPS))
        words = ["run", *(o for o in _base_of(file)), "lora.rank=8"]
        runs = [start_command(words, tmp_path / f"run{n}.log") for n in range(3)]
        codes = [run.wait(SECONDS) for run in runs]
        row.check("exit codes of runs", lambda: set(codes) <= {0, 2} and 0 in codes)
        row.check("steps of runs", lambda: every_step_once(out, STEPS))


def _base_of(file: Path) -> list[str]:
    import yaml

    return yaml.safe_load(file.read_text())["base"]


CLOCK = """
import datetime, os, time
_shift, _time, _began = float(os.environ.get("CLOCK_SHIFT", "0")), time.time, time.monotonic()
_back = float(os.environ.get("CLOCK_JUMPS", "0"))

def _shifted():
    jump = _back if time.monotonic() - _began > 6 else 0.0
    return _time() + _shift + jump

class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(_shifted(), tz)

time.time, datetime.datetime = _shifted, _Datetime
"""
"""A module that Python imports at its start; the clocks of the process jump."""
DAY = 86_400.0


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_clocks_that_jump_change_no_result(ask, tmp_path, tally):
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    file = ask(base=(f"optim.steps={STEPS}",), **GRID)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    done = harness(["sweep", str(file), f"paths.out={undisturbed}"])
    assert done.code == 0, done

    def at(shift: float, jumps: float = 0.0) -> dict[str, str]:
        path = os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": path, "CLOCK_SHIFT": str(shift), "CLOCK_JUMPS": str(jumps)}

    with tally("clocks") as row:
        for number, shift in enumerate((0.0, -3 * DAY, 400 * DAY)):
            words = ["sweep", str(file), f"paths.out={out}"]
            process = start_command(words, tmp_path / "log", at(shift, -DAY))
            wait_for_lines(out, 30 * (number + 1))
            process.kill()
            process.wait()
        words = ["sweep", str(file), f"paths.out={out}"]
        done = fresh_harness(words, environment=at(-20 * DAY, 40 * DAY))
        row.check("goes on", lambda: ends_in_words(done, (0,)))
        records = read_records(out)[0]
        for record in records:
            row.check("completed", lambda r=record: r.status is RunStatus.completed)
            row.check("sane seconds", lambda r=record: 0 <= (r.wall_seconds or 0) < SECONDS)
        row.check("same losses", lambda: losses(out).keys() == losses(undisturbed).keys())
        for run_id, wanted in losses(undisturbed).items():
            row.check(
                run_id, lambda r=run_id, w=wanted: losses(out)[r] == pytest.approx(w, abs=1e-6)
            )
        row.check("every step once", lambda: every_step_once(out, STEPS))
        for shift in (-DAY, DAY):
            for words in (["status", "small"], ["report", "small"]):
                said = fresh_harness([*words, f"paths.out={out}"], environment=at(shift))
                row.check(words[0], lambda said=said: ends_in_words(said, (0,)))


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_leases_go_by_the_servers_clock(ask, postgres_database, tmp_path, tally):
    """A member whose clock is a year ahead takes nobody's runs, and one that is behind keeps its own."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    out, storage = tmp_path / "out", f"study.storage={postgres_database}"
    path = os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")])
    file = ask(base=(f"optim.steps={STEPS}",), **GRID)
    with tally("clocks of members") as row:
        driver = start_command(["sweep", str(file), storage, f"paths.out={out}"], tmp_path / "one")
        wait_for_lines(out, 1)
        ahead = {"PYTHONPATH": path, "CLOCK_SHIFT": str(400 * DAY), "CLOCK_JUMPS": str(-900 * DAY)}
        words = ["worker", "small", storage, f"paths.out={out}"]
        member = start_command(words, tmp_path / "two", ahead)
        for name, process in (("driver", driver), ("member", member)):
            row.check(f"{name} ends", lambda process=process: process.wait(SECONDS) == 0)
        row.check("every step once", lambda: every_step_once(out, STEPS))
        row.check("all completed", lambda: {r.status for r in read_records(out)[0]} == _COMPLETED)


_COMPLETED = {RunStatus.completed}
