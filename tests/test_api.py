"""The Python API: light to import, the runs and sweeps of the command line, and their records as a frame."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.records.record import RunStatus, read_record
from tests.commands.forked import Command

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["tracker=none", "optim.steps=6", "eval=loss", "data.train_rows=200"]


def test_importing_the_package_loads_nothing_and_offers_every_name():
    code = (
        "import sys; import harness; names = dir(harness); "
        "heavy = {'torch', 'pandas', 'numpy', 'hydra', 'yaml', 'rich', 'harness.api'} & set(sys.modules); "
        "import json; print(json.dumps([sorted(heavy), [n for n in harness.__all__ if n not in names]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]
    assert set(harness.__all__) == set(harness.api.__all__)
    with pytest.raises(AttributeError, match="swep"):
        harness.swep  # noqa: B018


def test_a_module_never_takes_the_place_of_the_function_run():
    with pytest.raises(ImportError, match="is a function"):
        __import__("harness.run")
    assert callable(harness.run)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Where the runs of this module lie."""
    return tmp_path_factory.mktemp("api") / "out"


@pytest.fixture(scope="module")
def record(out: Path) -> harness.Record:
    """A run asked for by overrides."""
    return harness.run([*SHORT, "quant=int4", "lora.rank=4", f"paths.out={out}"])


def test_a_run_returns_the_record_that_it_leaves(record, out):
    assert record.status is RunStatus.completed
    assert record == read_record(out / "runs" / record.run_id / "run.json")


def test_a_configuration_that_is_changed_in_python_is_the_run_of_the_same_overrides(record, out):
    config = harness.compose([*SHORT, "quant=int4", f"paths.out={out}"])
    config.lora.rank = 4
    before = record.started_at
    again = harness.run(config)
    assert (again.run_id, again.started_at) == (record.run_id, before)  # answered, not trained


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: harness.run("lora.rank=4"), "lora.rank=4"),  # type: ignore[arg-type]
        (lambda: harness.run(["lora.rnk=4"]), "lora.rank"),
        (lambda: harness.sweep("rnk"), "rank"),
        (lambda: harness.sweep({"question": "?"}), "needs a name"),
        (lambda: harness.sweep({"name": "n", "spaces": {}}), "'spaces'"),
        (lambda: harness.load_runs("/nowhere/at/all"), "/nowhere/at/all"),
    ],
    ids=["text", "key", "name", "unnamed", "part", "place"],
)
def test_what_is_wrong_is_refused_in_the_words_of_the_command_line(call, words):
    with pytest.raises(harness.RequestError, match=words):
        call()


def test_ctrl_c_is_raised_so_that_a_loop_of_runs_ends(tmp_path):
    """The first Ctrl-C keeps a checkpoint and ends the run politely: a loop must not begin the next one."""
    script = tmp_path / "loop.py"
    script.write_text(
        "import os, signal, threading, time, harness\n"
        "from pathlib import Path\n"
        "def ask():\n"
        "    while not list(Path('out').glob('runs/*/metrics.jsonl')): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "long = ['tracker=none', 'eval=loss', 'eval.before=false', 'optim.steps=2000']\n"
        "for seed in (0, 1):\n"
        "    harness.run([*long, f'seed={seed}'])\n"
    )
    done = Command([], tmp_path, script=script).end()
    assert done.code == 1
    assert "KeyboardInterrupt" in done.err
    (only,) = (tmp_path / "out" / "runs").iterdir()
    assert read_record(only / "run.json").status is RunStatus.interrupted


@pytest.fixture(scope="module")
def result(out: Path, served_workers) -> harness.SweepResult:
    """A sweep asked from Python: a list as an axis, cases, a confirmation."""
    question = {
        "name": "from_python",
        "question": "Does the rank matter?",
        "base": [*SHORT, f"paths.out={out}"],
        "space": {
            "lora.rank": [2, 4],
            "targets": {"cases": {"qv": ["lora=qv"], "all": ["lora=all_linear"]}},
        },
        "search": {"method": "grid", "probe": False},
        "objective": "eval/loss",
        "confirm": {"top": 1, "seeds": [5, 6], "split": "test"},
    }
    return harness.sweep(question, ["resources.devices=cpu"])


def test_a_sweep_returns_its_trials_and_its_confirmation_as_frames(result, out):
    trials = result.trials()
    assert sorted(zip(trials["lora.rank"], trials["targets"], strict=True)) == [
        (2, "all"),
        (2, "qv"),
        (4, "all"),
        (4, "qv"),
    ]
    assert set(trials["status"]) == {"completed"}
    (best,) = result.confirmation().to_dict("records")
    runs = result.runs()
    confirmed = runs[runs["role"] == "confirmation"]
    assert sorted(confirmed["seed"]) == [5, 6]
    assert best["eval/loss"] == pytest.approx(confirmed["after.eval/loss"].mean())
    assert best["eval/loss.n"] == 2
    half = (
        12.706 * confirmed["after.eval/loss"].std() / 2**0.5
    )  # Student's t, one degree of freedom
    assert best["eval/loss.high"] - best["eval/loss"] == pytest.approx(half, rel=1e-3)


def test_the_frame_of_all_runs_has_what_their_records_say(result, record, out):
    runs = harness.load_runs(out).set_index("run_id")
    assert len(runs) == len(result.runs()) + 1
    row = runs.loc[record.run_id]
    assert row["after.eval/loss"] == record.evals["after"]["eval/loss"].value
    assert row["memory/peak_bytes"] == record.metrics["memory/peak_bytes"]
    assert (row["quant"], row["lora.rank"], row["status"]) == ("int4", 4, "completed")


def test_a_record_that_cannot_be_read_is_named(record, out, tmp_path):
    for name in ("torn", record.run_id):
        (tmp_path / "runs" / name).mkdir(parents=True)
    text = (out / "runs" / record.run_id / "run.json").read_text()
    (tmp_path / "runs" / record.run_id / "run.json").write_text(text)
    (tmp_path / "runs" / "torn" / "run.json").write_text(text[:100])
    with pytest.warns(UserWarning, match="torn"):
        assert list(harness.load_runs(tmp_path)["run_id"]) == [record.run_id]


def test_the_command_line_goes_on_with_a_sweep_from_python(result, out):
    command = Command(["status", "from_python", f"paths.out={out}"], out.parent / "status")
    done = command.end()
    assert done.code == 0, done.err
    assert "4/4 trials" in done.out
