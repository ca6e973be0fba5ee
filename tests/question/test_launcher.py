"""`launcher` of a question and its other settings: what a file and a command line say, what is refused."""

import re
from pathlib import Path

import pytest
import yaml

from harness.question.load import load_question
from harness.question.settings import (
    Constraint,
    LauncherKind,
    LauncherSettings,
    Method,
    SearchSettings,
    StudySettings,
    WorkerSettings,
    has_password,
)
from tests.question.asking import ask, refusal

SHARED = "study.storage=postgresql://somebody@database.cluster/studies"


def test_without_a_launcher_the_command_itself_trains(tmp_path):
    assert ask(tmp_path).launcher is None
    assert ask(tmp_path, "launcher=null").launcher is None


def test_the_command_line_gives_every_field_in_any_order(tmp_path):
    question = ask(
        tmp_path,
        *("launcher.workers=16", "launcher.partition=a100,h100", "launcher.time_minutes=240"),
        *("launcher=slurm", "launcher.gpus=4", "launcher.cpus=32", "launcher.memory_gib=1.5e2"),
        *("launcher.account=17", "launcher.qos=high", "launcher.grace_seconds=300", SHARED),
        "launcher.setup=[module load cuda/12, source env.sh]",
    )
    assert question.launcher == LauncherSettings(
        kind=LauncherKind.slurm,
        workers=16,
        time_minutes=240,
        grace_seconds=300,
        gpus=4,
        cpus=32,
        memory_gib=150.0,
        partition="a100,h100",
        account="17",
        qos="high",
        setup=("module load cuda/12", "source env.sh"),
    )


def test_a_file_of_the_question_asks_the_same(tmp_path):
    asked = ask(tmp_path, SHARED, "launcher=slurm", "launcher.setup=[module load cuda]")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(asked.tree()))
    assert load_question(str(again), []) == asked


def test_the_command_line_completes_and_replaces_what_a_file_says(tmp_path):
    parts = {
        "launcher": {"kind": "slurm", "workers": 8},
        "study": {"storage": SHARED.partition("=")[2]},
    }
    more = ask(tmp_path, "launcher.time_minutes=30", **parts).launcher
    assert more == LauncherSettings(kind=LauncherKind.slurm, workers=8, time_minutes=30)
    here = ask(tmp_path, "launcher=local", **parts).launcher
    assert here == LauncherSettings(kind=LauncherKind.local, workers=8)
    assert ask(tmp_path, "launcher=null", **parts).launcher is None
    parts["launcher"] = "slurm"
    short = ask(tmp_path, "launcher.workers=3", **parts).launcher
    assert short == LauncherSettings(kind=LauncherKind.slurm, workers=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["launcher=slrm"], "launcher.kind=slrm is none of slurm, local; near names: slurm"),
        (["launcher=slurm", "launcher.worker=2"], "near names: workers"),
        (["launcher=slurm", "launcher.workers=0"], "must be a whole number of at least 1"),
        (["launcher=slurm", "launcher.memory_gib=-1"], "must be a positive number of GiB"),
        (["launcher=slurm", "launcher.partition=two words"], "must be a name that Slurm knows"),
        (["launcher=slurm", "launcher.setup={a:b}"], "must be a list of lines"),
        (["launcher=slurm", "launcher.time_minutes=2"], "leaves nothing of"),
        (["launcher.workers=4"], "launcher.workers would be ignored without launcher=slurm"),
        (["launcher=local", "launcher.qos=high"], "launcher.qos=high would be ignored"),
        (["launcher=local", "launcher.cpus=2"], "launcher.cpus=2 would be ignored"),
    ],
)
def test_a_launcher_that_cannot_be_meant_is_refused(tmp_path, given, said):
    assert said in refusal(tmp_path, SHARED, *given)


@pytest.mark.parametrize("kind", ["slurm", "local"])
def test_jobs_need_a_study_that_they_can_share(tmp_path, kind):
    for storage in ([], ["study.storage=sqlite:////data/study.db"]):
        said = refusal(tmp_path, f"launcher={kind}", *storage)
        assert f"launcher={kind} has its jobs share one study in PostgreSQL" in said
        assert "study.storage=postgresql://user@host/database" in said


def test_a_password_is_kept_out_of_the_jobs_commands(tmp_path):
    said = refusal(tmp_path, "launcher=slurm", "study.storage=postgresql://me:secret@host/studies")
    assert "secret" not in said
    assert "~/.pgpass or PGPASSWORD" in said


def test_defaults_are_those_that_the_pages_give() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "slurm.md").read_text()
    told = dict(re.findall(r"^\| `launcher\.(\w+)` \|.*\| (\d+) \|$", page, re.MULTILINE))
    own = LauncherSettings(kind=LauncherKind.slurm)
    assert told == {name: str(getattr(own, name)) for name in told}
    assert told.keys() >= {"workers", "time_minutes", "grace_seconds"}
    machines = Path(__file__).parents[2].joinpath("docs", "many_machines.md").read_text()
    assert f"`study.heartbeat_seconds` ({StudySettings().heartbeat_seconds:g})" in machines
    assert WorkerSettings().hang_seconds == 30 * 60
    assert SearchSettings().probe, "costs are measured unless somebody says no"


@pytest.mark.parametrize(
    ("url", "is_shared", "has_one"),
    [
        ("postgresql://me@host/db", True, False),
        ("postgres://me:secret@host/db", True, True),
        ("postgresql+psycopg://host/db?password=secret", True, True),
        ("sqlite:////tmp/study.db", False, False),
        ("mypostgresql://host/db", False, False),
    ],
)
def test_several_machines_share_a_study_in_postgresql(
    url: str, is_shared: bool, has_one: bool
) -> None:
    assert StudySettings(storage=url).is_shared is is_shared
    assert has_password(url) is has_one
    assert not StudySettings().is_shared


@pytest.mark.parametrize(
    ("limits", "value", "violation"),
    [
        ({"at_most": 10.0}, 12.0, 2.0),
        ({"at_most": 10.0}, 7.0, -3.0),
        ({"at_least": 5.0}, 3.0, 2.0),
        ({"at_least": 5.0}, 9.0, -4.0),
        ({"at_least": 5.0, "at_most": 10.0}, 9.0, -1.0),  # nearer to the upper one
        ({"at_least": 5.0, "at_most": 10.0}, 6.0, -1.0),
        ({"at_least": 5.0, "at_most": 10.0}, 4.0, 1.0),
    ],
)
def test_a_limit_is_broken_by_what_is_beyond_it(limits, value: float, violation: float) -> None:
    assert Constraint(metric="eval/loss", **limits).violation(value) == violation


def test_results_steer_every_search_but_a_grid_and_chance() -> None:
    steered = {method.value for method in Method if method.is_adaptive}
    assert steered == {"tpe", "gp", "nsga2", "cmaes"}
