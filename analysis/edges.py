"""Confirmed settings that lie on the edge of a tuned axis, with the command that looks beyond it."""

import math
import shlex
from collections.abc import Sequence

from analysis.sources import SweepData
from harness.errors import RequestError
from harness.question.axes import Axis, NumberAxis
from harness.question.compare import spelled_combination
from harness.question.entries import Entries, read_axes

NEAR_EDGE = 0.05
"""Share of an interval, in logarithms where it is drawn so, that counts as its edge."""
COMMON_STEP = 2.0


def edge_notes(sweep: SweepData) -> list[str]:
    """Return a sentence for each tuned number whose best value is the smallest or largest that was tried."""
    try:
        axes = read_axes(Entries(axes=dict(sweep.asked.get("space") or {})))
    except RequestError:
        return []
    notes = []
    for axis in axes:
        numbers = _numbers(axis)
        if len(numbers) < 2 or axis.key in _compared_keys(sweep):
            continue
        for is_high in (False, True):
            command = _command(sweep, axis, numbers, is_high=is_high)
            if command is None:
                continue
            levels = [
                spelled_combination(line["compared"][0])
                if line.get("compared")
                else f"trial {line['trial']}"
                for line in sweep.state["confirmed"]
                if axis.key in line["point"]
                and _is_on_edge(axis, numbers, float(line["point"][axis.key]), is_high=is_high)
            ]
            if levels:
                end = numbers[-1] if is_high else numbers[0]
                notes.append(
                    f"{axis.key}={end:g}, the {'largest' if is_high else 'smallest'} that was tried, is the "
                    f"best for {'; '.join(levels)}: a better one may lie beyond. This tries it, and trains "
                    f"nothing again: {command}"
                )
    return notes


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
    try:
        return sorted(float(text) for text in axis.choices or ())
    except ValueError:
        return []


def _is_on_edge(axis: Axis, numbers: Sequence[float], value: float, *, is_high: bool) -> bool:
    end = numbers[-1] if is_high else numbers[0]
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


def _command(
    sweep: SweepData, axis: Axis, numbers: Sequence[float], *, is_high: bool
) -> str | None:
    """Return what looks beyond an end; None where an axis of whole numbers has nothing there."""
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
    return f"harness sweep {asked} {override} name={sweep.name}_wider"
