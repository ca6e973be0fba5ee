"""What a study remembers of its question: a study answers one question, and says so when it gets another."""

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from harness.errors import RequestError, near_names
from harness.question.question import Question, comparable, refuse_another
from harness.study.database import MirroredStorage

_ASKED_KEY = "asked"
_SEARCHED_KEY = "searched_with"
_NAMES_KEY = "study:metric_names"  # where Optuna's plots look for them

_QUESTION_KEY = "question"
_ADVICE = "ask as before, or give the sweep another name"


def find_or_create(database: RDBStorage, question: Question) -> int:
    """Return the database's id of the question's study.

    Raises:
        RequestError: there is a study of that name with other objectives.
    """
    directions = [StudyDirection[each.direction.value.upper()] for each in question.objectives]
    try:
        row = database.get_study_id_from_name(question.name)
    except KeyError:
        return database.create_new_study(directions, question.name)
    found = database.get_study_directions(row)
    if found != directions:
        raise RequestError(
            f"the study {question.name} has the objectives {_spelled(found)}, and {_spelled(directions)}"
            f" is asked; {_ADVICE}"
        )
    return row


def mark_or_compare(
    storage: MirroredStorage,
    question: Question,
    sampler: Mapping[str, Any],
    pruner: Mapping[str, Any],
    *,
    asks: bool,
) -> None:
    """Write what is asked, and the settings of sampler and pruner, into a new study; compare with an old one.

    `comparable` says what may change. `asks`: keep the question as it is asked now for members that join.

    Raises:
        RequestError: the study was asked something else.
    """
    notes = storage.get_study_user_attrs(storage.study_id)
    asked = as_json(comparable(question))
    if _ASKED_KEY in notes:
        refuse_another(f"the study {question.name}", notes[_ASKED_KEY], asked)
    elif storage.get_all_trials(storage.study_id, deepcopy=False):
        raise RequestError(
            f"the study {question.name} was made by another program; move its database away, or give the"
            " sweep another name"
        )
    else:  # new, or its maker was killed here
        names = [objective.metric for objective in question.objectives]
        storage.set_study_system_attr(storage.study_id, _NAMES_KEY, names)
        storage.set_study_user_attr(storage.study_id, _ASKED_KEY, asked)
    tree = as_json(question.tree())
    if (asks or _QUESTION_KEY not in notes) and notes.get(_QUESTION_KEY) != tree:
        storage.set_study_user_attr(storage.study_id, _QUESTION_KEY, tree)
    searched = as_json({"optuna": optuna.__version__, "sampler": sampler, "pruner": pruner})
    earlier = notes.get(_SEARCHED_KEY, [])
    if not earlier or earlier[-1] != searched:
        storage.set_study_user_attr(storage.study_id, _SEARCHED_KEY, [*earlier, searched])


def question_in(database: RDBStorage, name: str) -> dict[str, Any]:
    """Return the tree of the question that the study of a sweep was last asked.

    Raises:
        RequestError: there is no such study.
    """
    known = {study.study_name: study._study_id for study in database.get_all_studies()}
    if name not in known:
        raise RequestError(
            f"no sweep {name!r} has begun in this database{near_names(name, known)}; there are: "
            f"{', '.join(sorted(known)) or 'none'}; `harness sweep` begins one"
        )
    tree = database.get_study_user_attrs(known[name]).get(_QUESTION_KEY)
    if tree is None:
        raise RequestError(
            f"the study {name!r} was begun by another program, or has just begun; try again"
        )
    return tree


def as_json(value: Any) -> Any:
    """Return a value as it reads back from JSON."""
    return json.loads(json.dumps(value))


def _spelled(directions: list[StudyDirection]) -> str:
    return " and ".join(direction.name.lower() for direction in directions)
