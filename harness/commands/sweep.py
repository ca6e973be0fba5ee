"""`harness sweep`: from a question to a study, run by worker processes; `--dry-run` prints what would run."""

import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.commands.mirror import mirror_finished_sweep
from harness.commands.status import answer_text
from harness.config.compose import compose_run, own_directory_words
from harness.config.schema import RunConfig
from harness.config.storage import label_of
from harness.errors import RequestError
from harness.plan.probe import PROBE_STEPS
from harness.question.check_space import check_space
from harness.question.compare import described, quota_combinations
from harness.question.keys import NAME
from harness.question.load import known_sweeps, load_question
from harness.question.power import described_power
from harness.question.question import Question, comparable, refuse_another
from harness.question.rate_law import FIRST_RANKS, NEAR, transfer_count
from harness.question.settings import Confirmation, Method, PrunerName, Transfer
from harness.question.widen import can_grow_to
from harness.records.metrics import METRICS
from harness.records.redact import message
from harness.records.run_directory import set_aside
from harness.request import check_writable
from harness.sweeping.check import check_without_device
from harness.sweeping.display import print_state
from harness.sweeping.instructions import Instructions, as_told
from harness.sweeping.member import Member, Points, begin_sweep
from harness.sweeping.outcome import compared_combinations, most_confirmed
from harness.sweeping.requests import base_of
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, state_text
from harness.training.stop import stop_on_signals


def sweep_command(name: str, overrides: Sequence[str], *, dry_run: bool, as_json: bool) -> int:
    """Start or resume a sweep; returns the exit code: 1 where a run failed."""
    question = load_question(named_question(name, overrides), overrides)
    directory = SweepDirectory(Path(compose_run(base_of(question)).paths.out), question.name)
    question = as_told(question, Instructions(directory.instructions).read_on())
    points, base = checked(question)
    if dry_run:
        show_what_would_run(question, points, base)
        return 0
    check_writable(base.paths)
    if question.launcher is not None:
        _refuse_another_question(directory, question)
        return _launch(question, points, directory, Path(base.paths.out))
    state = answer(question, points, base)
    if as_json:
        print(state_text(state), end="")
    else:
        text = answer_text(Path(base.paths.out), question.name, state)
        print_state(state, file=str(directory.state), answer=text)
    if state.status is SweepStatus.interrupted:
        again = shlex.join(["harness", "sweep", name, *own_directory_words(), *overrides])
        print(
            message(f"harness: stopped; every run in flight has a checkpoint. Go on with: {again}"),
            file=sys.stderr,
        )
        return 130
    return int(any(run.status == "failed" for run in state.runs))


def named_question(name: str, overrides: Sequence[str]) -> str:
    """Return what `load_question` takes: a file or a name in sweeps/, or the question that a sweep has kept.

    A sweep that was begun from a file anywhere goes on by its name alone.
    """
    if re.fullmatch(NAME, name, re.ASCII) is None or name in known_sweeps():
        return name
    out = Path(compose_run([o for o in overrides if o.startswith("paths.")]).paths.out)
    kept = SweepDirectory(out, name).question
    return str(kept) if kept.is_file() else name


