"""What a sweep's search costs its driver: asking, noting, reporting and telling trials in a study on disk.

    python -m bench.driver [--trials 1000]

Every trial is asked for, noted twice, reported five times (successive halving judges each) and told, with 16
trials running at any time; none is pruned, so that the history is as long as it can be. The space has eight
axes, two of them conditional; the grid's has four. `plain_tpe` is what a user would write instead: Optuna's
own ask and tell on a SQLite url, the same sampler and pruner, without anything of ours. The methods run one
after another in one process and on one thread; processor time is the steadier figure where other work shares
the machine. The target: 1,000 trials in under 60 s, with tpe.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna

from bench.measured import keep, load
from harness.question.axes import CaseAxis, ChoiceAxis, Condition, NumberAxis
from harness.question.points import Point, Space
from harness.question.question import Question
from harness.question.settings import (
    Constraint,
    Method,
    Objective,
    PrunerName,
    SearchSettings,
    StudySettings,
    WorkerSettings,
)
from harness.records.metrics import Direction
from harness.study.samplers import (
    build_pruner,
    build_sampler,
    pruner_settings,
    sampler_settings,
    without_optuna_warnings,
)
from harness.study.study import Study, Trial

TARGET_SECONDS = 60.0  # of 1,000 trials with tpe
RUNNING = 16
EVERY_STEPS, TOTAL_STEPS = 10, 100
REPORTS = 5
SHARES = {Method.gp: 0.1}
"""Methods whose time per trial grows so much that they get this share of the trials."""

_QUANTIZED = Condition(key="quant", values=frozenset({"nf4", "int4"}))
_SEARCHED = Space(
    (
        ChoiceAxis(key="quant", values=("none", "nf4", "int4")),
        ChoiceAxis(key="quant.double_quant", values=("true", "false"), condition=_QUANTIZED),
        ChoiceAxis(key="quant.block_size", values=("32", "64", "128"), condition=_QUANTIZED),
        ChoiceAxis(key="lora.rank", values=("2", "8", "32")),
        CaseAxis(key="scale", cases={"one": ("lora.alpha=8",), "two": ("lora.alpha=16",)}),
        NumberAxis(key="optim.lr", low=1e-4, high=3e-2, log=True),
        NumberAxis(key="lora.dropout", low=0.0, high=0.3, step=0.1),
        NumberAxis(key="optim.warmup_steps", low=0, high=20, integer=True),
    )
)
_GRID = Space(
    (
        ChoiceAxis(key="quant", values=("none", "nf4", "int4", "int8")),
        NumberAxis(key="lora.rank", low=2, high=10, step=2, integer=True),
        NumberAxis(key="optim.lr", low=0.001, high=0.01, step=0.001),
        NumberAxis(key="seed", low=0, high=4, step=1, integer=True),
    )
)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--trials", type=int, default=1000, help="1000 at most: the grid has no more"
    )
    trials = parser.parse_args().trials
    before = load()
    measured = {}
    columns = " ".join(f"{kind:>7}" for kind in ("ask", "note", "report", "tell", "all"))
    print(f"{'seconds':10} trials {columns} {'processor':>10} {'reopen':>7}", flush=True)
    for method in Method:
        count = max(1, round(trials * SHARES.get(method, 1.0)))
        measured[method.value] = _measured(lambda path, m=method, n=count: _ours(m, n, path))
        _show(method.value, measured[method.value])
    measured["plain_tpe"] = _measured(lambda path: _plain(trials, path))
    _show("plain_tpe", measured["plain_tpe"])
    result = {"target_seconds": TARGET_SECONDS, "running": RUNNING, "seconds": measured}
    keep("driver", result, before)


class Clock:
    """Seconds spent by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def runs(self, kind: str) -> Iterator[None]:
        """Count the time of what is inside."""
        began = time.perf_counter()
        yield
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began


