"""What a sweep leaves in its directory: its state, and the lock that keeps a second driver away."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from harness.errors import RequestError
from harness.sweeping.state import (
    ConfirmedLine,
    DeviceLine,
    RunLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    TrialLine,
    read_state,
    write_state,
)


def state(**changes) -> SweepState:
    values = {
        "name": "ranks",
        "question": "Which rank?",
        "expect": "",
        "method": "tpe",
        "objectives": {"eval/loss": "minimize"},
        "trials_requested": 2,
        "devices": [
            DeviceLine(
                name="cpu",
                doing="training",
                packing="",
                runs=["a"],
                seconds=9.0,
                waited_seconds=0.1,
            )
        ],
        "trials": [
            TrialLine(
                number=0,
                point={"lora.rank": "4"},
                status="completed",
                values=[math.inf],
                feasible=False,
                runs=["a"],
                reason="diverged",
            ),
            TrialLine(
                number=1,
                point={},
                status="running",
                values=None,
                feasible=False,
                runs=[],
                reason=None,
            ),
        ],
        "runs": [
            RunLine(
                run_id="a",
                role="search",
                seed=0,
                status="diverged",
                step=3,
                total_steps=9,
                was_there=False,
                error="step 4: loss nan",
            )
        ],
        "confirmed": [
            ConfirmedLine(
                point={"lora.rank": "4"}, trial=0, runs=["b"], values={"eval/loss": [0.5]}
            )
        ],
    }
    return SweepState(**(values | changes))


@pytest.fixture
def directory(tmp_path) -> SweepDirectory:
    found = SweepDirectory(tmp_path, "ranks")
    found.path.mkdir(parents=True)
    return found


def test_a_state_reads_back_as_it_was_with_its_infinities(directory):
    with directory.lock():
        write_state(directory, written := state())
        assert read_state(directory) == written
    json.loads(directory.state.read_text(), parse_constant=pytest.fail)  # no bare Infinity


def test_a_sweep_whose_driver_is_gone_is_interrupted_whatever_it_said_last(directory):
    write_state(directory, state(status=SweepStatus.running))
    assert read_state(directory).status is SweepStatus.interrupted
    write_state(directory, state(status=SweepStatus.finished))
    assert read_state(directory).status is SweepStatus.finished


def test_a_name_that_no_sweep_has_is_answered_with_those_near(directory):
    write_state(directory, state())
    with pytest.raises(RequestError, match="near names: ranks"):
        read_state(SweepDirectory(directory.path.parent.parent, "rnks"))


def test_a_second_driver_is_refused_with_the_holder_and_a_dead_ones_lock_is_free(directory):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from harness.sweeping.state import SweepDirectory\n"
        "with SweepDirectory(Path(sys.argv[1]), 'ranks').lock():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    out = str(directory.path.parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        name = f"pid {holder.pid} on {os.uname().nodename}"
        with pytest.raises(RequestError, match=name), directory.lock():
            pass
        assert directory.is_driven()
        holder.send_signal(signal.SIGKILL)
    with directory.lock():
        pass


def test_looking_whether_a_sweep_is_driven_does_not_keep_a_driver_out(directory):
    with directory.lock():
        pass
    stop = time.monotonic() + 0.3
    while time.monotonic() < stop:
        assert not directory.is_driven()
        with directory.lock():
            assert directory.is_driven()
