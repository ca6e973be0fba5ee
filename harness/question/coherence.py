"""Whether the parts of a question go together. Must not import torch or optuna."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from harness.config.compose import EXCLUSIVE, compose_run
from harness.errors import RequestError
from harness.question.axes import Axis, CaseAxis, ChoiceAxis, NumberAxis
from harness.question.draft import Draft
from harness.question.keys import is_group, key_of
from harness.question.points import Space
from harness.question.question import Question
from harness.question.rate_law import FIRST_RANKS, NEAR, RANK, RATE
from harness.question.settings import (
    LauncherSettings,
    Method,
    PrunerName,
    SearchSettings,
    StudySettings,
    Transfer,
    has_password,
)

EVALUATIONS = 10
"""Evaluations of a run that a pruner judges, where eval.every_steps is not given."""

MOST_RUNS = 1_000_000
"""Trials of a search, each with all its seeds."""
MOST_POINTS = 20_000
"""Points that are composed and checked before anything is trained, at about a millisecond each: those of a
grid, conditions left aside, and of a search every two values of two axes."""

REPORTED = ("eval/loss", "eval/perplexity", "eval/token_accuracy")
"""Metrics that a run reports while it trains, for a pruner to judge by."""


def check_question(question: Question, draft: Draft) -> None:
    """Raise RequestError for parts that contradict each other or would do nothing."""
    problems = itertools.chain(
        _search_problems(question),
        _confirm_problems(question),
        _launcher_problems(question.launcher, question.study),
    )
    for part, text in problems:
        raise RequestError(f"{draft.place(part)}{text}")
    _check_overlaps(question.space, question.base, draft.place("base"))


def with_evaluations(
    base: Sequence[str], space: Space, search: SearchSettings, where: str
) -> list[str]:
    """Return `base`, with `eval.every_steps` for a pruner that would otherwise have nothing to judge by.

    Raises RequestError where the number of steps is not known.
    """
    keys = {key_of(override) for override in base} | set(_keys_of_space(space))
    pruner = search.pruner
    if "seed" in keys:
        raise RequestError(f"{where}base: seed would be ignored; give search.seeds=[0, 1]")
    if pruner is PrunerName.none or "eval.every_steps" in keys:
        return list(base)
    if "eval.every_epochs" in keys or compose_run(base).eval.every_epochs is not None:
        raise RequestError(
            f"{where}search.pruner={pruner.value} compares runs after the same steps, and eval.every_epochs "
            "counts epochs; give eval.every_epochs=null eval.every_steps=N in base, or search.pruner=none"
        )
    in_space = {"optim.steps", "optim.epochs"} & set(_keys_of_space(space))
    steps = None if in_space else compose_run(base).optim.steps
    if steps is None:
        raise RequestError(
            f"{where}search.pruner={pruner.value} judges runs by evaluations while they train, and with "
            f"{'optim.epochs' if not in_space else 'an axis over ' + min(in_space)} it is not known here "
            "after how many steps these should be; give eval.every_steps=N in base"
        )
    return [*base, f"eval.every_steps={max(1, steps // EVALUATIONS)}"]


# Search ------------------------------------------------------------------------------------------


def _search_problems(question: Question) -> Iterator[tuple[str, str]]:
    """Yield the part of the file and the problem."""
    search, space = question.search, question.space
    yield from _size_problems(search, space)
    metrics = [objective.metric for objective in question.objectives]
    without_grid = [axis for axis in space.axes if axis.choices is None]
    if search.method is Method.grid and without_grid:
        yield (
            "search",
            f"search.method=grid, and {without_grid[0].described} has no grid; write choice(a, b) or "
            "range(start, stop, step) there, or take search.method=random, tpe, gp, nsga2 or cmaes "
            "with search.trials",
        )
    yield from _transfer_problems(question)
    if search.method is not Method.grid and not space.axes:
        yield (
            "search",
            f"search.method={search.method.value} has no axis to search; give one in space",
        )
    if search.method is Method.cmaes:
        yield from _cmaes_problems(question)
    if search.pruner is PrunerName.none:
        return
    if len(metrics) > 1:
        yield (
            "search",
            f"search.pruner={search.pruner.value} compares runs by one objective, and there are "
            f"{len(metrics)}: {', '.join(metrics)}; take search.pruner=none, or one of them as a constraint",
        )
    elif metrics[0] not in REPORTED:
        yield (
            "search",
            f"search.pruner={search.pruner.value} judges runs while they train, and {metrics[0]} is only "
            f"measured at the end; take an objective of {', '.join(REPORTED)}, or search.pruner=none",
        )


def _transfer_problems(question: Question) -> Iterator[tuple[str, str]]:
    """Yield what a grid lacks that is to carry learning rates from rank to rank."""
    search, axes = question.search, {axis.key: axis for axis in question.space.axes}
    if search.transfer is Transfer.none:
        return
    if search.method is not Method.grid:
        yield (
            "search",
            f"search.transfer={search.transfer.value} would be ignored by search.method="
            f"{search.method.value}, which learns of the rates itself; take search.method=grid",
        )
    for key, least in ((RANK, FIRST_RANKS + 1), (RATE, NEAR + 1)):
        levels = axes[key].choices if key in axes else None
        if levels is None or len(levels) < least:
            yield (
                "search",
                f"search.transfer={search.transfer.value} needs an axis {key}=choice(…) of {least} or more "
                f"values, and there {'is none' if levels is None else f'are {len(levels)}'}",
            )


def _size_problems(search: SearchSettings, space: Space) -> Iterator[tuple[str, str]]:
    """Yield what nobody could train; counted, not made."""
    runs = (search.trials or 1) * len(search.seeds)
    if runs > MOST_RUNS:
        yield (
            "search",
            f"{runs:,} runs of search.trials and search.seeds are more than {MOST_RUNS:,}",
        )
    counts = [1 if axis.choices is None else len(axis.choices) for axis in space.axes]
    pairs = sum(
        len(one.samples) * len(other.samples)
        for one, other in itertools.combinations(space.axes, 2)
    )
    if search.method is not Method.grid and pairs > MOST_POINTS:
        yield (
            "space",
            f"{pairs:,} pairs of values of two axes would be checked, more than {MOST_POINTS:,}; write an "
            "interval where an axis has many numbers",
        )
    if search.method is Method.grid and math.prod(counts) > MOST_POINTS:
        shown = " x ".join(f"{axis.key} {n:,}" for axis, n in zip(space.axes, counts, strict=True))
        yield (
            "search",
            f"a grid of up to {math.prod(counts):,} points ({shown}) is more than {MOST_POINTS:,}; "
            "give fewer values, or take search.method=random, tpe, gp, nsga2 or cmaes with search.trials",
        )


def _cmaes_problems(question: Question) -> Iterator[tuple[str, str]]:
    """Yield what CMA-ES cannot do: several objectives, and a space without numbers."""
    if len(question.objectives) > 1:
        yield (
            "search",
            f"search.method=cmaes has one objective, and there are {len(question.objectives)}; take "
            "search.method=tpe, gp or nsga2",
        )
    axes = question.space.axes
    if not any(isinstance(axis, NumberAxis) and axis.condition is None for axis in axes):
        yield (
            "search",
            "search.method=cmaes learns of numbers only, and the space has no interval or range that is "
            "there at every point; take search.method=tpe, gp or nsga2",
        )


def _confirm_problems(question: Question) -> Iterator[tuple[str, str]]:
    confirm = question.confirm
    if confirm is None:
        return
    both = sorted(set(confirm.seeds) & set(question.search.seeds))
    if both:
        fresh = max(*question.search.seeds, 9) + 1
        yield (
            "confirm",
            f"confirm.seeds={list(confirm.seeds)} has {', '.join(map(str, both))} of "
            f"search.seeds={list(question.search.seeds)}: what a seed has chosen it cannot confirm; "
            f"take fresh ones, such as {list(range(fresh, fresh + len(confirm.seeds)))}",
        )


# Overlaps ----------------------------------------------------------------------------------------


def _launcher_problems(
    launcher: LauncherSettings | None, study: StudySettings
) -> Iterator[tuple[str, str]]:
    """Yield the part of the file and the problem, where jobs could not share the study."""
    if launcher is None:
        return
    if not study.is_shared:
        given = f"study.storage={study.storage}" if study.storage else "no study.storage"
        yield (
            "launcher",
            f"launcher={launcher.kind.value} has its jobs share one study in PostgreSQL, and {given} is "
            "given; start a server that every job can reach and give "
            "study.storage=postgresql://user@host/database",
        )
    elif has_password(study.storage or ""):
        yield (
            "launcher",
            f"launcher={launcher.kind.value} would write the password of study.storage into the command "
            "of every job, where others can read it; leave it out of the url, and give it in ~/.pgpass or "
            "PGPASSWORD",
        )


def _check_overlaps(space: Space, base: Sequence[str], where: str) -> None:
    """Refuse two givers of one key (or of a pair of which one is given) that meet in some point."""
    for first, second in itertools.combinations(space.axes, 2):
        for key, other in _clashes(_keys_beside(first, second), _keys_beside(second, first)):
            if _can_meet(first, second):
                raise RequestError(
                    f"{where}space: {first.key} and {second.key} both give {_pair(key, other)} at some "
                    "points; put them under conditions that exclude each other (when, unless), or leave "
                    "one out"
                )
    in_base = [key_of(override) for override in base]
    for axis in space.axes:
        for key, other in _clashes(in_base, _keys(axis)):
            allowed = key == other and not is_group(key)
            if allowed and (isinstance(axis, CaseAxis) or axis.condition is not None):
                continue  # what holds at the points where the axis gives nothing
            raise RequestError(
                f"{where}base and the axis {axis.key} both give {_pair(key, other)}; leave it out of one"
            )


def _keys_of_space(space: Space) -> Iterator[str]:
    for axis in space.axes:
        yield from _keys(axis)


def _keys(axis: Axis, labels: frozenset[str] | None = None) -> list[str]:
    """Return the keys that an axis gives, of cases those of some labels."""
    match axis:
        case ChoiceAxis() | NumberAxis():
            return [axis.key]
        case CaseAxis():
            chosen = [o for label, o in axis.cases.items() if labels is None or label in labels]
            return [key_of(override) for overrides in chosen for override in overrides]


def _keys_beside(axis: Axis, other: Axis) -> list[str]:
    """Return the keys that an axis gives where the other one exists."""
    condition = other.condition
    on_axis = condition is not None and condition.key == axis.key
    return _keys(axis, condition.values if condition is not None and on_axis else None)


def _can_meet(first: Axis, second: Axis) -> bool:
    one, other = first.condition, second.condition
    if one is None or other is None or one.key != other.key:
        return True
    return bool(one.values & other.values)


def _clashes(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of keys, one of each side, that are the same or exclude each other."""
    partners: Mapping[str, str] = dict((*EXCLUSIVE, *((b, a) for a, b in EXCLUSIVE)))
    for key in first:
        for other in second:
            if key == other or partners.get(key) == other:
                yield key, other


def _pair(key: str, other: str) -> str:
    return key if key == other else f"one of {key} and {other}, of which a run has one,"
