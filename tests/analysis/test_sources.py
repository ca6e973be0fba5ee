"""Rows from run directories, sweeps and what W&B holds; what cannot be used is named and left out."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.frame import Role, Row, value_of
from analysis.render import csv, latex, markdown
from analysis.sources import SweepData, assembled, load_runs, load_sweep, unique_rows
from analysis.tables import Spec, build_table
from analysis.wandb_runs import WandbFiles
from harness.config.schema import TrackerConfig, TrackerName
from harness.errors import RequestError
from harness.records.record import MeasuredIn, Record, RunStatus
from harness.sweeping.state import (
    ConfirmedLine,
    RunLine,
    SweepDirectory,
    SweepState,
    SweepStatus,
    TrialLine,
    write_state,
)
from harness.tracking import open_tracker
from tests.analysis.records_for_tables import Run, rows, seeds

REPOSITORY = Path(__file__).resolve().parents[2]


def write_sweep(out: Path, runs: list[Run]) -> None:
    """Write a sweep's directory: three trials of two axes, the first confirmed."""
    directory = SweepDirectory(out, "s")
    directory.path.mkdir(parents=True)
    points = [{"quant": "nf4", "lora.rank": str(rank)} for rank in (2, 8, 32)]
    trials = [_trial(number, point, runs) for number, point in enumerate(points)]
    confirming = [run for run in runs if run.role == "confirmation"]
    confirmed = ConfirmedLine(
        point=points[0],
        trial=0,
        runs=[run.record().run_id for run in confirming],
        values={"eval/loss": [run.loss for run in confirming if run.loss is not None]},
    )
    state = SweepState(
        name="s",
        question="Which rank?",
        expect="Eight.",
        method="grid",
        objectives={"eval/loss": "minimize"},
        trials_requested=len(trials),
        status=SweepStatus.finished,
        trials=trials,
        runs=[_line(run) for run in runs],
        confirmed=[confirmed],
    )
    write_state(directory, state)
    directory.question.write_text(
        "name: s\nbase: [model=embedded]\nspace: {quant: 'choice(nf4)', lora.rank: 'choice(2,8,32)'}\n"
    )


def _trial(number: int, point: dict[str, str], runs: list[Run]) -> TrialLine:
    own = [run for run in runs if run.trial == number]
    searched = [run for run in own if run.role == "search"]
    losses = [run.loss for run in searched if run.loss is not None]
    probes = [run.record().run_id for run in own if run.role == "probe"]
    return TrialLine(
        number=number,
        point=point,
        status="completed",
        values=losses or None,
        feasible=bool(losses),
        runs=[run.record().run_id for run in searched],
        reason=None,
        probe=probes[0] if probes else None,
    )


def _line(run: Run) -> RunLine:
    record = run.record()
    return RunLine(
        run_id=record.run_id,
        role=str(run.role),
        seed=run.seed,
        status=record.status.value,
        step=0,
        total_steps=None,
        was_there=False,
        error=None,
    )


SWEEP = [
    Run(rank=2, loss=3.0, role="search", trial=0),
    Run(rank=8, loss=2.0, role="search", trial=1),
    Run(rank=32, status=RunStatus.diverged, role="search", trial=2),
    Run(rank=2, seed=10, loss=3.5, role="confirmation", trial=0),
    Run(rank=2, seed=11, loss=3.6, role="confirmation", trial=0),
    Run(rank=2, peak=1.0, role="probe", trial=0, measured_in=MeasuredIn.probe),
]


def test_every_record_is_a_row(tmp_path: Path) -> None:
    for run in seeds(1.0, 2.0):
        run.write(tmp_path)
    found, problems = load_runs(tmp_path)
    assert [row["after.eval/loss"] for row in found] == [1.0, 2.0]
    assert problems == []


def test_torn_and_old_records_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    torn, old, *_ = [run.write(tmp_path) / "run.json" for run in seeds(1.0, 2.0, 3.0)]
    torn.write_text(torn.read_text()[:100])
    old.write_text(old.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    found, problems = load_runs(tmp_path)
    assert [row["seed"] for row in found] == [2]
    assert str(torn) in problems[0] or str(torn) in problems[1]
    assert any("schema_version 0" in problem for problem in problems)


def test_no_records_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"no record under {tmp_path / 'runs'}"):
        load_runs(tmp_path)


