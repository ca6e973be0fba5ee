"""kill -9 of driver, worker or both, at random moments: the same command ends as if undisturbed."""

import contextlib
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from analysis.render import csv
from analysis.sources import load_sweep
from analysis.specs import specs_for
from analysis.tables import build_table
from harness.records.record import RunStatus, read_metrics, read_records
from harness.sweeping.state import SweepDirectory, SweepStatus, read_state
from tests.commands.forked import Command
from tests.learned import learned

Started = Command | subprocess.Popen[bytes]
STEPS = 25
SECONDS = 90.0


def start(file: Path, out: Path) -> Command:
    """Start the sweep in a process group of its own, which has its libraries loaded, as its workers have."""
    log = out.parent / f"{out.name}.log"
    return Command(["sweep", str(file), f"paths.out={out}"], out.parent, log=log)


def start_python(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the sweep as a user would, imports and all."""
    log = (out.parent / f"{out.name}.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", "sweep", str(file), f"paths.out={out}"],
            start_new_session=True,
            stdout=log,
            stderr=log,
        )


def lines_of(out: Path) -> int:
    """Return how many steps have been logged by now."""
    return sum(file.read_bytes().count(b"\n") for file in out.glob("runs/*/metrics.jsonl"))


def kill_at_random(process: Started, out: Path, chance: random.Random) -> str:
    """Kill somebody after some more steps, or at any time at all; returns who it was."""
    wanted = lines_of(out) + chance.randint(1, 40)
    give_up = time.monotonic() + (chance.uniform(0, 8) if chance.random() < 0.3 else SECONDS)
    while process.poll() is None and lines_of(out) < wanted and time.monotonic() < give_up:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.1))
    victim = chance.choice(["driver", "worker", "group"])
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        match victim:
            case "driver":
                os.kill(process.pid, signal.SIGKILL)
            case "worker":
                for child in psutil.Process(process.pid).children():
                    child.kill()
                time.sleep(chance.uniform(0, 6))  # the driver starts another and goes on
                os.kill(process.pid, signal.SIGKILL)
            case "group":
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return victim


def completed(out: Path) -> dict[str, str]:
    """Return the completed runs and when each began; one killed at birth has no record yet."""
    records, _ = read_records(out)
    return {r.run_id: r.started_at for r in records if r.status is RunStatus.completed}


def results(out: Path) -> dict[str, tuple[bytes, object, object]]:
    """Return what every run has left: adapter, what it learned at each step, evaluations."""
    found = {}
    for record in read_records(out)[0]:
        run = out / "runs" / record.run_id
        adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
        found[record.run_id] = (adapter, learned(run / "metrics.jsonl"), record.evals)
    return found


def losses(out: Path) -> dict[str, list[float]]:
    """Return the loss curve of every run, and the loss of its last evaluation."""
    found = {}
    for record in read_records(out)[0]:
        rows = read_metrics(out / "runs" / record.run_id / "metrics.jsonl").rows
        curve = [row["train/loss"] or math.nan for row in rows]
        found[record.run_id] = [*curve, record.evals["after"]["eval/loss"].value]
    return found


def tables(out: Path, name: str) -> dict[str, tuple[str, str]]:
    """Return every table of the sweep's report, with the runs behind each cell."""
    sweep = load_sweep(out, name)
    assert sweep.problems == []
    found = [build_table(spec, sweep.rows) for spec in specs_for(sweep)]
    return {table.name: (csv(table), table.sources()) for table in found}


@pytest.mark.parametrize(
    ("kills", "cohort", "rates"),
    [
        (3, 1, ["1e-3"]),
        pytest.param(20, 4, ["1e-3", "1e-2"], marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_a_sweep_that_is_killed_again_and_again_ends_like_one_that_is_not(
    ask, tmp_path, kills, cohort, rates
):
    file = ask(
        base=(f"optim.steps={STEPS}", "eval.every_steps=10"),
        space={"lora.rank": "choice(1,2,4)", "optim.lr": f"choice({','.join(rates)})"},
        search={"method": "grid", "seeds": [0, 1]},
        confirm={"top": 1, "seeds": [5]},
        resources={"cohort": cohort},
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(file, undisturbed).wait(SECONDS) == 0

    chance = random.Random(kills)
    known: dict[str, str] = {}
    for _ in range(kills):
        kill_at_random(start(file, killed), killed, chance)
        now = completed(killed)
        assert known.items() <= now.items(), "a completed run was trained again"
        known = now
    assert start(file, killed).wait(SECONDS) == 0
    assert known.items() <= completed(killed).items()

    state = read_state(SweepDirectory(killed, file.stem))
    assert state.status is SweepStatus.finished
    assert [trial.number for trial in state.trials] == list(range(3 * len(rates)))
    assert {trial.status for trial in state.trials} == {"completed"}
    assert not read_records(killed)[1]
    if cohort == 1:
        assert results(killed) == results(undisturbed)  # bit for bit
    else:  # who shared a pass with whom depends on the kills, and so do the last bits
        assert losses(killed).keys() == losses(undisturbed).keys()
        for run_id, found in losses(killed).items():
            assert found == pytest.approx(losses(undisturbed)[run_id], rel=0, abs=1e-6)
    for run_id in losses(killed):
        rows = read_metrics(killed / "runs" / run_id / "metrics.jsonl").rows
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))

    told = tables(killed, file.stem)
    assert {"confirmation", "search", "cost"} <= told.keys()
    shutil.rmtree(SweepDirectory(killed, file.stem).path)
    assert start(file, killed).wait(SECONDS) == 0  # one process that finds the same records
    assert tables(killed, file.stem) == told


def test_ctrl_c_keeps_checkpoints_says_how_to_go_on_and_the_same_command_ends_it(ask, tmp_path):
    file = ask(base=("optim.steps=200",), space={"lora.rank": "choice(1,2)"})
    out = tmp_path / "out"
    process = start(file, out)
    while lines_of(out) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: all of the group get it
    assert process.wait(30) == 130
    hint = (tmp_path / "out.log").read_text().partition("Go on with: ")[2].splitlines()[0]
    assert shlex.split(hint) == ["harness", "sweep", str(file), f"paths.out={out}"]
    state = read_state(SweepDirectory(out, file.stem))
    assert state.status is SweepStatus.interrupted
    statuses = {record.status for record in read_records(out)[0]}
    assert statuses <= {RunStatus.interrupted, RunStatus.completed}
    before = lines_of(out)
    assert before < 400
    file.unlink()  # the sweep has kept its question
    assert start(Path(file.stem), out).wait(SECONDS) == 0
    assert lines_of(out) == 400
    assert len(completed(out)) == 2
