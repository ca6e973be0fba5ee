"""What a question compares: which levels of an axis, within what, and what is expected of each. Pure.

`compare: {lora.rank: steps, per: quant, expected: equivalent}` in a sweep's file, or a list of such mappings.
The search gives each compared level as many trials, the confirmation takes each level's best, and the report
answers with these contrasts. Must not import torch or optuna.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, pairwise
from typing import Any

from harness.errors import RequestError, near_names
from harness.question.axes import Axis
from harness.question.points import Point, Space
from harness.question.values import normalized

EACH, STEPS = "each", "steps"
_PER, _EXPECTED = "per", "expected"
EXAMPLE = "{lora.rank: steps, per: quant, expected: equivalent}"


class Expected(Enum):
    """What a level is expected to be beside the one that it is compared with."""

    better = "better"
    worse = "worse"
    equivalent = "equivalent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two levels of one axis, everything else that is compared being equal."""

    axis: str
    level: str
    reference: str
    within: Point
    """The levels of `per`; empty where nothing is named there."""
    expected: Expected | None = None

    @property
    def sides(self) -> tuple[Point, Point]:
        """The combination of the level, and of the reference."""
        return (
            {self.axis: self.level, **self.within},
            {self.axis: self.reference, **self.within},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """The contrasts of one axis."""

    axis: str
    between: str
    """`each` (all pairs of levels), `steps` (each with the one before), or the level of reference."""
    per: tuple[str, ...] = ()
    """Axes within whose levels the contrasts are made; whether they differ between those is tested."""
    expected: tuple[tuple[str, Expected], ...] = ()
    """Level -> what it is expected to be beside its reference."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The compared axis and those within which it is compared."""
        return (self.axis, *self.per)

    def tree(self) -> dict[str, Any]:
        """Return the mapping that reads back as this."""
        tree: dict[str, Any] = {self.axis: self.between}
        if self.per:
            tree[_PER] = list(self.per)
        if self.expected:
            tree[_EXPECTED] = {level: word.value for level, word in self.expected}
        return tree


def read_compare(
    given: Any, space: Space, where: str, changed: Collection[str] = ()
) -> tuple[Compare, ...]:
    """Read `compare`. Raises RequestError for an axis, a level or a word that is none.

    `changed`: axes that the command line has fixed or given other values, which a file cannot know: a
    comparison of one that is no axis any more is left out, and so is what was expected of a level that is
    gone.
    """
    if given is None:
        return ()
    listed = given if isinstance(given, list) else [given]
    if not listed or not all(isinstance(each, Mapping) for each in listed):
        raise RequestError(
            f"{where}compare must be a mapping such as {EXAMPLE}, or a list of them, got {given!r}"
        )
    read = (_read_one(each, space, where, changed) for each in listed)
    return tuple(each for each in read if each is not None)


def _read_one(
    given: Mapping[str, Any], space: Space, where: str, changed: Collection[str]
) -> Compare | None:
    axes = {axis.key: axis for axis in space.axes}
    named = [str(key) for key in given if key not in (_PER, _EXPECTED)]
    if len(named) != 1:
        raise RequestError(
            f"{where}compare names one axis, got {', '.join(named) or 'none'}; write {EXAMPLE}, and a list "
            "of such mappings for several"
        )
    axis = named[0]
    per = given.get(_PER) or []
    per = [per] if isinstance(per, str) else list(per)
    per = [key for key in per if key in axes or key not in changed]
    if axis in changed and (axis not in axes or len(axes[axis].choices or ()) == 1):
        return None
    for key in (axis, *per):
        _check_axis(str(key), axes, where)
    if axis in per or len(set(per)) < len(per):
        raise RequestError(f"{where}compare: {axis} per {', '.join(per)} names an axis twice")
    levels = axes[axis].choices or ()
    between = given[axis] if given[axis] in (EACH, STEPS) else _level(given[axis], levels)
    if between not in (EACH, STEPS, *levels):
        known = (EACH, STEPS, *levels)
        raise RequestError(
            f"{where}compare: {axis}: {between} is none of {', '.join(known)}{near_names(between, known)}"
        )
    if len(levels) < 2:
        raise RequestError(
            f"{where}compare: {axis} has one level, {', '.join(levels)}: nothing to compare"
        )
    return Compare(
        axis=axis,
        between=between,
        per=tuple(per),
        expected=_read_expected(
            given.get(_EXPECTED), axis, between, levels, where, lenient=axis in changed
        ),
    )


def _level(value: Any, levels: Sequence[str]) -> str:
    """Return how a value is spelled in a point: YAML's `5e-3` is the axis' 0.005."""
    return value if value in levels else normalized(value)


def _check_axis(key: str, axes: Mapping[str, Axis], where: str) -> None:
    if key not in axes:
        raise RequestError(
            f"{where}compare: {key!r} is no axis of this space{near_names(key, axes)}; its axes are "
            f"{', '.join(axes) or 'none'}"
        )
    if axes[key].choices is None:
        raise RequestError(
            f"{where}compare: {axes[key].described} has no levels; write choice(a, b) or range(start, stop, "
            "step) there, or leave it to be tuned"
        )


def _read_expected(
    given: Any, axis: str, between: str, levels: Sequence[str], where: str, *, lenient: bool
) -> tuple[tuple[str, Expected], ...]:
    if given is None:
        return ()
    words = list(Expected.__members__)
    if between == EACH:
        raise RequestError(
            f"{where}compare.expected needs a reference, and {EACH} compares every pair of {axis}; name a "
            f"level in its place, or write {STEPS}"
        )
    if isinstance(given, str):
        given = dict.fromkeys(_levels_beside_reference(between, levels), given)
    if not isinstance(given, Mapping):
        raise RequestError(
            f"{where}compare.expected must be one of {', '.join(words)}, or a mapping of levels of {axis} to "
            f"them, got {given!r}"
        )
    found = []
    for key, word in given.items():
        level = _level(key, levels)
        if lenient and level not in _levels_beside_reference(between, levels):
            continue
        if level not in _levels_beside_reference(between, levels):
            raise RequestError(
                f"{where}compare.expected: {level} is no level of {axis} that is compared with another; "
                f"there are {', '.join(_levels_beside_reference(between, levels))}"
            )
        if word not in words:
            raise RequestError(
                f"{where}compare.expected: {level}: {word} is none of {', '.join(words)}"
                f"{near_names(str(word), words)}"
            )
        found.append((level, Expected[word]))
    return tuple(found)


def _levels_beside_reference(between: str, levels: Sequence[str]) -> list[str]:
    if between == STEPS:
        return list(levels[1:])
    return [level for level in levels if level != between]


# What follows from it ------------------------------------------------------------------------------


def combinations_of(compare: Compare, space: Space) -> list[Point]:
    """Return every combination of levels that the contrasts need, each once, in the order of the space.

    Points that lack one of the axes have nothing to be compared in it.
    """
    return _projected(compare.axes, space, needs=compare.axes)


def quota_combinations(compares: Sequence[Compare], space: Space) -> list[Point]:
    """Return the combinations of all compared levels, between which a search shares its trials evenly."""
    keys = dict.fromkeys(key for compare in compares for key in compare.axes)
    return _projected(tuple(keys), space, needs=())


def _projected(keys: Sequence[str], space: Space, needs: Sequence[str]) -> list[Point]:
    """Return the levels of `keys` that points have together; axes that decide which exist come with them."""
    deciding = set(keys)
    for axis in reversed(space.axes):
        if axis.key in deciding and axis.condition is not None:
            deciding.add(axis.condition.key)
    part = Space(tuple(axis for axis in space.axes if axis.key in deciding))
    found = {}
    for point in part.points():
        combination = {key: point[key] for key in keys if key in point}
        if combination and all(key in combination for key in needs):
            found.setdefault(tuple(combination.items()), combination)
    return list(found.values())


def contrasts_of(compare: Compare, space: Space) -> list[Contrast]:
    """Return the contrasts in the order of the space, within each combination of `per`."""
    by_place: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for combination in combinations_of(compare, space):
        within = {key: combination[key] for key in compare.per}
        by_place.setdefault(tuple(within.items()), []).append(combination[compare.axis])
    expected = dict(compare.expected)
    return [
        Contrast(
            axis=compare.axis,
            level=level,
            reference=reference,
            within=dict(place),
            expected=expected.get(level),
        )
        for place, levels in by_place.items()
        for reference, level in _pairs(compare.between, levels)
    ]


def _pairs(between: str, levels: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yield reference and level."""
    if between == EACH:
        return combinations(levels, 2)
    if between == STEPS:
        return pairwise(levels)
    return [(between, level) for level in levels if level != between and between in levels]


def matches(point: Mapping[str, str], combination: Mapping[str, str], axes: Iterable[str]) -> bool:
    """Whether a point has exactly these levels of the axes: an axis that it lacks is one that they lack."""
    return all(point.get(key) == combination.get(key) for key in axes)


def spelled_combination(combination: Mapping[str, str]) -> str:
    """Return levels in words: `lora.rank=2, quant=nf4`."""
    return ", ".join(f"{key}={level}" for key, level in combination.items())


def _tuned(compare: Compare, space: Space) -> list[str]:
    """Return the axes that vary beside the compared ones, wherever those exist."""
    compared = [axis for axis in space.axes if axis.key in compare.axes]
    needed = [axis.condition for axis in compared if axis.condition is not None]
    tuned = []
    for axis in space.axes:
        own = axis.condition
        excluded = any(
            own is not None and own.key == each.key and not own.values & each.values
            for each in needed
        )
        if axis not in compared and not excluded and axis.key not in {each.key for each in needed}:
            tuned.append(axis.key)
    return tuned


def described(compare: Compare, space: Space) -> list[str]:
    """Say in words what will be compared, for `--dry-run`."""
    contrasts = contrasts_of(compare, space)
    pairs = dict.fromkeys(f"{each.level} with {each.reference}" for each in contrasts)
    places = dict.fromkeys(tuple(each.within.items()) for each in contrasts)
    words = f"compare: {compare.axis} {', '.join(pairs)}"
    if compare.per:
        within = "; ".join(spelled_combination(dict(place)) for place in places)
        words += f", each within {len(places)} ({within}): {len(contrasts)} comparisons"
    lines = [words]
    if compare.per and len(places) > 1:
        lines.append(f"  and whether these differ between the levels of {', '.join(compare.per)}")
    if compare.expected:
        expected = ", ".join(f"{level} {word.value}" for level, word in compare.expected)
        lines.append(f"  expected: {expected}")
    tuned = _tuned(compare, space)
    if tuned:
        lines.append(f"  each level at its best {', '.join(tuned)} of the search")
    return lines