def _measured(work: Callable[[Path], tuple[int, Clock]]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        busy = time.process_time()
        trials, clock = work(Path(directory) / "study.db")
        busy = time.process_time() - busy
    parts = clock.seconds
    total = sum(seconds for kind, seconds in parts.items() if kind != "reopen")
    return {"trials": trials, **parts, "all": total, "processor": busy}


def _ours(method: Method, count: int, path: Path) -> tuple[int, Clock]:
    question, clock = _question(method), Clock()
    running: list[Trial] = []

    def opened() -> Study:
        url = f"sqlite:///{path}"
        return Study.open(question, url, eval_every_steps=EVERY_STEPS, total_steps=TOTAL_STEPS)

    study = opened()
    for _ in range(count):
        with clock.runs("ask"):
            running.append(study.ask())
        if len(running) == RUNNING:
            _finish(study, running.pop(0), clock)
    for trial in running:
        _finish(study, trial, clock)
    study.close()
    with clock.runs("reopen"):
        study = opened()
    assert len(study.best(count)) == count
    study.close()
    return count, clock


def _finish(study: Study, trial: Trial, clock: Clock) -> None:
    loss = _loss(trial.point)
    with clock.runs("note"):
        study.note(trial.number, "cell", "0123456789abcdef")
        study.note(trial.number, "runs", ["a-readable-slug-0123456789abcdef"])
    with clock.runs("report"):
        for report in range(1, REPORTS + 1):
            study.report(trial.number, report * EVERY_STEPS, loss + 1 / report)
    with clock.runs("tell"):
        study.complete(trial.number, [loss], [-1.0])


def _plain(count: int, path: Path) -> tuple[int, Clock]:
    """Do the same with Optuna alone, as its documentation shows it."""
    question, clock = _question(Method.tpe), Clock()
    running: list[tuple[optuna.Trial, Point]] = []
    with without_optuna_warnings():
        sampler = build_sampler(Method.tpe, sampler_settings(question), seed=0)
    pruner = build_pruner(PrunerName.asha, pruner_settings(question, EVERY_STEPS, TOTAL_STEPS))
    study = optuna.create_study(storage=f"sqlite:///{path}", sampler=sampler, pruner=pruner)
    for _ in range(count):
        with clock.runs("ask"):
            trial = study.ask()
            running.append((trial, _suggested(trial)))
        if len(running) == RUNNING:
            trial, point = running.pop(0)
            _finish_plain(study, trial, point, clock)
    for trial, point in running:
        _finish_plain(study, trial, point, clock)
    return count, clock


def _suggested(trial: optuna.Trial) -> Point:
    """Return a point of the searched space, by the calls that a user would write for it."""
    point = {"quant": trial.suggest_categorical("quant", ["none", "nf4", "int4"])}
    if point["quant"] != "none":
        trial.suggest_categorical("quant.double_quant", [True, False])
        trial.suggest_categorical("quant.block_size", [32, 64, 128])
    rank = trial.suggest_categorical("lora.rank", [2, 8, 32])
    trial.suggest_categorical("scale", ["one", "two"])
    rate = trial.suggest_float("optim.lr", 1e-4, 3e-2, log=True)
    dropout = trial.suggest_float("lora.dropout", 0.0, 0.3, step=0.1)
    trial.suggest_int("optim.warmup_steps", 0, 20)
    return point | {"lora.rank": str(rank), "optim.lr": str(rate), "lora.dropout": str(dropout)}


def _finish_plain(study: optuna.Study, trial: optuna.Trial, point: Point, clock: Clock) -> None:
    loss = _loss(point)
    with clock.runs("note"):
        trial.set_user_attr("cell", "0123456789abcdef")
        trial.set_user_attr("runs", ["a-readable-slug-0123456789abcdef"])
    with clock.runs("report"):
        for report in range(1, REPORTS + 1):
            trial.report(loss + 1 / report, report * EVERY_STEPS)
            trial.should_prune()
    with clock.runs("tell"):
        trial.set_constraint("memory/peak_bytes", -1.0)
        study.tell(trial, loss)


def _loss(point: Point) -> float:
    rate = abs(math.log10(float(point["optim.lr"])) + 2.5)
    return rate + 1 / int(point["lora.rank"]) + float(point.get("lora.dropout", "0"))


def _question(method: Method) -> Question:
    return Question(
        name="driver",
        question="What does the search cost?",
        expect="Under 60 s of 1,000 trials.",
        base=("model=embedded",),
        space=_GRID if method is Method.grid else _SEARCHED,
        search=SearchSettings(method=method, pruner=PrunerName.asha),
        objectives=(Objective(metric="eval/loss", direction=Direction.minimize),),
        constraints=(Constraint(metric="memory/peak_bytes", at_most=1e9),),
        confirm=None,
        resources=WorkerSettings(),
        study=StudySettings(),
    )


def _show(name: str, row: dict[str, float]) -> None:
    parts = " ".join(f"{row[kind]:7.2f}" for kind in ("ask", "note", "report", "tell", "all"))
    reopen = f"{row['reopen']:7.2f}" if "reopen" in row else "      —"
    print(f"{name:10} {row['trials']:6.0f} {parts} {row['processor']:10.2f} {reopen}", flush=True)


if __name__ == "__main__":
    main()
