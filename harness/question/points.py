"""Which points a space of axes has, and what each asks for. Pure: imports neither Hydra nor Optuna."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from harness.errors import RequestError, near_names
from harness.question.axes import Axis, CaseAxis, NumberAxis

Point: TypeAlias = dict[str, str]
"""Key of an axis (of cases: its label) -> the value, as it is spelled in Hydra's override grammar."""


@dataclass(frozen=True, slots=True)
class Space:
    """Axes, the later ones under conditions on earlier ones."""

    axes: tuple[Axis, ...]

    def points(self) -> Iterator[Point]:
        """Yield every point once, the last axis fastest.

        An axis with a condition takes its values only where the condition holds; elsewhere it is no part of
        the point. Raises RequestError if there is an interval.
        """
        for axis in self.axes:
            if axis.choices is None:
                raise RequestError(
                    f"{axis.described} has no grid; write choice(a, b) or range(start, stop, step), or "
                    "search.method=random, tpe, gp, nsga2 or cmaes"
                )
        yield from self._points_after({}, 0)

    def _points_after(self, begun: Point, index: int) -> Iterator[Point]:
        if index == len(self.axes):
            yield begun
            return
        axis = self.axes[index]
        if axis.condition is not None and not axis.condition.holds(begun):
            yield from self._points_after(begun, index + 1)
            return
        for value in axis.choices or ():
            yield from self._points_after({**begun, axis.key: value}, index + 1)

    @property
    def num_points(self) -> int | None:
        """How many points there are; none where there is an interval. Counts, and does not make them."""
        if any(axis.choices is None for axis in self.axes):
            return None
        named = {axis.condition.key for axis in self.axes if axis.condition is not None}
        deciding = Space(tuple(axis for axis in self.axes if axis.key in named))
        others = [axis for axis in self.axes if axis.key not in named]
        return sum(
            math.prod(
                len(axis.choices or ())
                for axis in others
                if axis.condition is None or axis.condition.holds(point)
            )
            for point in deciding.points()
        )

    def overrides(self, point: Mapping[str, str]) -> list[str]:
        """Return the overrides of a point: options of groups first, as Hydra applies them, then fields."""
        given: list[str] = []
        for axis in self.axes:
            if axis.key in point:
                given += _overrides_of(axis, point[axis.key])
        return sorted(given, key=lambda override: "." in override.partition("=")[0])

    def check_point(self, point: Mapping[str, str]) -> None:
        """Refuse what is no point of this space, or no part of one; axes may be left out.

        Raises RequestError that names the axis, what was given, and near names.
        """
        axes = {axis.key: axis for axis in self.axes}
        for key, text in point.items():
            if key not in axes:
                raise RequestError(
                    f"{key!r} is no axis of this space{near_names(key, axes)}; its axes are "
                    f"{', '.join(axes) or 'none'}"
                )
            _check_value(axes[key], text)
            condition = axes[key].condition
            if condition is None or condition.key not in point:
                continue
            if not condition.holds(point):
                raise RequestError(
                    f"{key}={text} with {condition.key}={point[condition.key]}: {axes[key].described}"
                )


def _check_value(axis: Axis, text: str) -> None:
    choices = axis.choices
    if choices is not None:
        if text not in choices:
            near = near_names(text, choices)
            raise RequestError(
                f"{axis.key}={text} is not one of its values{near}; {axis.described}"
            )
        return
    assert isinstance(axis, NumberAxis)
    try:
        value = float(text)
    except ValueError:
        raise RequestError(f"{axis.key}={text} is not a number; {axis.described}") from None
    if not axis.low <= value <= axis.high or (axis.integer and axis.spelled(value) != text):
        raise RequestError(f"{axis.key}={text} is not in its interval; {axis.described}")


def _overrides_of(axis: Axis, text: str) -> list[str]:
    return list(axis.cases[text]) if isinstance(axis, CaseAxis) else [f"{axis.key}={text}"]
