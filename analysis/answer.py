"""The answer to a sweep's question in sentences that follow from its tests, and whether it was expected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from analysis.compare import among_best, p_text
from analysis.contrasts import Answered, Compared, answered
from analysis.figures.cells import counts, value_of
from analysis.frame import ALONE, Role, Row
from analysis.inference import ALPHA, Tested, Verdict
from analysis.printing import scale_of
from analysis.sources import SweepData
from analysis.statistics import pareto_front
from harness.question.compare import Expected, spelled_combination
from harness.records.metrics import METRICS, Direction


class Expectation(Enum):
    """What the tests make of the expectation."""

    confirmed = "confirmed"
    refuted = "refuted"
    partly = "partly refuted"
    undecided = "not decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a sweep has found."""

    sentences: tuple[str, ...]
    expectation: Expectation | None
    """None where the question names no expectation of a contrast."""
    answered: Answered | None

    @property
    def text(self) -> str:
        """Everything that was found, in one paragraph."""
        found = " ".join(self.sentences)
        if self.expectation is None:
            return found
        return f"{found} The expectation is {self.expectation.value}."


def answer_of(sweep: SweepData) -> Answer | None:
    """Return the answer by the contrasts that the question names, else by the best of what was confirmed.

    None where nothing is confirmed.
    """
    found = answered(sweep)
    if found is not None:
        return Answer(
            sentences=tuple(_sentences(found)), expectation=_expectation(found), answered=found
        )
    sentence = _best_sentence(sweep)
    if sentence is None:
        return None
    return Answer(sentences=(sentence,), expectation=None, answered=None)


# Contrasts ----------------------------------------------------------------------------------------


def _sentences(found: Answered) -> list[str]:
    """Say of each comparison what is decided, then in one sentence what is not, then what depends on what."""
    sentences = []
    for compare, compared in zip(found.compares, found.compared, strict=True):
        groups: dict[tuple[str, str], list[Compared]] = {}
        for each in compared:
            groups.setdefault((each.contrast.level, each.contrast.reference), []).append(each)
        told, undecided = list[str](), dict[tuple[str, str], list[Compared]]()
        for pair, group in groups.items():
            if all(_is_undecided(each) for each in group):
                undecided[pair] = group
            else:
                told.append(_contrast_sentence(found, compare.axis, *pair, group))
        sentences += told
        if undecided:
            sentences.append(_undecided_sentence(found, compare.axis, undecided))
        sentences += _interaction_sentences(found, compare.axis, compare.per)
    return sentences


def _is_undecided(each: Compared) -> bool:
    return each.tested is not None and each.tested.verdict is Verdict.undecided


def _contrast_sentence(
    found: Answered, axis: str, level: str, reference: str, group: Sequence[Compared]
) -> str:
    """Say what one level is beside another, with the places of `per` that agree taken together."""
    by_word: dict[str, list[Compared]] = {}
    for each in group:
        missing = f"is not compared with {reference} ({each.missing})"
        word = missing if each.tested is None else _word(found, each.tested, reference)
        by_word.setdefault(word, []).append(each)
    parts = []
    for word, places in sorted(by_word.items(), key=lambda part: _is_undecided(part[1][0])):
        within = _within(places, len(group))
        tested = [each.tested for each in places if each.tested is not None]
        if _is_undecided(places[0]):
            parts.append(f"{word}{within}: not decided {_how_undecided(found, tested)}")
        else:
            parts.append(
                f"{word}{_by_how_much(found, tested)}{within}{_on_other_rows(found, places)}"
            )
    return f"{axis}={level} {'; '.join(parts)}."


def _undecided_sentence(
    found: Answered, axis: str, pairs: dict[tuple[str, str], list[Compared]]
) -> str:
    """Say in one sentence which levels are not told apart: what each difference is stands in the table."""
    places = max(pairs.values(), key=len)
    within = _within(places, len(places))
    tested = [each.tested for group in pairs.values() for each in group if each.tested is not None]
    how = _how_undecided(found, tested)
    references = {reference for _, reference in pairs}
    if len(references) == 1:
        (reference,) = references
        levels = [level for level, _ in pairs]
        verb = "is" if len(levels) == 1 else "are"
        return f"{axis}={_listed(levels)} {verb} not told apart from {reference}{within}: not decided {how}."
    levels = [f"{level} from {reference}" for level, reference in pairs]
    return f"{axis}: {_listed(levels)} are not told apart{within}: not decided {how}."


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _on_other_rows(found: Answered, places: Sequence[Compared]) -> str:
    """Say where what these test rows decide might turn out otherwise on others."""
    loose = 0
    for each in places:
        if each.crossed is None or each.tested is None:
            continue
        if each.tested.verdict is Verdict.equivalent:
            assert found.margin is not None, "nothing is equivalent without a margin"
            # Two one-sided tests at 5 % ask whether the 90 % interval lies within the margin.
            interval = each.crossed.interval(1 - 2 * ALPHA)
            ends = (interval.low, interval.high)
            loose += any(end is not None and abs(end) >= found.margin for end in ends)
        elif each.tested.verdict is not Verdict.undecided:
            loose += each.crossed.interval(each.tested.confidence).contains(0.0)
    if not loose:
        return ""
    where = "" if loose == len(places) else f" in {loose} of {len(places)}"
    return f" (on these test rows: with others it could be otherwise{where})"


