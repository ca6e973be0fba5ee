"""A question's space before anything is trained: points are composed and checked, refusals are explained.

Must not import torch, transformers or wandb.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from harness.config.compose import compose_run
from harness.config.schema import DataForm, RunConfig, Split
from harness.errors import RequestError
from harness.question.points import Point, Space
from harness.question.question import Question
from harness.question.settings import Method
from harness.records.metrics import is_task_metric
from harness.request import check

SHOWN = 10
"""Refusals that a message gives in full."""


def sample_points(question: Question) -> list[Point]:
    """Return the points that are checked: of a grid all, of a search a few that stand for the rest.

    In those every two values of two axes occur together (of an interval both ends), the other axes at their
    first value; the starting points come first.
    """
    space = question.space
    if question.search.method is Method.grid:
        return list(space.points())
    wanted: list[Mapping[str, str]] = [*question.search.starts, {}]
    wanted += [{axis.key: value} for axis in space.axes for value in axis.samples]
    for first, second in itertools.combinations(space.axes, 2):
        pairs = itertools.product(first.samples, second.samples)
        wanted += [{first.key: one, second.key: other} for one, other in pairs]
    found = (_completed(space, each) for each in wanted)
    return list({tuple(point.items()): point for point in found if point is not None}.values())


def _completed(space: Space, wanted: Mapping[str, str]) -> Point | None:
    """Return a point with the wanted values, others at their first; None if conditions exclude it."""
    axes = {axis.key: axis for axis in space.axes}
    values = dict(wanted)
    for axis in reversed(space.axes):  # a condition names an earlier axis
        condition = axis.condition
        if axis.key not in values or condition is None:
            continue
        allowed = [value for value in axes[condition.key].samples if value in condition.values]
        if values.setdefault(condition.key, allowed[0]) not in allowed:
            return None
    point: Point = {}
    for axis in space.axes:
        if axis.condition is None or axis.condition.holds(point):
            point[axis.key] = values.get(axis.key, axis.samples[0])
    return point


# Checking ----------------------------------------------------------------------------------------


def check_space(
    question: Question, judged: Callable[[RunConfig], RunConfig] = lambda config: config
) -> list[tuple[Point, RunConfig]]:
    """Return the points of `sample_points` with their configurations, each checked with one seed.

    `judged` returns what is checked in a configuration's place: a plan is made for another machine.
    Raises RequestError that lists what is refused, and at which values of which axes.
    """
    checked = list(_checked(question, judged))
    refused = [(point, result) for point, result in checked if isinstance(result, str)]
    accepted = [(point, result) for point, result in checked if isinstance(result, RunConfig)]
    if refused:
        raise RequestError(_explained(question.space, refused, [point for point, _ in accepted]))
    return accepted


def _checked(
    question: Question, judged: Callable[[RunConfig], RunConfig]
) -> Iterator[tuple[Point, RunConfig | str]]:
    seed = f"seed={question.search.seeds[0]}"
    for point in sample_points(question):
        try:
            config = compose_run([*question.base, *question.space.overrides(point), seed])
            check(judged(config))
            check_measured(question, config)
        except RequestError as error:
            yield point, str(error)
        else:
            yield point, config


def check_measured(question: Question, config: RunConfig) -> None:
    """Refuse a run that would not measure what the question asks for."""
    asked = {each.metric for each in (*question.objectives, *question.constraints)}
    without_prompt = config.data.form is DataForm.text
    for metric in sorted(asked & {"eval/exact_match", "eval/rouge_l"}):
        if not config.eval.generate or without_prompt:
            reason = "data.form=text has no prompts" if without_prompt else "eval.generate=false"
            raise RequestError(f"{metric} is asked for and not measured: {reason}")
    for metric in sorted(asked & {"eval/choice_accuracy", "eval/choice_accuracy_raw"}):
        if config.eval.choice_path is None:
            raise RequestError(
                f"{metric} is asked for and not measured: give eval.choice_path=FILE"
            )
    for metric in sorted(m for m in asked if m.startswith(("eval/base_domain", "eval/forgetting"))):
        if config.eval.base_domain is None:
            raise RequestError(
                f"{metric} is asked for and not measured: give eval.base_domain=FILE, or embedded"
            )
    for metric in sorted(filter(is_task_metric, asked)):
        if not config.eval.tasks:
            raise RequestError(f"{metric} is asked for and not measured: give eval.tasks=[…]")
    if question.confirm is None:
        return
    match question.confirm.split:
        case Split.test if config.data.test_rows == 0:
            raise RequestError("confirm.split=test has no rows: data.test_rows=0")
        case Split.validation if config.data.validation_rows == 0:
            raise RequestError("confirm.split=validation has no rows: data.validation_rows=0")
        case _:
            pass


# Explaining --------------------------------------------------------------------------------------


def _explained(
    space: Space, refused: Sequence[tuple[Point, str]], accepted: Sequence[Point]
) -> str:
    """Say what is refused, where, and which axes make the difference: one line per reason."""
    by_reason: dict[str, list[Point]] = {}
    for point, reason in refused:
        by_reason.setdefault(reason, []).append(point)
    lines = [
        f"{len(refused)} of the {len(refused) + len(accepted)} points of the space that were checked "
        "are refused:"
    ]
    for reason, points in list(by_reason.items())[:SHOWN]:
        more = f" and {len(points) - 1} more" if len(points) > 1 else ""
        where = " ".join(f"{key}={value}" for key, value in points[0].items()) or "the only point"
        lines.append(
            f"{'; '.join(reason.splitlines())} (at {where}{more}){_way_out(space, points[0], accepted)}"
        )
    if len(by_reason) > SHOWN:
        lines.append(f"… and {len(by_reason) - SHOWN} more reasons")
    return "\n".join(lines)


def _way_out(space: Space, refused: Point, accepted: Sequence[Point]) -> str:
    """Name the axes of which another value alone is accepted, and the values."""
    works: dict[str, list[str]] = {}
    for point in accepted:
        changed = _changed_axes(space, refused, point)
        if len(changed) == 1 and changed[0] in point:
            values = works.setdefault(changed[0], [])
            if point[changed[0]] not in values:
                values.append(point[changed[0]])
    if not works:
        return ""
    shown = " or ".join(f"{key}={','.join(values)}" for key, values in works.items())
    axes = "the axis" if len(works) == 1 else "the axes"
    return f"; {axes} {' and '.join(works)}: accepted with {shown}"


def _changed_axes(space: Space, one: Point, other: Point) -> list[str]:
    """Name the axes in which two points differ; one that only exists in one of them follows from another."""
    differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return [
        axis.key
        for axis in space.axes
        if axis.key in differ
        and not (
            axis.condition is not None
            and axis.condition.key in differ
            and (axis.key in one) != (axis.key in other)
        )
    ]
