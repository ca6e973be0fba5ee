"""A study keeps what it was asked and told, whatever happens; compared with Optuna on real SQLite files."""

import json
import math
import multiprocessing
import os
import random
import sqlite3
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from harness.errors import RequestError
from harness.question.axes import CaseAxis, ChoiceAxis, Condition, NumberAxis
from harness.question.points import Space
from harness.question.question import Question
from harness.question.settings import (
    Constraint,
    Method,
    Objective,
    PrunerName,
    SearchSettings,
    StudySettings,
    Transfer,
    WorkerSettings,
)
from harness.records.metrics import Direction
from harness.records.run_directory import sqlite_url
from harness.study.database import damage_of, open_database, question_in
from harness.study.study import Study, Trial, TrialStatus, front_of_each, ranked

QUANTIZED = Condition(key="quant", values=frozenset({"nf4", "int4"}))
AXES = (
    ChoiceAxis(key="quant", values=("none", "nf4", "int4")),
    ChoiceAxis(key="quant.double_quant", values=("true", "false"), condition=QUANTIZED),
    ChoiceAxis(key="lora.rank", values=("2", "8", "32")),
    NumberAxis(key="optim.lr", low=1e-4, high=3e-2, step=None, log=True, integer=False),
    NumberAxis(key="lora.dropout", low=0.0, high=0.3, step=0.1, log=False, integer=False),
    NumberAxis(key="optim.warmup_steps", low=0, high=20, step=None, log=False, integer=True),
    NumberAxis(
        key="quant.block_size",
        low=32,
        high=256,
        step=None,
        log=True,
        integer=True,
        condition=QUANTIZED,
    ),
    CaseAxis(key="scale", cases={"fixed": ("lora.alpha=16",), "ratio": ("lora.alpha=32",)}),
)
LOSS = Objective(metric="eval/loss", direction=Direction.minimize)
EXACT = Objective(metric="eval/exact_match", direction=Direction.maximize)
MEMORY = Constraint(metric="memory/peak_bytes", at_most=1e9, at_least=None)


def asked(
    method: Method = Method.tpe,
    *,
    axes=AXES,
    objectives=(LOSS,),
    constraints=(),
    pruner: PrunerName = PrunerName.none,
    starts=(),
    name: str = "small",
    transfer: Transfer = Transfer.none,
) -> Question:
    return Question(
        name=name,
        question="Does it search?",
        expect="Yes.",
        base=("model=embedded",),
        space=Space(axes=axes),
        search=SearchSettings(
            method=method,
            trials=40,
            pruner=pruner,
            seeds=(0,),
            sampler_seed=7,
            reduction_factor=3,
            starts=starts,
            transfer=transfer,
        ),
        objectives=objectives,
        constraints=constraints,
        confirm=None,
        resources=WorkerSettings(),
        study=StudySettings(),
    )


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def opened(
    question: Question, url: str, *, every: int | None = 10, total: int | None = 90
) -> Study:
    return Study.open(question, url, eval_every_steps=every, total_steps=total)


def loss_of(trial: Trial) -> float:
    point = trial.point
    return abs(math.log10(float(point["optim.lr"])) + 2.5) + 1 / int(point["lora.rank"])


def outcome_of(trial: Trial, objectives: int) -> list[float]:
    """Return what a trial is told: some diverge."""
    if trial.number % 4 == 1:
        return [math.inf, -math.inf][:objectives]
    return [loss_of(trial), float(trial.point["lora.dropout"])][:objectives]


def in_optuna(url: str, name: str = "small") -> list[optuna.trial.FrozenTrial]:
    """Return the trials as any other program sees them."""
    return optuna.load_study(study_name=name, storage=optuna.storages.RDBStorage(url)).trials


def search(question: Question, url: str, count: int, reopen_every: int = 1000) -> list[Trial]:
    """Ask `count` times, telling each outcome while the next trial is already running."""
    study = opened(question, url)
    running: list[Trial] = []
    for number in range(count):
        running.append(study.ask())
        if len(running) > 1:
            trial = running.pop(0)
            values = outcome_of(trial, len(question.objectives))
            study.complete(trial.number, values, [values[0] - 1] * len(question.constraints))
        if number % reopen_every == reopen_every - 1:
            study.close()
            study = opened(question, url)
    study.close()
    return study.trials


