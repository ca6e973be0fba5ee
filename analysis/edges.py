"""Confirmed settings that lie on the edge of a tuned axis, with the command that looks beyond it."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.sources import SweepData
from harness.errors import RequestError
from harness.question.axes import Axis, CaseAxis, NumberAxis
from harness.question.compare import spelled_combination
from harness.question.entries import Entries, read_axes

NEAR_EDGE = 0.05
"""Share of an interval, in logarithms where it is drawn so, that counts as its edge."""
COMMON_STEP = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A tuned number whose best value is the smallest or largest that was tried."""

    sentence: str
    advice: str
    """How to look beyond, with the sweep's path on this machine."""


def edge_notes(sweep: SweepData) -> list[str]:
    """Return what is to be said of each edge."""
    return [f"{edge.sentence} {edge.advice}" for edge in edges_of(sweep)]


def edges_of(sweep: SweepData) -> list[Edge]:
    """Return every edge at which a confirmed cell lies."""
    try:
        axes = read_axes(Entries(axes=dict(sweep.asked.get("space") or {})))
    except RequestError:
        return []
    edges = []
    for axis in axes:
        numbers = _numbers(axis)
        if len(numbers) < 2 or axis.key in _compared_keys(sweep):
            continue
        for is_high in (False, True):
            advice = _advice(sweep, axis, numbers, is_high=is_high)
            if advice is None:
                continue
            levels = [
                spelled_combination(line["compared"][0])
                if line.get("compared")
                else f"trial {line['trial']}"
                for line in sweep.state["confirmed"]
                if axis.key in line["point"]
                and _is_on_edge(axis, numbers, line["point"][axis.key], is_high=is_high)
            ]
            if levels:
                sentence = (
                    f"{_named_end(axis, numbers, is_high=is_high)}, the "
                    f"{'largest' if is_high else 'smallest'} that was tried, is the best for "
                    f"{'; '.join(levels)}: a better one may lie beyond."
                )
                edges.append(Edge(sentence=sentence, advice=advice))
    return edges


def _compared_keys(sweep: SweepData) -> set[str]:
    given = sweep.asked.get("compare") or []
    listed = given if isinstance(given, list) else [given]
    keys = {key for each in listed for key in each if key not in ("per", "expected")}
    per = [each.get("per") or [] for each in listed]
    return keys | {key for of in per for key in ([of] if isinstance(of, str) else of)}


def _numbers(axis: Axis) -> list[float]:
    """Return the values of an axis of numbers by size, or the ends of its interval; else none."""
    if isinstance(axis, NumberAxis):
        return [axis.low, axis.high]
    if isinstance(axis, CaseAxis):
        return sorted(_case_numbers(axis).values())
    try:
        return sorted(float(text) for text in axis.choices or ())
    except ValueError:
        return []


def _case_numbers(axis: CaseAxis) -> dict[str, float]:
    """Return the number behind each label, of cases that set one key alone and all the same; else none."""
    if any(len(given) != 1 for given in axis.cases.values()):
        return {}
    parts = {label: given[0].partition("=") for label, given in axis.cases.items()}
    if len({key for key, _, _ in parts.values()}) != 1:
        return {}
    try:
        return {label: float(text) for label, (_, _, text) in parts.items()}
    except ValueError:
        return {}


def _named_end(axis: Axis, numbers: Sequence[float], *, is_high: bool) -> str:
    end = numbers[-1] if is_high else numbers[0]
    if not isinstance(axis, CaseAxis):
        return f"{axis.key}={end:g}"
    label = next(label for label, number in _case_numbers(axis).items() if number == end)
    return f"{axis.key}={label} ({axis.cases[label][0]})"


def _is_on_edge(axis: Axis, numbers: Sequence[float], level: str, *, is_high: bool) -> bool:
    end = numbers[-1] if is_high else numbers[0]
    value = _case_numbers(axis)[level] if isinstance(axis, CaseAxis) else float(level)
    if not isinstance(axis, NumberAxis):
        return value == end
    scale = math.log if axis.log else float
    span = scale(numbers[-1]) - scale(numbers[0])
    return abs(scale(value) - scale(end)) <= NEAR_EDGE * span


def _is_whole(sweep: SweepData, axis: Axis) -> bool:
    """Whether an axis has whole numbers alone, as a rank does: so the records of its runs have them."""
    if isinstance(axis, NumberAxis):
        return axis.integer
    found = [row[axis.key] for row in sweep.rows if row.get(axis.key) is not None]
    return bool(found) and all(isinstance(value, int) for value in found)


def _advice(sweep: SweepData, axis: Axis, numbers: Sequence[float], *, is_high: bool) -> str | None:
    """Return how to look beyond an end; None where an axis of whole numbers has nothing there."""
    if isinstance(axis, CaseAxis):
        return f"A case more of {axis.key} in {sweep.directory / 'sweep.yaml'} tries it, under another name."
    end, inner = (numbers[-1], numbers[-2]) if is_high else (numbers[0], numbers[1])
    ratio = end / inner if inner and not isinstance(axis, NumberAxis) else COMMON_STEP
    if isinstance(axis, NumberAxis) and not is_high:
        ratio = 1 / COMMON_STEP
    beyond = float(f"{end * ratio:.3g}")
    if _is_whole(sweep, axis):
        beyond = math.ceil(beyond) if is_high else math.floor(beyond)
        if not is_high and beyond < 1:
            return None
    if isinstance(axis, NumberAxis):
        low, high = (axis.low, beyond) if is_high else (beyond, axis.high)
        inside = f"interval({low:g}, {high:g})"
        inside = f"int({inside})" if axis.integer else inside
        grammar = f"tag(log, {inside})" if axis.log else inside
    else:
        values = [*numbers, beyond] if is_high else [beyond, *numbers]
        grammar = f"choice({', '.join(f'{value:g}' for value in values)})"
    override = shlex.quote(f"{axis.key}={grammar}")
    asked = shlex.quote(
        str(sweep.directory / "sweep.yaml")
    )  # with all that the command line changed
    command = f"harness sweep {asked} {override} name={sweep.name}_wider"
    return f"This tries it, and trains nothing again: {command}"