def _word(found: Answered, tested: Tested, reference: str) -> str:
    """Return what the level is beside its reference, as the rest of a sentence that begins with it."""
    if tested.verdict is Verdict.undecided:
        return f"is not told apart from {reference}"
    if tested.verdict is Verdict.equivalent:
        return f"is equivalent to {reference}"
    within = ", within the margin," if tested.within_margin else ""
    return f"is {found.word(tested)} than {reference}{within}"


def _within(places: Sequence[Compared], of: int) -> str:
    """Say in which levels of `per`: all of one axis by its name, with the levels."""
    named = [each.contrast.within for each in places if each.contrast.within]
    if not named:
        return ""
    axes = list(named[0])
    if len(axes) > 1:
        spelled = [spelled_combination(each) for each in named]
        return (
            f" within each of {of} ({'; '.join(spelled)})"
            if len(places) == of
            else (f" within {'; '.join(spelled)}")
        )
    (axis,) = axes
    levels = [each[axis] for each in named]
    if len(places) == of and of > 1:
        return f" within each {axis} ({', '.join(levels)})"
    return f" within {axis}={_listed(levels)}"


def _by_how_much(found: Answered, tested: Sequence[Tested]) -> str:
    """Return what is decided with its interval; of several, the least, the largest and the hull."""
    if not tested:
        return ""
    scale, unit = found.scale, METRICS[found.metric].unit
    sizes = sorted((each.difference for each in tested), key=abs)
    lows = [each.low for each in tested if each.low is not None]
    highs = [each.high for each in tested if each.high is not None]
    decided = tested[0].verdict in (Verdict.above, Verdict.below)
    first = scale.number(abs(sizes[0])) if decided else scale.signed(sizes[0])
    last = scale.number(abs(sizes[-1])) if decided else scale.signed(sizes[-1])
    amount = first if first == last else f"{first} to {last}"
    unit = f" {scale.unit or unit}".rstrip()
    text = f" by {amount}{unit}" if decided else f" (Δ {amount}{unit})"
    if lows and highs:
        ends = [min(lows), max(highs)]
        if decided:  # all on one side of 0: by how much at least, and at most
            ends = sorted(map(abs, ends))
        text += f" [{', '.join((scale.number if decided else scale.signed)(end) for end in ends)}]"
    return text


def _how_undecided(found: Answered, tested: Sequence[Tested]) -> str:
    """Return the differences, how far their intervals reach, and how many seeds would decide."""
    scale = found.scale
    sizes = sorted(each.difference for each in tested)
    lows = [each.low for each in tested if each.low is not None]
    highs = [each.high for each in tested if each.high is not None]
    ends = dict.fromkeys(scale.signed(size) for size in (sizes[0], sizes[-1]))
    unit = f" {scale.unit or METRICS[found.metric].unit}".rstrip()
    text = f"(Δ {' to '.join(ends)}{unit}"
    if lows and highs:
        text += f" [{scale.signed(min(lows))}, {scale.signed(max(highs))}]"
    needed = [each.needed for each in tested if each.needed is not None]
    if needed:
        text += f"; n would have to be about {max(needed)}, not {tested[0].n}"
    return f"{text})"


def _interaction_sentences(found: Answered, axis: str, per: Sequence[str]) -> list[str]:
    """Say what depends on the levels of `per`, one by one, and that the rest is not shown to."""
    sentences, others = list[str](), list[tuple[str, float]]()
    for (of_axis, level, reference), p in found.interactions.items():
        if of_axis != axis or p is None:
            continue
        what = f"{axis}={level} does beside {reference}"
        if p < ALPHA:
            sentences.append(f"What {what} depends on {', '.join(per)} (p {_is(p)}).")
        else:
            others.append((what, p))
    if len(others) == 1:
        ((what, p),) = others
        sentences.append(f"What {what} is not shown to depend on {', '.join(per)} (p {_is(p)}).")
    elif others:
        least = _is(min(p for _, p in others))
        other = "other " if sentences else ""
        rest = (
            f"Neither {other}difference"
            if len(others) == 2
            else f"None of the {len(others)} {other}differences"
        )
        sentences.append(f"{rest} is shown to depend on {', '.join(per)} (least p {least}).")
    return sentences


