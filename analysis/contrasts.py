"""A question's contrasts as its confirmation answers them: tested as one family, with interactions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.cells import MISSING, Cell, Column, ColumnKind, Table
from analysis.compare import bounds, compared_cells, p_text
from analysis.crossed import Crossed, crossed_difference
from analysis.figures.cells import counts, value_of
from analysis.footnotes import how_tested
from analysis.frame import ROWS, Role, Row
from analysis.inference import Family, Tested, Verdict, family_of, interaction_p
from analysis.printing import Scale, scale_of
from analysis.sources import SweepData
from analysis.statistics import holm
from harness.errors import RequestError
from harness.question.compare import Compare, Contrast, contrasts_of, read_compare
from harness.question.entries import Entries, read_axes
from harness.question.points import Point, Space
from harness.records.metrics import METRICS, Direction
from harness.records.scores import RowScores

WORDS = {
    True: {Verdict.above: "worse", Verdict.below: "better"},
    False: {Verdict.above: "better", Verdict.below: "worse"},
}
"""Whether smaller is better -> what a level is that lies above or below its reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One contrast with what its seeds say."""

    contrast: Contrast
    tested: Tested | None
    """None where one side was not confirmed, or no run of it has a value."""
    missing: str
    """Why it was not tested; empty where it was."""
    by_seed: dict[Any, float]
    """Seed -> level minus reference; of untrained runs, which no seed changes, test row -> the same."""
    of_rows: bool
    """Whether test rows are the replicates."""
    crossed: Crossed | None
    """The same over seeds and test rows; None where the scores of rows are not known."""
    run_ids: tuple[str, ...]
    tried: tuple[int, int]
    """Cells of the search of which each side's is the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """All contrasts of a question, tested as one family."""

    metric: str
    smaller_is_better: bool
    margin: float | None
    compares: tuple[Compare, ...]
    compared: tuple[tuple[Compared, ...], ...]
    """For each of `compares`, in the order of the space."""
    family: Family
    interactions: dict[tuple[str, str, str], float | None]
    """(axis, level, reference) -> Holm-adjusted p that the contrast is the same within all of `per`."""

    @property
    def all(self) -> list[Compared]:
        """The contrasts of every comparison."""
        return [each for of_compare in self.compared for each in of_compare]

    @property
    def scale(self) -> Scale:
        """How differences are printed."""
        found = [each.tested.difference for each in self.all if each.tested is not None]
        return scale_of(self.metric, found)

    def word(self, tested: Tested) -> str:
        """What the level is beside its reference."""
        if tested.verdict is Verdict.equivalent:
            return "equivalent"
        return WORDS[self.smaller_is_better].get(tested.verdict, "not decided")


def answered(sweep: SweepData) -> Answered | None:
    """Test the contrasts that a sweep's question names; None where there are none, or no confirmation."""
    try:
        space = Space(read_axes(Entries(axes=dict(sweep.asked.get("space") or {}))))
        compares = read_compare(sweep.asked.get("compare"), space, "")
    except RequestError:
        return None
    rows = sweep.rows_of(Role.confirmation)
    if not compares or not rows:
        return None
    metric, direction = next(iter(sweep.objectives.items()))
    of_place = _by_place(sweep, rows)
    compared = [
        [
            _compared(contrast, compare, of_place, metric, sweep)
            for contrast in contrasts_of(compare, space)
        ]
        for compare in compares
    ]
    margin = sweep.asked.get("margin")
    flat = [each for of_compare in compared for each in of_compare]
    family = family_of([list(each.by_seed.values()) for each in flat], margin)
    tested = iter(family.tested)
    whole = tuple(
        tuple(replace(each, tested=next(tested)) for each in of_compare) for of_compare in compared
    )
    return Answered(
        metric=metric,
        smaller_is_better=Direction(direction) is Direction.minimize,
        margin=margin,
        compares=compares,
        compared=whole,
        family=family,
        interactions=_interactions(flat),
    )


_Place = tuple[tuple[str, str], ...]


def _by_place(sweep: SweepData, rows: Sequence[Row]) -> dict[_Place, list[Row]]:
    """Return the confirmed runs of each compared combination."""
    of_trial: dict[int, list[Row]] = {}
    for row in rows:
        of_trial.setdefault(row["trial"], []).append(row)
    return {
        _place(combination): of_trial.get(line["trial"], [])
        for line in sweep.state["confirmed"]
        for combination in line.get("compared") or ()
    }


def _place(combination: Mapping[str, str]) -> _Place:
    return tuple(sorted(combination.items()))


