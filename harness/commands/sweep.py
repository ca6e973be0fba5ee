"""`harness sweep`: from a question to a study, run by worker processes; `--dry-run` prints what would run."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from harness.compose import compose_run
from harness.config import RunConfig
from harness.errors import RequestError
from harness.run_directory import write_text
from harness.search.question import Method, PrunerName, Question, load_question
from harness.search.space import Point, check_space
from harness.search.study import Study
from harness.sweeping.check import check_without_device, refuse_what_does_not_fit
from harness.sweeping.display import SweepDisplay, print_state
from harness.sweeping.driver import Driver
from harness.sweeping.pool import Pool, devices_for
from harness.sweeping.requests import RequestMaker, base_of
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, state_text, write_state
from harness.sweeping.trials import Trials
from harness.sweeping.view import View
from harness.training.stop import StopRequest, stop_on_signals

STATE_SECONDS = 1.0
_MAY_CHANGE = ("question", "expect", "confirm", "resources", "study")
"""Parts of a question that a sweep which has begun can change; of `search`, the number of trials."""


def sweep_command(name: str, overrides: Sequence[str], *, dry_run: bool, as_json: bool) -> int:
    """Start or resume a sweep; returns the exit code: 1 where a run failed."""
    question = load_question(name, overrides)
    points = check_space(question)
    base = compose_run(base_of(question))
    if base.resources.data_parallel > 1:
        raise RequestError(
            f"resources.data_parallel={base.resources.data_parallel} belongs to one run, and a sweep gives "
            "each device runs of its own; leave it out here, or use `harness run`"
        )
    directory = SweepDirectory(Path(base.paths.out), question.name)
    if dry_run:
        check_without_device(points, directory)
        print(plan_text(question, points, base), end="")
        return 0
    devices = devices_for(question.resources.devices)
    with directory.lock(), stop_on_signals() as stop:
        _refuse_another_question(directory, question)
        pool = Pool(directory.workers, question.resources.hang_seconds)
        try:
            for device in devices:
                pool.start(device)
            if not directory.question.exists():
                refuse_what_does_not_fit(points, pool)
            write_text(directory.question, question_text(question))
            state = _drive(question, points, directory, pool, stop)
        finally:
            pool.kill()
    if as_json:
        print(state_text(state), end="")
    else:
        print_state(state, file=str(directory.state))
    if state.status is SweepStatus.interrupted:
        again = " ".join(["harness sweep", name, *overrides])
        print(
            f"harness: stopped; every run in flight has a checkpoint. Go on with: {again}",
            file=sys.stderr,
        )
        return 130
    return int(any(run.status == "failed" for run in state.runs))


def _drive(
    question: Question,
    points: Sequence[tuple[Point, RunConfig]],
    directory: SweepDirectory,
    pool: Pool,
    stop: StopRequest,
) -> SweepState:
    steps = {config.optim.steps for _, config in points}
    every = {config.eval.every_steps for _, config in points}
    study = Study.open(
        question,
        question.study.storage or directory.storage,
        eval_every_steps=every.pop() if len(every) == 1 else None,
        total_steps=steps.pop() if len(steps) == 1 else None,
    )
    driver = Driver(Trials(question, study, RequestMaker(question)), pool, stop)
    view = View(driver)
    written_at = 0.0
    with SweepDisplay() as display:
        try:
            for _ in driver.drive():
                state = view.state()
                display.show(state)
                if time.monotonic() - written_at >= STATE_SECONDS:
                    write_state(directory, state)
                    written_at = time.monotonic()
        finally:
            state = view.state()
            ended = SweepStatus.finished if driver.is_finished else SweepStatus.interrupted
            state.status = ended
            write_state(directory, state)
            study.close()
    return state


def question_text(question: Question) -> str:
    """Return a question as YAML that `harness sweep FILE` takes."""
    return yaml.safe_dump(question.tree(), sort_keys=False, allow_unicode=True)


def _refuse_another_question(directory: SweepDirectory, question: Question) -> None:
    """Refuse a question that differs from the one that this sweep has begun with."""
    if not directory.question.exists():
        return
    before = yaml.safe_load(directory.question.read_text(encoding="utf-8"))
    different = _differences(before, yaml.safe_load(question_text(question)))
    if different:
        raise RequestError(
            f"the sweep {question.name} has begun with other values of {', '.join(different)} "
            f"({directory.question}); its trials would not be comparable: ask for the same, or "
            "begin another with name=OTHER"
        )


def _differences(before: dict, after: dict) -> list[str]:
    """Name the parts in which a question differs from the one that its sweep has begun with."""
    found = [
        key
        for key in sorted(before.keys() | after.keys())
        if key not in (*_MAY_CHANGE, "search") and before.get(key) != after.get(key)
    ]
    old, new = before.get("search", {}), after.get("search", {})
    return found + [
        f"search.{key}"
        for key in sorted(old.keys() | new.keys())
        if key != "trials" and old.get(key) != new.get(key)
    ]


def plan_text(
    question: Question, points: Sequence[tuple[Point, RunConfig]], base: RunConfig
) -> str:
    """Say what would run: the question, the axes, trials, runs and steps."""
    search, confirm = question.search, question.confirm
    lines = [f"{question.name}: {question.question}"]
    if question.expect:
        lines.append(f"expected: {question.expect}")
    lines += [f"base: {' '.join(question.base)}", "space:"]
    lines += [f"  {axis.described}" for axis in question.space.axes]
    trials = search.trials
    if search.method is Method.grid:
        cells = len({repr(config) for _, config in points})
        trials = min(cells, trials or cells)
        lines.append(f"search: grid of {cells} cells")
    else:
        lines.append(f"search: {search.method.value}, {trials} trials")
    assert trials is not None
    pruned = search.pruner is not PrunerName.none
    if pruned:
        lines.append(
            f"pruner: {search.pruner.value}, on the first seed's evaluation every "
            f"{base.eval.every_steps} steps; the other seeds follow where it survives"
        )
    runs = trials * len(search.seeds)
    lines.append(
        f"runs: {'at most ' if pruned else ''}{runs} (seeds {', '.join(map(str, search.seeds))})"
    )
    lines.append(
        "objective: " + ", ".join(f"{o.metric} ({o.direction.value})" for o in question.objectives)
    )
    if confirm is not None:
        lines.append(
            f"confirmation: the best {confirm.top} on seeds {', '.join(map(str, confirm.seeds))}, "
            f"{confirm.split.value} split: {confirm.top * len(confirm.seeds)} runs"
        )
    bases = Counter(_base_text(config) for _, config in points)
    lines.append(f"bases: {', '.join(bases)}")
    return "\n".join(lines) + "\n"


def _base_text(config: RunConfig) -> str:
    quant = config.quant
    double = "_dq" if quant.double_quant else ""
    return f"{config.model.name} {quant.format.value}{double} block {quant.block_size}"