def show_what_would_run(question: Question, points: Points, base: RunConfig) -> None:
    """Check the points against model and data, and print the plan; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="harness-") as logs:
        check_without_device(points, Path(logs), keep=False)
    print(message(plan_text(question, points, base)), end="")


def _launch(
    question: Question,
    points: Points,
    directory: SweepDirectory,
    out: Path,
) -> int:
    """Begin a sweep and submit the members that will train it; returns at once."""
    from harness.launch.submit import launch

    begin_sweep(question, points, directory)
    for job in launch(question, out):
        print(f"submitted {job.job_id}, {job.log}")
    print(
        f"harness status {question.name} paths.out={out} shows how they stand; the same command adds members"
    )
    return 0


def checked(question: Question) -> tuple[Points, RunConfig]:
    """Return the points of a question, each with its configuration, and what they have in common.

    Raises RequestError for a point that cannot be trained, and for a base that no sweep can have.
    """
    points = check_space(question)
    base = compose_run(base_of(question))
    if base.resources.data_parallel > 1:
        raise RequestError(
            f"resources.data_parallel={base.resources.data_parallel} belongs to one run, and a sweep gives "
            "each device runs of its own; leave it out here, or use `harness run`"
        )
    return points, base


def answer(question: Question, points: Points, base: RunConfig) -> SweepState:
    """Train what is left of a sweep, and return how it stands; one that has finished gets its W&B run.

    Raises RequestError where the sweep has begun as another question, RunFailed where run after run fails.
    """
    out = Path(base.paths.out)
    directory = SweepDirectory(out, question.name)
    _refuse_another_question(directory, question)
    with stop_on_signals() as stop:
        member = Member(question, points, directory, stop, collect=True)
        state = member.run()
    # Another member may have written it already, on another machine's disk.
    is_ours = member.ends_the_sweep or not directory.wandb.exists()
    if state.status is SweepStatus.finished and is_ours:
        mirror_finished_sweep(base.tracker, out, directory, state)
    return state


def _refuse_another_question(directory: SweepDirectory, question: Question) -> None:
    """Refuse a question whose trials cannot stand beside those that this sweep has begun with.

    With a wider space they can. A kept question that is damaged is set aside: the study has its own, and
    is asked next.
    """
    if not directory.question.exists():
        return
    try:
        before = load_question(str(directory.question), [])
    except RequestError as error:
        aside = set_aside(directory.question)
        said = message(f"{error}; set aside as {aside.name}, and written anew")
        print(f"harness: {said}", file=sys.stderr)
        return
    told = as_told(question, Instructions(directory.instructions).read_on())
    asked, now = comparable(before), comparable(told)
    if can_grow_to(told, before.space):
        asked["space"] = now["space"]
    refuse_another(f"the sweep {question.name} ({directory.question})", asked, now)


def plan_text(question: Question, points: Points, base: RunConfig) -> str:
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
        if search.transfer is not Transfer.none:
            trials = min(trials, transfer_count(question.space))
            lines.append(
                f"  transfer: {trials} of them, every rate at the {FIRST_RANKS} lowest ranks and the {NEAR} "
                "nearest to the predicted one at each higher rank"
            )
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
    if search.probe:
        lines.append(
            f"probes: each distinct cost alone, {PROBE_STEPS} steps, before the confirmation "
            "(search.probe=false: none)"
        )
    lines += _compared(question)
    lines += ["confirmation: none"] if confirm is None else _confirmed(question, confirm)
    launcher = question.launcher
    if launcher is not None:
        lines.append(
            f"launcher: {launcher.workers} jobs ({launcher.kind.value}), {launcher.time_minutes} minutes "
            "each, requeued until the sweep is done"
        )
    bases = Counter(_base_text(config) for _, config in points)
    lines.append(f"bases: {', '.join(bases)}")
    return "\n".join(lines) + "\n"


def _compared(question: Question) -> list[str]:
    """Say what will be compared, by what margin, and how the search shares its trials for it."""
    lines = [line for each in question.compare for line in described(each, question.space)]
    metric = question.objectives[0].metric
    if question.margin is not None:
        unit = METRICS[metric].unit
        lines.append(
            f"margin: differences of {metric} below {question.margin:g} {unit} count as none"
        )
    if question.compare and question.search.method is not Method.grid:
        levels = quota_combinations(question.compare, question.space)
        lines.append(
            f"  trials: each of {len(levels)} combinations of compared levels gets as many, give or take one"
        )
    return lines


def _confirmed(question: Question, confirm: Confirmation) -> list[str]:
    cells, seeds = most_confirmed(question), len(confirm.seeds)
    if confirm.at_most is not None:
        seeds = min(seeds, confirm.at_most)
    best = f"the best {confirm.top} of all"
    if question.compare:
        levels = len(compared_combinations(question))
        best = f"the best cell of each of {levels} compared combinations, and {best}"
    if confirm.at_most is not None:
        which = f"as many seeds as the margin needs, from {confirm.seeds[0]} on, at most {seeds}"
    else:
        which = f"seeds {', '.join(map(str, confirm.seeds))}"
    lines = [
        f"confirmation: {best}, on {which}, {confirm.split.value} split: at most {cells * seeds} runs"
    ]
    if confirm.at_most is None:
        lines.append(f"  {described_power(seeds)}")
    return lines


def _base_text(config: RunConfig) -> str:
    quant = config.quant
    return f"{config.model.name} {label_of(quant)} block {quant.block_size}"
