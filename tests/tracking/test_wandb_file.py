"""The reader of `.wandb` files against files that wandb writes, whole and damaged in every place."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.answers import KeptAnswer
from harness.records.record import Record, RunStatus
from harness.tracking import open_tracker
from harness.tracking.wandb_file import WandbHistory, has_ended, read_wandb_run

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_STEPS = 400


def values_of(step: int) -> dict[str, float]:
    return {"train/loss": 4 / (step + 1), "train/grad_norm": math.sqrt(step), "train/epoch": 0.5}


def write_offline_run(directory: Path, num_steps: int) -> Path:
    """Let wandb alone write an offline file, in a process of its own: it is whole once that has ended."""
    code = f"""
import wandb
from tests.tracking.test_wandb_file import values_of
settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
run = wandb.init(
    mode="offline", id="r1", dir={str(directory)!r}, config={{"lora": {{"rank": 8}}}}, settings=settings
)
for step in range({num_steps}):
    run.log(values_of(step), step=step)
run.config.update({{"late": [1, 2]}})
run.summary["after.eval/loss"] = 2.5
run.finish()
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    (file,) = directory.rglob("*.wandb")
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of several blocks of 32 KiB."""
    return write_offline_run(tmp_path_factory.mktemp("whole"), NUM_STEPS)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage, in a directory of its own."""
    return Path(shutil.copy(whole, tmp_path / whole.name))


def assert_is_part_of_the_truth(back: WandbHistory) -> None:
    for row in back.history:
        assert row == {"step": row["step"]} | values_of(row["step"])


def test_everything_that_was_logged_comes_back(whole: Path) -> None:
    back = read_wandb_run(whole.parent)
    assert back.problems == []
    assert back.run_id == "r1"
    assert back.config == {"lora": {"rank": 8}, "late": [1, 2]}
    assert back.history == [{"step": step} | values_of(step) for step in range(NUM_STEPS)]
    assert back.summary == values_of(NUM_STEPS - 1) | {"after.eval/loss": 2.5}
    assert has_ended(whole)
    assert whole.stat().st_size > 4 * 32 * 1024  # so records did cross blocks


def test_the_same_chunks_as_wandbs_own_header_says(whole: Path) -> None:
    assert whole.read_bytes()[:7] == b":W&B" + (0xBEE1).to_bytes(2, "little") + b"\0"


def test_a_file_cut_anywhere_gives_what_stands_before_the_cut(tmp_path: Path) -> None:
    num_steps = 20
    file = write_offline_run(tmp_path, num_steps)
    content = file.read_bytes()
    longest = num_steps
    for size in range(len(content) - 1, len(content) - 1025, -1):
        file.write_bytes(content[:size])
        back = read_wandb_run(tmp_path)
        assert back.problems, f"cut at {size} went unseen"
        assert not has_ended(file)
        assert_is_part_of_the_truth(back)
        assert [row["step"] for row in back.history] == list(range(len(back.history)))
        assert num_steps - 3 <= len(back.history) <= longest
        longest = len(back.history)
    assert longest < num_steps  # the last kilobyte does hold history


@pytest.mark.parametrize("size", [0, 3, 7, 10, 100, 32 * 1024 - 3, 32 * 1024, 32 * 1024 + 5])
def test_a_file_cut_early(whole: Path, damaged: Path, size: int) -> None:
    damaged.write_bytes(whole.read_bytes()[:size])
    back = read_wandb_run(damaged.parent)
    assert back.problems
    assert all(damaged.name in problem for problem in back.problems)
    assert_is_part_of_the_truth(back)
    assert len(back.history) < NUM_STEPS / 2


def test_a_flipped_byte_costs_its_block_and_no_more(whole: Path, damaged: Path) -> None:
    content = whole.read_bytes()
    for offset in range(40_000, 44_000, 97):
        flipped = bytearray(content)
        flipped[offset] ^= 0x10
        damaged.write_bytes(flipped)
        back = read_wandb_run(damaged.parent)
        assert any("at byte" in problem for problem in back.problems), offset
        assert_is_part_of_the_truth(back)
        assert NUM_STEPS - 110 < len(back.history) < NUM_STEPS + 1
        assert back.history[-1]["step"] == NUM_STEPS - 1  # what follows the block is read again


def test_a_foreign_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run-x.wandb").write_bytes(b"SQLite format 3\0" * 100)
    (problem,) = read_wandb_run(tmp_path).problems
    assert "run-x.wandb: torn or no .wandb file" in problem


def test_no_file_is_reported(tmp_path: Path) -> None:
    back = read_wandb_run(tmp_path)
    assert (back.run_id, back.history) == (None, [])
    assert back.problems == [f"{tmp_path} has no .wandb file"]


def test_files_of_a_resumed_run_merge_and_the_later_row_stands(tmp_path: Path) -> None:
    def log(id: str, steps: range, loss: float) -> None:
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        run = wandb.init(
            mode="offline", id=id, dir=str(tmp_path), reinit="create_new", settings=settings
        )
        for step in steps:
            run.log({"train/loss": loss}, step=step)
        run.summary["after.eval/loss"] = loss
        run.finish()

    log("r1", range(5), 1.0)
    log("r1", range(3, 8), 2.0)
    wandb.teardown()
    back = read_wandb_run(tmp_path)
    assert back.problems == []
    assert [row["train/loss"] for row in back.history] == [1.0] * 3 + [2.0] * 5
    assert [row["step"] for row in back.history] == list(range(8))
    assert back.summary["after.eval/loss"] == 2.0

    log("r2", range(20), 9.0)
    wandb.teardown()
    back = read_wandb_run(tmp_path)
    assert len(back.history) == 8
    assert [problem for problem in back.problems if "is not of run r1; left out" in problem]


def test_a_run_that_ended_before_its_first_step_has_answers_and_no_row(tmp_path: Path) -> None:
    config = TrackerConfig(name=TrackerName.wandb_offline)
    tracker = open_tracker(config, run_id="r1", directory=tmp_path, config_tree={})
    answer = KeptAnswer(phase="before", step=0, row=0, prompt="p", reference="r", answer="a")
    record = Record(run_id="r1", status=RunStatus.interrupted, config={})
    assert tracker.finish(record, [answer]) == []
    back = read_wandb_run(tmp_path)
    assert back.problems == []
    assert back.history == []
    assert back.summary["status"] == "interrupted"
    assert list(tmp_path.rglob("samples_*.table.json"))


def test_not_finite_values_come_back(tmp_path: Path) -> None:
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    run = wandb.init(mode="offline", id="n", dir=str(tmp_path), settings=settings)
    run.log({"train/loss": math.nan, "train/grad_norm": math.inf}, step=0)
    run.finish()
    wandb.teardown()
    (row,) = read_wandb_run(tmp_path).history
    assert math.isnan(row["train/loss"])
    assert row["train/grad_norm"] == math.inf


def test_importing_the_reader_does_not_import_wandb() -> None:
    code = "import sys, harness.tracking.wandb_file; print({'torch', 'wandb'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.stdout == "set()\n"