def _compared(
    contrast: Contrast,
    compare: Compare,
    of_place: Mapping[_Place, Sequence[Row]],
    metric: str,
    sweep: SweepData,
) -> Compared:
    sides = [of_place.get(_place(side), ()) for side in contrast.sides]
    values = [_by_seed(side, metric) for side in sides]
    shared = {seed: values[0][seed] - values[1][seed] for seed in values[0] if seed in values[1]}
    by_row = _by_row(sides, metric) if shared else {}
    missing = "" if shared else _why_missing(contrast, sides, values)
    return Compared(
        contrast=contrast,
        tested=None,
        missing=missing,
        by_seed=by_row or shared,
        of_rows=bool(by_row),
        crossed=None if by_row else _crossed(sides, metric),
        run_ids=tuple(row["run_id"] for side in sides for row in side),
        tried=tuple(_tried(sweep, side, compare.axes) for side in contrast.sides),  # pyright: ignore[reportArgumentType]
    )


def _by_seed(rows: Sequence[Row], metric: str) -> dict[Any, float]:
    found = {row["seed"]: value_of(row, metric) for row in rows if counts(row, metric)}
    return {seed: value for seed, value in found.items() if value is not None}


def _by_row(sides: Sequence[Sequence[Row]], metric: str) -> dict[Any, float]:
    """Return the differences of each test row where nothing was trained; else none.

    Rows weigh by their tokens: these are the ratio's linear form, whose mean is the difference of the means
    and varies over rows as that does.
    """
    one = [next((row for row in side if counts(row, metric)), None) for side in sides]
    if any(row is None or row.get("optim.steps") != 0 for row in one):
        return {}
    of_rows: list[RowScores | None] = [
        None if row is None else row.get(f"{ROWS}{metric}") for row in one
    ]
    a, b = of_rows
    if a is None or b is None or (a.rows, a.weights) != (b.rows, b.weights):
        return {}
    rows, whole = len(a.weights), sum(a.weights)
    if not whole:
        return {}
    mean = math.fsum((*a.sums, *(-each for each in b.sums))) / whole
    return {
        row: mean + (x - y - mean * weight) * rows / whole
        for row, x, y, weight in zip(a.rows, a.sums, b.sums, a.weights, strict=True)
    }


def _crossed(sides: Sequence[Sequence[Row]], metric: str) -> Crossed | None:
    scores = [
        {row["seed"]: row.get(f"{ROWS}{metric}") for row in side if counts(row, metric)}
        for side in sides
    ]
    pairs = [(scores[0][seed], scores[1].get(seed)) for seed in scores[0]]
    return crossed_difference([(a, b) for a, b in pairs if a is not None and b is not None])


def _why_missing(
    contrast: Contrast, sides: Sequence[Sequence[Row]], values: Sequence[Mapping[Any, float]]
) -> str:
    for level, side, found in zip((contrast.level, contrast.reference), sides, values, strict=True):
        if not side:
            return f"no cell with {contrast.axis}={level} was measured and kept the constraints"
        if not found:
            statuses = sorted({row["status"].value.replace("_", " ") for row in side})
            return f"{contrast.axis}={level}: {', '.join(statuses)}"
    return "no seed has both"


def _tried(sweep: SweepData, combination: Point, axes: Sequence[str]) -> int:
    """Return how many cells of the search had these levels and a value."""
    points = {
        tuple(trial["point"].items())
        for trial in sweep.state["trials"]
        if trial["status"] == "completed"
        and all(trial["point"].get(key) == combination.get(key) for key in axes)
    }
    return len(points)


def _interactions(compared: Sequence[Compared]) -> dict[tuple[str, str, str], float | None]:
    """Test whether each contrast is the same within all levels of `per`; adjusted over the contrasts."""
    groups: dict[tuple[str, str, str], list[dict[Any, float]]] = {}
    for each in compared:
        contrast = each.contrast
        if contrast.within and each.by_seed:
            key = (contrast.axis, contrast.level, contrast.reference)
            groups.setdefault(key, []).append(each.by_seed)
    raw = []
    for columns in groups.values():
        seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
        raw.append(interaction_p([[column[seed] for column in columns] for seed in seeds]))
    return dict(zip(groups, holm(raw), strict=True))


# The table ----------------------------------------------------------------------------------------


def contrasts_table(found: Answered, title: str) -> Table:
    """Return a line for each contrast: difference, interval, p, and in a word what it shows."""
    scale = found.scale
    per = list(dict.fromkeys(key for each in found.all for key in each.contrast.within))
    axes = list(dict.fromkeys(each.contrast.axis for each in found.all))
    key, number = ColumnKind.key, ColumnKind.statistic
    label = METRICS[found.metric].label
    columns = [
        Column(key="axis", label="axis", kind=key),
        Column(key="level", label="level", kind=key),
        Column(key="reference", label="beside", kind=key),
        *(Column(key=name, label=name, kind=key) for name in per),
        Column(key="n", label="n", kind=ColumnKind.count),
        Column(key="difference", label=f"Δ {label}", unit=scale.unit, kind=number),
        Column(key="interval", label="interval", kind=number),
        *_rows_column(found),
        Column(key="p", label="p (Holm)", kind=number),
    ]
    if found.margin is not None:
        columns.append(Column(key="p equivalence", label="p (TOST)", kind=number))
    columns.append(Column(key="verdict", label="verdict", kind=number))
    lines = [_line(found, each, per, scale) for each in found.all]
    if len(axes) == 1:
        columns, lines = columns[1:], [line[1:] for line in lines]
        columns[0] = Column(key="level", label=axes[0], kind=key)
    return Table(
        name="contrasts", title=title, columns=columns, rows=lines, footnotes=list(_notes(found))
    )