def test_two_runs_of_one_id_and_different_results_are_named_and_unused() -> None:
    same = Run(run_id="a", loss=1.0)
    found, problems = unique_rows(
        rows(same, same, Run(run_id="b", loss=1.0), Run(run_id="b", loss=2.0), Run(run_id="c"))
    )
    assert [row["run_id"] for row in found] == ["a", "c"]
    assert problems == [
        "2 records have the run id b and different results (after.eval/loss): none of them is used"
    ]


def test_the_rows_of_a_sweep_know_their_place(tmp_path: Path) -> None:
    for run in SWEEP:
        run.write(tmp_path)
    Run(rank=64, loss=0.0).write(tmp_path)  # no run of the sweep
    write_sweep(tmp_path, SWEEP)
    sweep = load_sweep(tmp_path, "s")
    assert (sweep.question, sweep.expect, sweep.axes) == (
        "Which rank?",
        "Eight.",
        ("quant", "lora.rank"),
    )
    assert len(sweep.rows) == len(SWEEP)
    places = {(row["role"], row["trial"], row["point"].get("lora.rank")) for row in sweep.rows}
    assert places == {
        *(("search", trial, rank) for trial, rank in enumerate(("2", "8", "32"))),
        ("confirmation", 0, "2"),
        ("probe", 0, "2"),
    }
    assert {row["seed"] for row in sweep.rows_of(Role.confirmation)} == {10, 11}


def test_a_run_of_a_sweep_without_its_record_is_named(tmp_path: Path) -> None:
    for run in SWEEP[1:]:
        run.write(tmp_path)
    write_sweep(tmp_path, SWEEP)
    assert load_sweep(tmp_path, "s").problems == [f"run {SWEEP[0].record().run_id} has no record"]


def test_a_sweep_that_is_not_there_says_which_are(tmp_path: Path) -> None:
    write_sweep(tmp_path, [])
    with pytest.raises(RequestError, match=r"no sweep has run at .*sweeps/t; there are: s"):
        load_sweep(tmp_path, "t")
    state = tmp_path / "sweeps" / "s" / "state.json"
    state.write_text('{"version": 7}')
    with pytest.raises(RequestError, match="it has version 7, and this harness reads 1"):
        load_sweep(tmp_path, "s")
    state.write_text("{")
    with pytest.raises(RequestError, match=r"state\.json cannot be used: Expecting .* line 1"):
        load_sweep(tmp_path, "s")


def mirrored(run: Run, directory: Path) -> None:
    """Let wandb itself write what the run logs."""
    record = run.record()
    directory.mkdir(parents=True, exist_ok=True)
    tracker = open_tracker(
        TrackerConfig(name=TrackerName.wandb_offline),
        run_id=record.run_id,
        directory=directory,
        config_tree=record.config,
    )
    tracker.log(1, {"train/loss": 5.0, "eval/loss": 4.0})
    assert tracker.finish(record, []) == []


def test_tables_from_records_and_from_wandb_files_are_byte_identical(tmp_path: Path) -> None:
    runs = [
        *seeds(1.0, 1.25, adapter=2048),
        *seeds(0.5, 1.5, format="int4", adapter=2048),
        Run(format="fp4", loss=1.0, peak=2.0**20, step_ms=3.5, measured_in=MeasuredIn.solo),
        Run(format="none", status=RunStatus.diverged, loss=float("inf")),
    ]
    for run in runs:
        mirrored(run, run.write(tmp_path))
    spec = Spec(
        name="t",
        title="The same",
        rows=("quant.format", "lora.rank"),
        columns=("eval/loss", "memory/peak_bytes", "memory/adapter_bytes", "throughput/step_ms"),
        against={"quant.format": "nf4"},
    )
    of_records, problems = load_runs(tmp_path)
    of_wandb, others = WandbFiles(tmp_path).runs()
    assert problems == others == []
    one, other = build_table(spec, of_records), build_table(spec, of_wandb)
    for render in (markdown, latex, csv):
        assert render(one) == render(other)
    assert one.sources() == other.sources()


def test_no_wandb_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=str(tmp_path)):
        WandbFiles(tmp_path).runs()


