"""Children of the bench: they wait for their turn, and what they say, need and fail with is heard."""

import sys
from pathlib import Path

import pytest

from bench.peers.processes import Child, ChildFailed, environment, run

ROOT = Path(__file__).resolve().parents[2]
STEPS = """
from bench.peers.channel import Channel
channel = Channel()
channel.mark("imported")
for step in range(1, 7):
    channel.step_done(step)
channel.mark("result", answer=42)
"""


def child_environment() -> dict[str, str]:
    return environment(1, PYTHONPATH=str(ROOT))


def test_a_child_waits_after_every_block_until_it_may_go_on(tmp_path: Path):
    command = [sys.executable, "-c", STEPS]
    with Child(command, child_environment(), tmp_path / "log", block_steps=3) as child:
        first = child.until("block")
        assert first is not None
        assert first["step"] == 3
        assert "result" not in child._marks
        child.go()
        second = child.until("block")
        assert second is not None
        assert second["step"] == 6
        child.go()
        finished = child.finish()
    assert finished.result["answer"] == 42
    assert 0 <= second["seconds"] <= finished.seconds
    assert 0 < finished.marks["imported"] <= finished.marks["first_step"] <= finished.seconds


def test_a_child_without_blocks_never_waits(tmp_path: Path):
    finished = run([sys.executable, "-c", STEPS], child_environment(), tmp_path / "log")
    assert finished.result["answer"] == 42


def test_the_same_script_runs_without_a_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bench.peers.channel import Channel

    monkeypatch.delenv("BENCH_CHANNEL", raising=False)
    channel = Channel()
    channel.mark("imported")
    channel.step_done(1)


def test_a_peak_is_seen_even_where_the_child_resets_it(tmp_path: Path):
    script = (
        "import time\n"
        "block = bytearray(120 * 2**20)\n"
        "time.sleep(0.2)\n"
        "del block\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "time.sleep(0.1)\n"
    )
    finished = run([sys.executable, "-c", script], child_environment(), tmp_path / "log")
    assert 120 * 2**20 < finished.peak_bytes < 400 * 2**20


def test_a_failure_carries_the_last_words(tmp_path: Path):
    with pytest.raises(ChildFailed, match="no such luck"):
        run(
            [sys.executable, "-c", "raise SystemExit('no such luck')"],
            child_environment(),
            tmp_path / "log",
        )