def _is(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _expectation(found: Answered) -> Expectation | None:
    """Compare what was expected with what was found; equivalent is within the margin, on either side."""
    asked = [each for each in found.all if each.contrast.expected is not None]
    if not asked:
        return None
    outcomes = [_as_expected(found, each) for each in asked]
    if all(outcome is True for outcome in outcomes):
        return Expectation.confirmed
    if any(outcome is False for outcome in outcomes):
        refuted = all(outcome is False for outcome in outcomes)
        return Expectation.refuted if refuted else Expectation.partly
    return Expectation.undecided


def _as_expected(found: Answered, each: Compared) -> bool | None:
    """Whether a contrast came out as expected; None where it is not decided."""
    tested, expected = each.tested, each.contrast.expected
    if tested is None or expected is None:
        return None
    if expected is Expected.equivalent:
        if tested.within_margin:
            return True
        return False if tested.verdict is not Verdict.undecided else None
    if tested.verdict is Verdict.undecided:
        return None
    return found.word(tested) == expected.value


# Without contrasts --------------------------------------------------------------------------------


def _best_sentence(sweep: SweepData) -> str | None:
    """Say which of the confirmed cells may be the best, by comparisons with the best."""
    rows = sweep.rows_of(Role.confirmation)
    if len(sweep.objectives) > 1:
        return _front_sentence(rows, sweep.objectives)
    metric, direction = next(iter(sweep.objectives.items()))
    cells: dict[int, dict] = {}
    points: dict[int, Row] = {}
    for row in rows:
        value = value_of(row, metric) if counts(row, metric) else None
        if value is not None:
            cells.setdefault(row["trial"], {})[row["seed"]] = value
            points[row["trial"]] = row
    if not cells:
        return None
    sign = 1.0 if Direction(direction) is Direction.minimize else -1.0
    means = {trial: sum(found.values()) / len(found) for trial, found in cells.items()}
    ranked = sorted(means, key=lambda trial: sign * means[trial])
    scale = scale_of(metric, list(means.values()))
    unit = f" {scale.unit}" if scale.unit else ""
    best = ranked[0]
    if len(ranked) == 1:
        return (
            f"The one confirmed cell, {_spelled_point(points[best])}, has {METRICS[metric].label} "
            f"{scale.number(means[best])}{unit}, the mean of n = {len(cells[best])}."
        )
    sentence = (
        f"Best {METRICS[metric].label} of {len(ranked)} confirmed cells: "
        f"{scale.number(means[best])}{unit} with "
        f"{_spelled_point(points[best])}"
    )
    among = dict(
        zip(ranked, among_best([cells[t] for t in ranked], Direction(direction)), strict=True)
    )
    if all(found is None for found in among.values()):
        return f"{sentence}; one seed a cell, so nothing says whether it is better than the others."
    tied = [t for t in ranked[1:] if (found := among[t]) is not None and found.may_be_best]
    if not tied:
        return f"{sentence}; the others are set apart from it."
    others = "; ".join(f"{scale.number(means[t])} with {_spelled_point(points[t])}" for t in tied)
    return f"{sentence}; {len(tied)} of the others may be as good or better: {others}."


def _front_sentence(rows: Sequence[Row], objectives: Mapping[str, str]) -> str | None:
    """Say which of the confirmed cells no other beats in every objective, by the mean of each."""
    cells: dict[int, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["trial"], []).append(row)
    means = {
        trial: [_mean_alone(of_cell, metric) for metric in objectives]
        for trial, of_cell in cells.items()
    }
    known = {
        trial: [value for value in values if value is not None]
        for trial, values in means.items()
        if None not in values
    }
    if not known:
        return None
    trials, points = list(known), list(known.values())
    front = [
        trials[index] for index in pareto_front(points, list(map(Direction, objectives.values())))
    ]
    front.sort(key=lambda trial: known[trial][-1])
    scales = [
        scale_of(metric, [point[index] for point in points])
        for index, metric in enumerate(objectives)
    ]
    told = []
    for trial in front:
        numbers = [
            f"{scale.number(value)} {scale.unit}".rstrip()
            for scale, value in zip(scales, known[trial], strict=True)
        ]
        told.append(f"{' and '.join(numbers)} with {_spelled_point(cells[trial][0])}")
    labels = " and ".join(METRICS[metric].label for metric in objectives)
    count = f"{len(front)} of {len(known)} confirmed cells {'is' if len(front) == 1 else 'are'}"
    return f"{count} on the front of {labels}, by the means: {'; '.join(told)}."


def _mean_alone(rows: Sequence[Row], metric: str) -> float | None:
    """Return the mean of a metric; of a cost what a probe measured where runs shared a process."""
    found = [
        value_of(row, metric) if counts(row, metric) else row.get(ALONE + metric) for row in rows
    ]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def _spelled_point(row: Row) -> str:
    return spelled_combination(row["point"]) or f"trial {row['trial']}"
