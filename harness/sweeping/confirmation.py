"""Which cells of a search are confirmed: the best of each compared level, and the best of all. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.question.compare import combinations_of, matches
from harness.question.points import Point
from harness.question.power import seeds_for_margin
from harness.question.question import Question
from harness.records.metrics import Direction
from harness.study.study import Study, Trial


@dataclass(slots=True, kw_only=True)
class Chosen:
    """A cell that is to be confirmed, by the first of its trials."""

    trial: Trial
    compared: list[Point] = field(default_factory=list)
    """The combinations of compared levels for which it stands; none for one that is only among the best."""


def most_confirmed(question: Question) -> int:
    """Return how many cells are confirmed at most: several levels may have one best cell."""
    assert question.confirm is not None
    return len(compared_combinations(question)) + question.confirm.top


def compared_combinations(question: Question) -> list[Point]:
    """Return the combinations whose best cells are confirmed, each once though several contrasts need it."""
    found = {
        frozenset(combination.items()): combination
        for compare in question.compare
        for combination in combinations_of(compare, question.space)
    }
    return list(found.values())


def chosen_for_confirmation(study: Study, question: Question) -> list[Chosen]:
    """Return each compared combination's best cell by the first objective, then the best of all.

    A combination no cell of which was measured and keeps the constraints is left out: the report names it.
    """
    assert question.confirm is not None
    sound = study.best(len(study.trials))
    sign = -1.0 if question.objectives[0].direction is Direction.maximize else 1.0
    by_first = sorted(
        sound, key=lambda trial: (sign * (trial.values or (math.inf,))[0], trial.number)
    )
    chosen: dict[str, Chosen] = {}
    for compare in question.compare:
        for combination in combinations_of(compare, question.space):
            of_level = (t for t in by_first if matches(t.point, combination, compare.axes))
            if (best := next(of_level, None)) is not None:
                cell = chosen.setdefault(_cell(best), Chosen(trial=_first(sound, best)))
                cell.compared.append(combination)
    overall = dict.fromkeys(map(_cell, sound))
    for cell in list(overall)[: question.confirm.top]:
        first = next(trial for trial in sound if _cell(trial) == cell)
        chosen.setdefault(cell, Chosen(trial=first))
    return list(chosen.values())


def confirmation_seeds(question: Question, chosen: Iterable[Chosen]) -> tuple[int, ...]:
    """Return the seeds of the confirmation; with `at_most` as many as the chosen cells' spread asks for."""
    confirm, margin = question.confirm, question.margin
    assert confirm is not None
    if confirm.at_most is None or margin is None:
        return confirm.seeds
    most = min(confirm.at_most, len(confirm.seeds))
    noted = [each.trial.notes.get("deviation") for each in chosen]
    squares = [deviation**2 for deviation in noted if deviation is not None]
    if not squares:
        return confirm.seeds[:most]
    deviation = math.sqrt(math.fsum(squares) / len(squares))
    return confirm.seeds[: seeds_for_margin(deviation, margin, most)]


def _cell(trial: Trial) -> str:
    return str(trial.notes.get("cell"))


def _first(sound: list[Trial], like: Trial) -> Trial:
    """Return the first trial of a trial's cell among those that count."""
    return min((t for t in sound if _cell(t) == _cell(like)), key=lambda trial: trial.number)