def test_derived_keys() -> None:
    (row,) = rows(Run(rank=4))
    assert [value_of(row, key) for key in ("quant", "alpha", "alpha/rank")] == ["nf4", 8.0, 2.0]
    row |= {"quant.double_quant": True, "lora.alpha": 6.0, "lora.alpha_over_rank": None}
    assert [value_of(row, key) for key in ("quant", "alpha", "alpha/rank")] == ["nf4_dq", 6.0, 1.5]
    row["point"] = {"targets": "qv", "width": "1e-3", "on": "true"}
    assert [value_of(row, key) for key in ("targets", "width", "on", "off")] == [
        "qv",
        1e-3,
        True,
        None,
    ]


def test_analysis_is_imported_without_anything_heavy() -> None:
    code = (
        "import sys;"
        "import analysis, analysis.tables, analysis.sources, analysis.specs, analysis.render;"
        "import analysis.statistics, analysis.published, analysis.wandb_runs;"
        "heavy = {'torch', 'transformers', 'wandb', 'pandas', 'scipy', 'optuna', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_record_without_provenance_is_a_row() -> None:
    from analysis.frame import flat_row

    row = flat_row(Record(run_id="a", status=RunStatus.completed, config={"seed": 0}))
    assert (row["role"], row["trial"], row["point"]) == (None, None, {})


# A sweep of its state ------------------------------------------------------------------------------


def state_of(**more: Any) -> dict[str, Any]:
    """A state with two trials that share a run, a probe, a confirmation and a clone."""
    trials = [
        {"number": 0, "point": {"b": "1", "a": "x"}, "runs": ["s0", "both"], "probe": "p"},
        {"number": 1, "point": {"a": "y", "c": "2"}, "runs": ["both", "s1"], "probe": None},
    ]
    lines = [
        {"run_id": "s0", "role": "probe", "status": "completed"},  # the trials say what it is
        {"run_id": "clone", "role": "clone", "status": "training"},
        {"run_id": "s1", "role": "search", "status": "completed"},
    ]
    confirmed = [
        {"trial": 1, "point": {"a": "z"}, "runs": ["c1"]},
        {"trial": 7, "point": {"a": "w"}, "runs": ["c7"]},
    ]
    given = {"name": "s", "question": "Q?", "expect": "E.", "method": "tpe"}
    given |= {"objectives": {"eval/loss": "minimize"}}
    return given | {"trials": trials, "runs": lines, "confirmed": confirmed} | more


def made(
    state: dict[str, Any], asked: dict[str, Any], lost: Sequence[str] = (), **more: Any
) -> SweepData:
    def read(run_ids: Sequence[str]) -> tuple[list[Row], list[str]]:
        found = rows(*(Run(run_id=each, loss=1.0) for each in run_ids if each not in lost))
        return found, []

    return assembled(state, asked, Path("out/sweeps/s"), read, **more)


def test_runs_have_the_place_that_their_sweep_s_trials_give_them() -> None:
    sweep = made(state_of(), {})
    places = {
        row["run_id"]: (row["role"], row["trial"], row["point"].get("a")) for row in sweep.rows
    }
    assert places == {
        "s0": ("search", 0, "x"),
        "both": ("search", 0, "x"),  # the first of its trials
        "p": ("probe", 0, "x"),
        "s1": ("search", 1, "y"),
        "c1": ("confirmation", 1, "y"),
        "c7": ("confirmation", 7, "w"),  # of a trial that this state does not list
        "clone": ("clone", None, None),
    }
    assert [row["run_id"] for row in sweep.rows_of("clone")] == ["clone"]
    confirmed = made(state_of(), {}, only_confirmed=True)
    assert [row["run_id"] for row in confirmed.rows] == ["c1", "c7"]


def test_what_a_probe_measured_is_the_cost_of_runs_like_it_whose_records_are_older() -> None:
    of_probe = {"measured_in": MeasuredIn.probe, "throughput/step_ms": 40.0}
    changes: dict[str, Row] = {
        "p": of_probe,
        "both": {"status": RunStatus.interrupted},  # takes it when it ends
        "c1": {"lora.rank": 64},  # costs something else
        "c7": {"alone.throughput/step_ms": 39.0},  # has its own
        "s1": {"optim.lr": 3e-3},  # costs the same
    }

    def read(run_ids: Sequence[str]) -> tuple[list[Row], list[str]]:
        found = rows(*(Run(run_id=each, loss=1.0) for each in run_ids))
        return [row | changes.get(row["run_id"], {}) for row in found], []

    sweep = assembled(state_of(), {}, Path(), read)
    costs = {row["run_id"]: row.get("alone.throughput/step_ms") for row in sweep.rows}
    known = {"s0": 40.0, "s1": 40.0, "clone": 40.0, "c7": 39.0}
    assert costs == dict.fromkeys(costs) | known


@pytest.mark.parametrize(("of", "trial"), [("s", 1), ("other", None)])
def test_a_clone_has_the_trial_that_its_own_record_names(of: str, trial: int | None) -> None:
    def read(run_ids: Sequence[str]) -> tuple[list[Row], list[str]]:
        found = rows(Run(run_id="clone", role="clone", trial=1))
        return [found[0] | {"provenance.sweep": of}], []

    (row,) = assembled(state_of(), {}, Path(), read).rows
    assert row["trial"] == trial


def test_a_run_without_a_record_is_named_where_it_has_begun() -> None:
    lost = ("s0", "s1", "clone", "c7")
    assert made(state_of(), {}, lost).problems == [
        *("run s0 has no record", "run s1 has no record")
    ]


@pytest.mark.parametrize(
    ("space", "axes"),
    [
        ({"c": "", "a": "", "unused": ""}, ("c", "a", "b")),  # as asked, then what points have
        ({}, ("b", "a", "c")),
    ],
)
def test_axes_are_in_the_order_of_the_question(
    space: dict[str, str], axes: tuple[str, ...]
) -> None:
    assert made(state_of(), {"space": space}).axes == axes
    begun = made(state_of(trials=[], confirmed=[]), {"space": space})
    assert begun.axes == tuple(space), "no trial has a point yet"


def test_a_study_is_where_it_was_asked_for_or_in_the_sweep_s_directory() -> None:
    asked = {"study": {"storage": "postgresql://there"}}
    assert made(state_of(), asked).storage_url == "postgresql://there"
    assert made(state_of(), {}).storage_url == SweepDirectory(Path("out"), "s").storage
    assert made(state_of(), {"study": {}, "base": ["a=1"]}).storage_url.endswith("study.db")
    assert made(state_of(), {"base": ["a=1"]}).base == ("a=1",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("- a list", "it has no question"),
        ("space: [1]", "it has no question"),
        ("base: {a: 1}", "it has no question"),
        ("study: 3", "it has no question"),
        ("{", "line 2"),
    ],
)
def test_a_question_that_cannot_be_read_is_named_and_the_rest_is_reported(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    write_sweep(tmp_path, SWEEP)
    for run in SWEEP:
        run.write(tmp_path)
    question = SweepDirectory(tmp_path, "s").question
    if text is None:
        question.unlink()
    else:
        question.write_text(text)
    sweep = load_sweep(tmp_path, "s")
    (problem,) = sweep.problems
    assert problem.startswith(f"{question} cannot be used (")
    assert reason in problem
    assert sweep.asked == {}
    assert len(sweep.rows) == len(SWEEP)
    assert sweep.axes == ("quant", "lora.rank"), "as the trials have them"


def test_a_record_whose_configuration_is_no_tree_is_named(tmp_path: Path) -> None:
    one, other = (run.write(tmp_path) / "run.json" for run in seeds(1.0, 2.0))
    tree = json.loads(one.read_text())
    tree["provenance"]["gpus"] = [3]
    one.write_text(json.dumps(tree))
    found, problems = load_runs(tmp_path)
    assert [row["seed"] for row in found] == [1]
    assert len(problems) == 1
    assert problems[0].startswith(f"{one} is damaged (TypeError: ")
    assert problems[0].endswith("; left out")
    assert other.exists()


def test_the_first_four_keys_that_differ_are_named_and_not_where_a_run_was_made() -> None:
    one, other = rows(Run(run_id="a", loss=1.0), Run(run_id="a", loss=1.0))
    other |= {"wall_seconds": 5.0, "provenance.host": "b", "trial": 3, "error": "e", "notes": ["n"]}
    assert unique_rows([one, other]) == ([one], [])
    other |= {f"data.{name}": 1 for name in "edcba"}
    (problem,) = unique_rows([one, other])[1]
    assert "different results (data.a, data.b, data.c, data.d): none of them is used" in problem