def _rows_column(found: Answered) -> list[Column]:
    """Return the column of the intervals over seeds and rows, where a contrast has one."""
    if all(each.crossed is None for each in found.all):
        return []
    return [Column(key="interval over rows", label="over rows too", kind=ColumnKind.statistic)]


def _line(found: Answered, each: Compared, per: Sequence[str], scale: Scale) -> list[Cell]:
    contrast, tested, ids = each.contrast, each.tested, each.run_ids
    keys = [contrast.axis, contrast.level, contrast.reference]
    keys += [contrast.within.get(key, MISSING) for key in per]
    cells = [Cell(text=text) for text in keys]
    if tested is None:
        dashes = 4 + (found.margin is not None) + len(_rows_column(found))
        return [*cells, *([Cell(text=MISSING)] * dashes), Cell(text=each.missing, run_ids=ids)]
    cells.append(Cell(text=str(tested.n), number=str(tested.n), n=tested.n, run_ids=ids))
    difference, interval, p = compared_cells(tested, scale, ids)
    over_rows = [Cell(text=MISSING)] * len(_rows_column(found))
    if each.crossed is not None:
        wide = each.crossed.interval(tested.confidence)
        over_rows = [Cell(text=bounds(wide.low, wide.high, scale), n=tested.n, run_ids=ids)]
    cells += [difference, interval, *over_rows, p]
    if found.margin is not None:
        p = tested.equivalence_p
        cells.append(Cell(text=MISSING if p is None else p_text(p), n=tested.n, run_ids=ids))
    return [*cells, Cell(text=verdict_text(found, tested), n=tested.n, run_ids=ids)]


def verdict_text(found: Answered, tested: Tested) -> str:
    """Return what a contrast shows, in a few words."""
    word = found.word(tested)
    if tested.verdict is Verdict.undecided:
        return word if tested.needed is None else f"{word}: n ≈ {tested.needed}"
    within = tested.within_margin and tested.verdict is not Verdict.equivalent
    return f"{word}, within the margin" if within else word


def _notes(found: Answered) -> list[str]:
    pairs = [each.tested.n for each in found.all if each.tested is not None]
    notes = [
        "Each side is the best cell of its level by the search, trained again on fresh seeds; Δ is level "
        "minus reference, paired over seeds."
    ]
    tried = sorted({count for each in found.all for count in each.tried})
    if tried == [1]:
        notes.append("Tuning: none, a level has one cell.")
    elif tried:
        among = str(tried[0]) if len(tried) == 1 else f"{tried[0]} to {tried[-1]}"
        unequal = "" if len(tried) == 1 else " (unequal: the best of more is better by chance)"
        notes.append(f"Tuning: the best of {among} cells of the search for each level{unequal}.")
    if any(each.of_rows for each in found.all):
        notes[0] = (
            "Nothing is trained, so no seed changes anything: the test rows are the replicates, and Δ "
            "is level "
            "minus reference, paired over rows."
        )
    if pairs and min(pairs) >= 2:
        notes.append(how_tested("all contrasts", min(pairs), found.family.method))
    if found.margin is not None:
        notes.append(
            f"Equivalent: two one-sided tests (Schuirmann 1987) within ±{found.margin:g} "
            f"{METRICS[found.metric].unit}, the question's margin, Holm-adjusted."
        )
    if _rows_column(found):
        rows = sorted({each.crossed.rows for each in found.all if each.crossed is not None})
        notes.append(
            f"Interval: over seeds, on these test rows. Over rows too: what other seeds and other rows would "
            f"give, both crossed ({' or '.join(map(str, rows))} rows; variance from the two-way mean "
            "squares, Satterthwaite's degrees of freedom), at the same level."
        )
    depends: dict[tuple[str, str], list[str]] = {}
    for (axis, level, reference), p in found.interactions.items():
        per = ", ".join(dict.fromkeys(k for c in found.compares if c.axis == axis for k in c.per))
        shown = MISSING if p is None else p_text(p)
        depends.setdefault((axis, per), []).append(f"{level} beside {reference} {shown}")
    notes += [
        f"Whether a difference of {axis} depends on {per}, p: {', '.join(shown)} (repeated measures, "
        "Greenhouse and Geisser 1959, Holm)."
        for (axis, per), shown in depends.items()
    ]
    return notes
