"""`harness run -m`: Hydra's comma lists become a grid that `harness sweep` knows."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import dispatch
from harness.records.record import MeasuredIn, RunStatus, read_records
from tests.random_models import LLAMA, save_random_model


@pytest.fixture
def words(tmp_path, served_workers) -> list[str]:
    """The command line of runs of two steps on a tiny random model."""
    save_random_model(tmp_path / "tiny (1)", "llama", **LLAMA)
    return [
        *("run", "-m", f"model={tmp_path / 'tiny (1)'}", "data.max_length=64"),
        *("optim.steps=2", "optim.batch_size=2", "data.train_rows=8", "data.validation_rows=4"),
        *("data.test_rows=4", "eval=loss", "eval.before=false", "tracker=none"),
        *(f"paths.out={tmp_path / 'out'}", "resources.devices=cpu"),
    ]


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_every_combination_is_trained_once_and_the_file_it_leaves_asks_the_same(
    words, tmp_path, capsys
):
    several = ["lora.rank=1,2", "optim.lr=1e-3,1e-2"]
    assert dispatch([*words, *several]) == 0
    records, problems = read_records(tmp_path / "out")
    assert not problems
    asked = [record for record in records if record.measured_in is not MeasuredIn.probe]
    trained = sorted((r.config["lora"]["rank"], r.config["optim"]["lr"]) for r in asked)
    assert trained == sorted(itertools.product((1, 2), (1e-3, 1e-2)))
    assert {record.status for record in records} == {RunStatus.completed}

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").glob("*/run.json")}
    (file,) = (tmp_path / "out/sweeps").glob("*.yaml")
    assert dispatch([*words, *reversed(several)]) == 0  # the same question in another order
    assert dispatch(["sweep", str(file)]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert list((tmp_path / "out/sweeps").glob("*.yaml")) == [file]
    assert "lora.rank-optim.lr" in file.stem
    capsys.readouterr()
    assert dispatch(["status", file.stem, f"paths.out={tmp_path / 'out'}"]) == 0
    assert "4/4 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["lora.rank=2"], "no key has several values; write lora.rank=2,8"),
        (["lora.rank=2,8", "--cfg", "job"], "-m goes with --dry-run and --json only, got --cfg"),
        (["lora.rnk=2,8"], "near names: lora.rank"),
        (["lora.rank=2,2"], "gives 2 twice"),
        (["lora.rank=0,2"], "lora.rank=0"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(words, tmp_path, capsys, asked, told):
    assert dispatch([*words, *asked]) == 2
    assert told in capsys.readouterr().err
    assert not files_below(tmp_path / "out")


def test_a_dry_run_shows_the_grid_and_leaves_nothing(words, tmp_path, capsys):
    assert dispatch([*words, "lora.rank=1,2", "seed=0,3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "search: grid of 2 cells" in shown
    assert "runs: 4 (seeds 0, 3)" in shown
    assert not files_below(tmp_path / "out")
    assert dispatch(["run", "lora.rank=1", "--dry-run"]) == 2
    assert "`harness plan` says what one needs" in capsys.readouterr().err


def test_a_name_that_another_question_has_is_refused(words, tmp_path, capsys):
    file = tmp_path / "out/sweeps/mine.yaml"
    file.parent.mkdir(parents=True)
    before = "{question: 'Which rank?', space: {lora.rank: 'choice(1, 4)'}, search: {method: grid}}"
    file.write_text(before)
    assert dispatch([*words, "lora.rank=1,2", "name=mine"]) == 2
    assert (
        f"{file} was asked with base nothing more, and now with model=" in capsys.readouterr().err
    )
    assert file.read_text() == before


def test_the_module_takes_what_hydras_applications_take():
    done = subprocess.run(
        [sys.executable, "-m", "harness.run", "--multirun", "lora.rank=2"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "no key has several values" in done.stderr