SEARCHES = [
    (Method.random, (LOSS,), 30),
    (Method.tpe, (LOSS,), 30),
    (Method.tpe, (LOSS, EXACT), 30),
    (Method.nsga2, (LOSS, EXACT), 45),
    (Method.cmaes, (LOSS,), 30),
    (Method.gp, (LOSS,), 12),
]


@pytest.mark.parametrize(("method", "objectives", "count"), SEARCHES)
def test_every_method_searches_a_mixed_conditional_space_in_silence_resumed_or_not(
    method, objectives, count, url, tmp_path, capfd
):
    """With diverged runs, too. Resumed again and again it draws what an undisturbed study draws."""
    question = asked(method, objectives=objectives, constraints=(MEMORY,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trials = search(question, url, count)
    assert capfd.readouterr() == ("", "")
    assert [trial.number for trial in trials] == list(range(count))
    for trial in trials:
        is_quantized = trial.point["quant"] in QUANTIZED.values
        conditional = {"quant.double_quant", "quant.block_size"}
        assert set(trial.point) == {axis.key for axis in AXES} - (
            set() if is_quantized else conditional
        )
        assert trial.point["quant"] in ("none", "nf4", "int4")
        assert trial.point["lora.dropout"] in ("0.0", "0.1", "0.2", "0.3")
        assert 1e-4 <= float(trial.point["optim.lr"]) <= 3e-2
        assert 0 <= int(trial.point["optim.warmup_steps"]) <= 20
    different = {tuple(trial.point.items()) for trial in trials}
    assert len(different) > 0.9 * count  # a child of nsga2 may equal its parent
    resumed = search(question, f"sqlite:///{tmp_path / 'resumed.db'}", count, reopen_every=4)
    assert resumed == trials


def test_the_parameters_in_the_database_are_the_point(url):
    trials = search(asked(Method.tpe), url, 20)
    for trial, stored in zip(trials, in_optuna(url), strict=True):
        assert list(stored.params) == list(trial.point)
        for key, value in stored.params.items():
            read = json.loads(trial.point[key]) if not isinstance(value, str) else trial.point[key]
            assert type(read) is type(value)
            assert read == value


def test_a_number_has_four_digits_and_those_that_a_narrow_interval_needs(url):
    def number(key: str, low: float, high: float) -> NumberAxis:
        return NumberAxis(key=key, low=low, high=high, step=None, log=False, integer=False)

    axes = (number("optim.lr", 0.0, 1.0), number("optim.beta2", 0.9990, 0.9999))
    study = opened(asked(Method.random, axes=axes), url)
    for _ in range(50):
        point = study.ask().point
        assert len(point["optim.lr"].replace("0.", "", 1).lstrip("0").split("e")[0]) <= 4
        assert len(point["optim.beta2"]) <= len("0.9991234")
        assert 0.9990 <= float(point["optim.beta2"]) <= 0.9999
    assert len({trial.point["optim.beta2"] for trial in study.trials}) > 40


def test_choices_keep_their_spelling_and_reach_optuna_as_what_they_say(url):
    values = ("8", "1e-3", "0.10", "true", "[q_proj,v_proj]", "null", "007")
    axes = (
        ChoiceAxis(key="mixed", values=values),
        ChoiceAxis(key="alike", values=("1", "1.0", "true")),
    )
    question = asked(Method.grid, axes=axes)
    study = opened(question, url)
    points = list(question.space.points())
    assert [study.ask().point for _ in points] == points
    assert [trial.params["mixed"] for trial in in_optuna(url)[::3]] == [
        *(8, 0.001, 0.1, True, "[q_proj,v_proj]", "null", 7),
    ]
    assert {trial.params["alike"] for trial in in_optuna(url)} == {"1", "1.0", "true"}
    study.close()
    assert [trial.point for trial in opened(question, url).trials] == points


def test_a_grid_is_asked_point_by_point_and_then_ends(url):
    axes = (
        ChoiceAxis(key="quant", values=("none", "nf4")),
        ChoiceAxis(
            key="quant.double_quant",
            values=("true", "false"),
            condition=Condition(key="quant", values=frozenset({"nf4"})),
        ),
        NumberAxis(key="lora.dropout", low=0.0, high=0.3, step=0.1, log=False, integer=False),
    )
    question = asked(Method.grid, axes=axes)
    points = list(question.space.points())
    study = opened(question, url)
    for _ in range(5):
        study.ask()
    study.close()
    study = opened(question, url)  # the driver was killed between creating and asking
    while len(study.trials) < len(points):
        study.ask()
    assert [trial.point for trial in study.trials] == points
    assert len({tuple(trial.point.items()) for trial in study.trials}) == 3 * 4
    with pytest.raises(ValueError, match="all 12 points"):
        study.ask()


def test_known_points_come_first_as_they_were_written(url):
    full = {
        "quant": "none",
        "lora.rank": "8",
        "optim.lr": "1e-3",
        "lora.dropout": "0.1",
        "optim.warmup_steps": "5",
        "scale": "fixed",
    }
    part = {"quant": "nf4", "quant.double_quant": "true", "optim.lr": "0.00123456"}
    question = asked(Method.tpe, starts=(full, part))
    study = opened(question, url)
    study.ask()
    study.close()
    study = opened(question, url)
    study.ask()
    study.ask()
    first, second, _third = study.trials
    assert first.point == full
    assert second.point | part == second.point
    assert set(second.point) == {axis.key for axis in AXES}
    assert in_optuna(url)[1].params["optim.lr"] == 0.00123456


@pytest.mark.parametrize("method", [Method.tpe, Method.nsga2, Method.cmaes])
def test_many_half_known_points_leave_every_method_able_to_search(method, url):
    starts = tuple({"quant": "nf4", "optim.lr": f"{number}e-3"} for number in range(1, 9))
    trials = search(asked(method, starts=starts), url, 30, reopen_every=4)
    assert [trial.point["optim.lr"] for trial in trials[:8]] == [
        start["optim.lr"] for start in starts
    ]
    drawn = trials[-10:]
    assert len({trial.point["optim.lr"] for trial in drawn}) > 5
    if method is Method.cmaes:  # none of them was drawn without it
        assert all("cma:generation" in each.system_attrs for each in in_optuna(url)[8:])


def test_what_was_asked_reported_noted_and_told_is_there_after_reopening(url):
    question = asked(Method.random, constraints=(MEMORY,))
    study = opened(question, url)
    for _ in range(5):
        study.ask()
    study.note(0, "runs", ["a", "b"])
    study.report(0, 10, 0.5)
    study.report(0, 20, math.nan)
    study.complete(1, [0.25], [-1.0])
    study.prune(2)
    study.fail(3, "the worker died")
    before = study.trials
    again = opened(question, url)  # the first one was killed: it never closed
    assert str(again.trials) == str(before)  # text, since NaN is not equal to itself
    assert [trial.status.value for trial in again.trials] == [
        *("running", "completed", "pruned", "failed", "running"),
    ]
    assert again.trials[0].notes == {"runs": ["a", "b"]}
    assert again.trials[1].values == (0.25,)
    assert again.trials[1].violations == (-1.0,)
    assert again.trials[3].notes == {"reason": "the worker died"}
    assert again.ask().number == 5


def test_telling_twice_is_the_same_and_telling_otherwise_is_refused(url):
    study = opened(asked(Method.random), url)
    for _ in range(3):
        study.ask()
    for _ in range(2):
        study.complete(0, [math.inf], [])
        study.prune(1)
        study.fail(2, "broken")
    with pytest.raises(ValueError, match="trial 0 was told before: completed"):
        study.complete(0, [0.5], [])
    with pytest.raises(ValueError, match="trial 1 was told before: pruned"):
        study.fail(1, "broken")
    study.ask()
    with pytest.raises(ValueError, match="NaN"):
        study.complete(3, [math.nan], [])
    with pytest.raises(ValueError, match="1 values and 0 violations"):
        study.complete(3, [0.5, 0.5], [])
    assert study.trials[3].status is TrialStatus.running


def test_the_best_trial_is_optunas_best_and_keeps_the_constraints(url):
    study = opened(asked(Method.random, constraints=(MEMORY,)), url)
    told = [(0.3, -5e8), (0.1, 2e8), (0.2, -1e8), (math.inf, math.inf), (0.4, 0.0)]
    for value, violation in told:
        study.complete(study.ask().number, [value], [violation])
    assert [trial.number for trial in study.best(10)] == [2, 0, 4]
    assert [trial.number for trial in study.best(1)] == [2]
    seen = optuna.load_study(study_name="small", storage=optuna.storages.RDBStorage(url))
    assert seen.best_trial.number == 2
    assert seen.trials[0].constraints == {"memory/peak_bytes": -5e8}
    assert seen.trials[3].constraints == {"memory/peak_bytes": 5e8}  # JSON knows no infinity
    assert study.trials[3].violations == (5e8,)


def test_a_constraint_is_kept_or_not_however_little_is_missing(url):
    study = opened(asked(Method.random, constraints=(MEMORY,)), url)
    for violation in (0.0, 1e-9, 0.5, 1.0, -1e-9):
        study.complete(study.ask().number, [0.1], [violation])
    assert [trial.number for trial in study.best(10)] == [0, 4]


def test_damage_of_a_database_is_found_page_by_page(url, tmp_path):
    path = tmp_path / "study.db"
    assert damage_of(path) is None, "where there is none"
    study = opened(asked(Method.random), url)
    for _ in range(20):
        study.ask()
    study.close()
    assert damage_of(path) is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    path.write_bytes(content)
    assert damage_of(path)
    path.write_bytes(b"")
    assert damage_of(path) is None, "an empty file is a new one"


def test_with_two_objectives_optunas_pareto_front_comes_first(url):
    study = opened(asked(Method.random, objectives=(LOSS, EXACT)), url)
    draw = random.Random(0)
    for _ in range(60):
        study.complete(study.ask().number, [draw.random(), draw.random()], [])
    seen = optuna.load_study(study_name="small", storage=optuna.storages.RDBStorage(url))
    front = {trial.number for trial in seen.best_trials}
    best = study.best(60)
    assert len(best) == 60
    assert {trial.number for trial in best[: len(front)]} == front
    assert best[0].values == min(trial.values or () for trial in study.trials)
    left = [trial.values for trial in best[len(front) :] if trial.values is not None]
    second = [v for v in left if not any(o[0] < v[0] and o[1] > v[1] for o in left)]
    assert left[: len(second)] == sorted(second)


PRUNERS = {
    PrunerName.asha: optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=3),
    PrunerName.hyperband: optuna.pruners.HyperbandPruner(
        min_resource=10, max_resource=90, reduction_factor=3
    ),
    PrunerName.median: optuna.pruners.MedianPruner(n_startup_trials=5, interval_steps=10),
}


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_pruner_gives_up_the_trials_that_optunas_loop_gives_up(pruner, url):
    def curve(number: int, step: int) -> float:
        return random.Random(number).random() + 1 / step

    def objective(trial: optuna.Trial) -> float:
        for step in range(10, 90, 10):
            trial.report(curve(trial.number, step), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return curve(trial.number, 90)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    theirs = optuna.create_study(study_name="small", pruner=PRUNERS[pruner])
    theirs.optimize(objective, n_trials=40)

    question = asked(Method.random, pruner=pruner)
    study = opened(question, url)
    for number in range(40):
        study.ask()
        for step in range(10, 90, 10):
            if study.report(number, step, curve(number, step)):
                study.prune(number)
                break
        else:
            study.complete(number, [curve(number, 90)], [])
        if number % 7 == 0:  # nothing that a pruner has to know is lost
            study.close()
            study = opened(question, url)
    assert [trial.status is TrialStatus.pruned for trial in study.trials] == [
        trial.state is TrialState.PRUNED for trial in theirs.trials
    ]
    assert 5 < sum(trial.status is TrialStatus.pruned for trial in study.trials) < 40


def test_a_report_that_comes_again_gets_the_answer_of_the_first_time(url):
    question = asked(Method.random, pruner=PrunerName.asha)
    study = opened(question, url)
    for number, value in enumerate([0.1, 0.9]):
        study.ask()
        assert study.report(number, 10, value) is (number == 1)
    study.close()
    study = opened(question, url)
    assert study.report(0, 10, 0.1) is False
    assert study.report(1, 10, 0.9) is True
    assert study.trials[1].reports == {10: 0.9}


def test_a_trial_that_has_trained_to_its_end_is_not_pruned(url):
    study = opened(asked(Method.random, pruner=PrunerName.asha), url)
    for number, value in enumerate([0.1, 0.9]):
        study.ask()
        assert study.report(number, 90, value) is False


def test_what_searched_is_written_down(url):
    study = opened(asked(Method.tpe, pruner=PrunerName.asha), url)
    (searched,) = study.optuna_study.user_attrs["searched_with"]
    assert searched["optuna"] == optuna.__version__
    assert searched["sampler"]["n_startup_trials"] == 10
    assert searched["sampler"]["group"] is True
    assert searched["pruner"]["min_resource"] == 10
    study.close()
    study = opened(asked(Method.tpe, pruner=PrunerName.asha), url, every=20)
    assert [
        each["pruner"]["min_resource"] for each in study.optuna_study.user_attrs["searched_with"]
    ] == [
        *(10, 20),
    ]


def test_a_reader_sees_everything_and_stops_nobody(url, tmp_path):
    study = opened(asked(Method.random), url)
    study.ask()
    reader = sqlite3.connect(tmp_path / "study.db")
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM trials").fetchone() == (1,)
    study.ask()
    study.complete(0, [0.5], [])
    reader.rollback()
    assert reader.execute("SELECT count(*) FROM trials").fetchone() == (2,)
    reader.close()
    study.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db"]


def test_another_writer_is_noticed(url):
    study = opened(asked(Method.random), url)
    study.ask()
    optuna.load_study(study_name="small", storage=url).ask()
    with pytest.raises(Exception, match="another process has written a trial 1"):
        study.ask()
    with pytest.raises(RequestError, match=r"trial 1 .* by another program"):
        opened(asked(Method.random), url)


def test_a_file_that_is_no_study_is_refused_and_not_touched(url, tmp_path):
    path: Path = tmp_path / "study.db"
    path.write_text("not a database " * 100)
    with pytest.raises(RequestError, match=r"study\.db is no SQLite database .*; move it away"):
        opened(asked(), url)
    assert path.read_text() == "not a database " * 100
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE photographs (name TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(RequestError, match=r"database of something else \(tables photographs\)"):
        opened(asked(), url)
    assert path.read_bytes() == before


def test_a_place_that_is_none_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"cannot be opened: .*unable to open"):
        opened(asked(), f"sqlite:///{tmp_path / 'nowhere' / 'study.db'}")
    with pytest.raises(RequestError, match=r"study\.storage=somewhere is no database url"):
        opened(asked(), "somewhere")


@pytest.mark.parametrize("name", ["a?b", "100%41", "c#d", "e f,g;h&i=j", "s:t@u"])
def test_a_path_is_no_url(tmp_path, name):
    """`?` would cut a path off, and `%41` become an A."""
    file = tmp_path / name / "study.db"
    file.parent.mkdir()
    opened(asked(), sqlite_url(file)).close()
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert file.stat().st_size > 0
    assert in_optuna(sqlite_url(file)) == []


def test_a_study_of_another_question_is_refused(url):
    opened(asked(Method.random), url).close()
    with pytest.raises(
        RequestError, match="has the objectives minimize, and minimize and maximize"
    ):
        opened(asked(Method.random, objectives=(LOSS, EXACT)), url)
    with pytest.raises(RequestError, match=r"search\.method random, and now with tpe"):
        opened(asked(Method.tpe), url)
    axes = (*AXES[:2], ChoiceAxis(key="lora.rank", values=("2", "8")), *AXES[3:])
    with pytest.raises(
        RequestError, match=r"choice\(2, 8, 32\), and now with lora\.rank: choice\(2, 8\);"
    ):
        opened(asked(Method.random, axes=axes), url)
    with pytest.raises(
        RequestError, match=r"constraints nothing more, and now with memory/peak_bytes"
    ):
        opened(asked(Method.random, constraints=(MEMORY,)), url)
    optuna.create_study(study_name="theirs", storage=url).ask()
    with pytest.raises(RequestError, match="theirs was made by another program"):
        opened(asked(Method.random, name="theirs"), url)


def test_a_method_or_pruner_that_cannot_work_here_is_refused(url):
    with pytest.raises(RequestError, match="learns from numbers only"):
        opened(asked(Method.cmaes, axes=AXES[:3]), url)
    with pytest.raises(RequestError, match="cmaes searches one objective"):
        opened(asked(Method.cmaes, objectives=(LOSS, EXACT)), url)
    with pytest.raises(RequestError, match=r"needs evaluations .* set eval\.every_steps"):
        opened(asked(pruner=PrunerName.asha), url, every=None)
    with pytest.raises(RequestError, match="hyperband needs one number of steps"):
        opened(asked(pruner=PrunerName.hyperband), url, total=None)
    with pytest.raises(RequestError, match="compares one objective and 2 are asked for"):
        opened(asked(pruner=PrunerName.median, objectives=(LOSS, EXACT)), url)


COUNT_OF_TRIALS = 150


def _work(question: Question, url: str, log: Path) -> None:
    """Do as a driver does: tell what is running, ask for more, until there are enough."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    study = opened(question, url)
    while True:
        for trial in study.trials:
            if trial.status is TrialStatus.running:
                study.note(trial.number, "cell", f"cell {trial.number}")
                if study.report(trial.number, 10, loss_of(trial)):
                    study.prune(trial.number)
                else:
                    study.complete(trial.number, [loss_of(trial)], [0.0])
        if len(study.trials) == COUNT_OF_TRIALS:
            break
        for _ in range(min(3, COUNT_OF_TRIALS - len(study.trials))):
            trial = study.ask()
            os.write(descriptor, (json.dumps([trial.number, trial.point]) + "\n").encode())
    study.close()


def test_killed_at_any_moment_it_ends_with_every_trial_once_and_whole(url, tmp_path):
    question = asked(Method.tpe, pruner=PrunerName.asha, constraints=(MEMORY,))
    fork = multiprocessing.get_context("fork")
    draw = random.Random(3)
    log = tmp_path / "log"
    kills = 0
    while True:
        worker = fork.Process(target=_work, args=(question, url, log))
        worker.start()
        worker.join(draw.uniform(0.02, 0.25) if kills < 6 else 60)
        if worker.exitcode is not None:
            break
        worker.kill()
        worker.join()
        kills += 1
    assert worker.exitcode == 0
    assert kills == 6
    trials = opened(question, url).trials
    assert [trial.number for trial in trials] == list(range(COUNT_OF_TRIALS))
    assert all(trial.status is not TrialStatus.running for trial in trials)
    assert all(trial.notes == {"cell": f"cell {trial.number}"} for trial in trials)
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(told) >= COUNT_OF_TRIALS - kills  # killed between asking and writing it down
    assert len({number for number, _ in told}) == len(told)
    assert all(trials[number].point == point for number, point in told)
    drawn = [tuple(trial.point.items()) for trial in trials]
    assert len(set(drawn)) == COUNT_OF_TRIALS
    assert [trial.params["optim.lr"] for trial in in_optuna(url)] == [
        float(trial.point["optim.lr"]) for trial in trials
    ]


# Transfer of learning rates -----------------------------------------------------------------------

RANKS = ChoiceAxis(key="lora.rank", values=("2", "8", "32", "64"))
RATES = ChoiceAxis(key="optim.lr", values=("1e-4", "3e-4", "1e-3", "3e-3", "1e-2"))


def test_a_grid_with_transfer_waits_for_the_lower_ranks_and_goes_on_as_it_would_have(url) -> None:
    question = asked(Method.grid, axes=(RANKS, RATES), transfer=Transfer.lr)

    def tell(study: Study, trial: Trial) -> None:  # best at 3e-3 * 2 / rank
        wanted = 3e-3 * 2 / int(trial.point["lora.rank"])
        study.complete(trial.number, [abs(math.log(float(trial.point["optim.lr"]) / wanted))], [])

    study = opened(question, url)
    first = [study.ask() for _ in range(10)]
    assert {trial.point["lora.rank"] for trial in first} == {"2", "8"}
    for trial in first[:-1]:
        tell(study, trial)
    assert study.awaits_results
    tell(study, first[-1])
    assert not study.awaits_results
    third = study.ask()
    study.close()
    study = opened(question, url)  # another process goes on
    assert study.trials[third.number].point == third.point
    others = [study.ask(), study.ask()]
    tried = [trial.point for trial in (third, *others)]
    assert [point["optim.lr"] for point in tried] == ["1e-4", "3e-4", "1e-3"]
    assert {point["lora.rank"] for point in tried} == {"32"}
    assert study.awaits_results
    for trial in (third, *others):
        tell(study, trial)
    last = [study.ask() for _ in range(3)]
    assert {trial.point["lora.rank"] for trial in last} == {"64"}
    with pytest.raises(ValueError, match="all 16 points"):
        study.ask()
    study.close()


def test_rates_are_transferred_to_the_best_of_what_is_maximized_too(url) -> None:
    question = asked(Method.grid, axes=(RANKS, RATES), transfer=Transfer.lr, objectives=(EXACT,))
    study = opened(question, url)
    for _ in range(10):
        trial = study.ask()
        away = abs(math.log(float(trial.point["optim.lr"]) / 3e-3))
        study.complete(trial.number, [1.0 - 0.1 * away], [])  # at every rank best at 3e-3
    tried = [study.ask().point["optim.lr"] for _ in range(3)]
    assert tried == ["1e-3", "3e-3", "1e-2"]
    study.close()


# A wider space ------------------------------------------------------------------------------------

FEW = (
    ChoiceAxis(key="lora.rank", values=("2", "8")),
    ChoiceAxis(key="optim.lr", values=("0.001", "0.01")),
)


def wider(question: Question, **changes) -> Question:
    more = ChoiceAxis(key="lora.rank", values=("2", "4", "8"))
    search = replace(question.search, **changes)
    return replace(question, space=Space(axes=(more, *question.space.axes[1:])), search=search)


@pytest.mark.parametrize("method", [Method.random, Method.tpe, Method.gp])
def test_a_search_knows_what_it_was_told_when_its_space_has_grown(method, url) -> None:
    question = asked(method, axes=FEW)
    study = opened(question, url)
    for number in range(6):
        study.complete(number, [float(study.ask().point["lora.rank"])], [])
    points = [trial.point for trial in study.trials]
    study.extend(wider)
    assert [trial.point for trial in study.trials] == points
    for number in range(6, 26):
        study.complete(number, [float(study.ask().point["lora.rank"])], [])
    ranks = [trial.point["lora.rank"] for trial in study.trials]
    assert ranks[:6] == [point["lora.rank"] for point in points]
    assert "4" in ranks[6:]
    study.close()
    stored = in_optuna(url)
    assert [str(trial.params["lora.rank"]) for trial in stored] == ranks
    assert [t.distributions["lora.rank"] for t in stored] == [
        CategoricalDistribution((2, 4, 8))
    ] * 26
    again = opened(wider(question), url)
    assert [trial.point["lora.rank"] for trial in again.trials] == ranks
    again.close()
    with pytest.raises(RequestError, match="its trials would not be comparable"):
        opened(question, url)


def test_a_grid_goes_on_behind_what_it_has_asked(url) -> None:
    study = opened(asked(Method.grid, axes=FEW), url)
    first = [study.ask().point for _ in range(3)]
    study.extend(wider)
    points = [*first, *(study.ask().point for _ in range(3))]
    cells = {(rank, rate) for rank in ("2", "4", "8") for rate in ("0.001", "0.01")}
    assert {(p["lora.rank"], p["optim.lr"]) for p in points} == cells
    assert [trial.point for trial in study.trials] == points
    with pytest.raises(ValueError, match="all 6 points"):
        study.ask()
    study.close()
    again = opened(wider(asked(Method.grid, axes=FEW)), url)
    assert [trial.point for trial in again.trials] == points
    again.close()


def test_what_is_asked_is_kept_for_members_that_join(url) -> None:
    study = opened(asked(Method.random, axes=FEW), url)
    study.extend(lambda asked: wider(asked, trials=99))
    study.close()
    tree = question_in(open_database(url), "small")
    assert tree["search"]["trials"] == 99
    assert tree["space"]["lora.rank"] == "choice(2, 4, 8)"
    with pytest.raises(RequestError, match=r"no sweep 'smal' has begun .* near names: small"):
        question_in(open_database(url), "smal")


def test_a_member_answers_what_another_was_asked_beyond_its_own(url) -> None:
    mine = asked(Method.random, axes=FEW)
    study = opened(wider(mine, trials=99), url)
    heard = study._as_others_ask(mine)
    assert heard.space == wider(mine).space
    assert heard.search.trials == 99
    assert study._as_others_ask(mine) is mine, "it is heard once"
    study._asked = None
    more = study._as_others_ask(replace(mine, search=replace(mine.search, trials=500)))
    assert more.search.trials == 500
    study._asked = None
    other = replace(mine, space=Space(axes=(ChoiceAxis(key="lora.rank", values=("2", "64")),)))
    assert study._as_others_ask(other) is other, "whose points the wider space lacks"


def test_instructions_are_passed_on_once(url) -> None:
    study = opened(asked(Method.random), url)
    first, second = {"kind": "stop", "run": 1}, {"kind": "more", "trials": 9}
    study.pass_on([first])
    study.pass_on([first, second])
    study.pass_on([])
    assert study.instructions == [first, second]
    study.close()
    assert opened(asked(Method.random), url).instructions == [first, second]


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ([math.inf], [1.0]),
        ([-math.inf], [-1.0]),
        ([0.0, math.inf], [0.0, 1.0]),
        ([-3.0, 2.0, math.inf], [-3.0, 2.0, 3.0]),
        ([0.5, -math.inf], [0.5, -0.5]),
    ],
)
def test_an_infinite_violation_is_as_large_as_the_largest_distance(told, kept, url) -> None:
    study = opened(asked(Method.random, constraints=(MEMORY,)), url)
    for violation in told:
        study.complete(study.ask().number, [0.1], [violation])
    assert [trial.violations for trial in study.trials] == [(each,) for each in kept]


@pytest.mark.parametrize(
    ("costs", "fronts"),
    [
        ([[3.0], [1.0], [3.0], [2.0]], [2, 0, 2, 1]),
        ([[1, 2], [2, 1], [2, 2], [3, 3], [1, 2]], [0, 0, 1, 2, 0]),
        ([[1, 1], [1, 2], [0, 5]], [0, 1, 0]),
    ],
)
def test_fronts_are_those_that_no_other_row_is_better_than(costs, fronts) -> None:
    assert front_of_each(np.array(costs, dtype=float)) == fronts


def test_rows_are_ranked_by_front_then_first_objective_then_order() -> None:
    both = [Direction.minimize, Direction.maximize]
    values = [(2.0, 9.0), (1.0, 5.0), (1.0, 4.0), (2.0, 9.0), (0.5, 0.0)]
    assert ranked(values, both) == [4, 1, 0, 3, 2]
    assert ranked([], both) == []
    assert ranked([(1.0,), (3.0,), (2.0,)], [Direction.maximize]) == [1, 2, 0]
