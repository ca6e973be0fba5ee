"""Where a study is kept: a database that any reader may open, mirrored in the memory of who writes it.

Samplers and pruners read all trials again and again; the mirror makes that free, and lets a trial reach the
database whole, in one transaction, when its point is complete. Several members of one sweep write in turn
(`harness.study.leases`), each after it has read what the others wrote. A study answers one question, which
it remembers, and says so when it is asked another.
"""

import copy
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.errors import RequestError, RunFailed, first_line, near_names
from harness.question.entries import Entries, read_axes
from harness.question.points import Space
from harness.question.question import Question, comparable, refuse_another
from harness.question.widen import can_grow_to, contains
from harness.records.redact import redact
from harness.study.leases import lock_of
from harness.study.trial import distribution_of

_BUSY_SECONDS = 60  # how long to wait for a reader that writes, as optuna-dashboard does for a note

_FIRST_TABLES = {
    "studies",
    "version_info",
}  # of Optuna's, also when it was killed while making them

_SERVER_SETTINGS = {
    "pool_pre_ping": True,  # a sweep may say nothing for longer than a server waits
    # whoever stops in the middle of a transaction keeps its locks for 10 s
    "connect_args": {"options": "-c idle_in_transaction_session_timeout=10000"},
    "pool_size": 1,  # a server has a hundred connections, unless it is told otherwise
    "max_overflow": 3,
}

_TRANSIENT = ("tpe:relative_params", "gp:relative_params")
"""Attributes that samplers leave for other processes that ask at the same time; there are none."""


_ASKED_KEY = "asked"
_SEARCHED_KEY = "searched_with"
_NAMES_KEY = "study:metric_names"  # where Optuna's plots look for them

QUESTION_KEY = "question"
_ADVICE = "ask as before, or give the sweep another name"


class MirroredStorage(InMemoryStorage):
    """One study of a database, read once; then every change goes to the database and to memory.

    The newest trial is a draft, in memory only, until `keep_draft` writes it.
    """

    def __init__(self, database: RDBStorage, study_row: int) -> None:
        super().__init__()
        self._database = database
        self._study_row = study_row
        self._rows: dict[int, int] = {}
        """The database's id of each trial, by the one in memory; a draft has none."""
        name = database.get_study_name_from_id(study_row)
        self.study_id = super().create_new_study(database.get_study_directions(study_row), name)
        for key, value in database.get_study_user_attrs(study_row).items():
            super().set_study_user_attr(self.study_id, key, value)
        self.refresh()

    def refresh(self) -> list[int]:
        """Read what other processes have written since; returns the numbers of the trials that differ."""
        for key, value in self._database.get_study_user_attrs(self._study_row).items():
            super().set_study_user_attr(self.study_id, key, value)
        for key, value in self._database.get_study_system_attrs(self._study_row).items():
            super().set_study_system_attr(self.study_id, key, value)
        newest = max(self._rows.values(), default=-1)
        running = {
            row for here, row in self._rows.items() if not self.get_trial(here).state.is_finished()
        }
        found = self._database._get_trials(self._study_row, None, running, newest)
        changed = []
        for trial in sorted(found, key=lambda each: each.number):
            number = trial.number
            if number >= len(self._rows):
                here = super().create_new_trial(self.study_id, trial)
                self._rows[here] = trial._trial_id
                changed.append(number)
            elif self._take_over(
                self.get_trial_id_from_study_id_trial_number(self.study_id, number), trial
            ):
                changed.append(number)
        return changed

    def _take_over(self, here: int, there: FrozenTrial) -> bool:
        """Bring the mirror of a running trial up to what the database says; returns whether it differed."""
        known = self.get_trial(here)
        for key, value in there.user_attrs.items():
            if known.user_attrs.get(key) != value:
                super().set_trial_user_attr(here, key, value)
        for key, value in there.system_attrs.items():
            if known.system_attrs.get(key) != value:
                super().set_trial_system_attr(here, key, value)
        for step, value in there.intermediate_values.items():
            if known.intermediate_values.get(step) != value:
                super().set_trial_intermediate_value(here, step, value)
        if there.state != known.state:
            super().set_trial_state_values(here, there.state, there.values)
        return self.get_trial(here) != known

    def keep_draft(self, trial_id: int) -> None:
        """Write a new trial with everything it has, in one transaction.

        Raises:
            RunFailed: another process has written trials into the study.
        """
        draft = self.get_trial(trial_id)
        row = self._database.create_new_trial(self._study_row, draft)
        number = draft.number
        if row != self._database.get_trial_id_from_study_id_trial_number(self._study_row, number):
            raise RunFailed(
                f"another process has written a trial {number} into the study"
                f" {self.get_study_name_from_id(self.study_id)}; stop it and run this command again"
            )
        self._rows[trial_id] = row

    def widen(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Let every trial have been drawn from wider distributions: Optuna compares like with like only.

        What a trial has stays; of a choice it is the place among more choices that changes.
        """
        with _create_scoped_session(self._database.scoped_session) as session:
            for key, wider in distributions.items():
                rows: Any = session.query(models.TrialParamModel).join(models.TrialModel)
                mine = models.TrialModel.study_id == self._study_row
                for row in rows.filter(mine, models.TrialParamModel.param_name == key):
                    before = json_to_distribution(row.distribution_json)
                    if before != wider:
                        value = before.to_external_repr(row.param_value)
                        row.param_value = wider.to_internal_repr(value)
                        row.distribution_json = distribution_to_json(wider)
        mirror = self._studies[self.study_id]
        for key, wider in distributions.items():
            mirror.param_distribution[key] = wider
            for index, trial in enumerate(mirror.trials):
                if key in trial.params:
                    seen = copy.copy(trial)  # whoever has read the trial keeps what was read
                    seen._distributions = {**trial.distributions, key: wider}
                    mirror.trials[index] = seen

    def close(self) -> None:
        """Close the database; SQLite folds its write-ahead log into the file."""
        self._database.remove_session()
        self._database.engine.dispose()

    # What Optuna, its samplers and its pruners write. ---------------------------------------------

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep an attribute of the study."""
        self._database.set_study_user_attr(self._study_row, key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep what a sampler remembers."""
        self._database.set_study_system_attr(self._study_row, key, value)
        super().set_study_system_attr(study_id, key, value)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Keep a parameter of a draft; a trial that is written has all of them."""
        assert trial_id not in self._rows, trial_id
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """End a trial, in one transaction."""
        self._database.set_trial_state_values(self._rows[trial_id], state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Keep a report."""
        row = self._rows[trial_id]
        self._database.set_trial_intermediate_value(row, step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep a note."""
        self._database.set_trial_user_attr(self._rows[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep what a sampler or pruner remembers of a trial."""
        if key.startswith(_TRANSIENT):
            return
        if trial_id in self._rows:
            self._database.set_trial_system_attr(self._rows[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)


def open_database(url: str) -> RDBStorage:
    """Open the database at a SQLAlchemy url, with Optuna's tables made where there are none.

    Raises:
        RequestError: there is no database, or one that Optuna did not make.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        _refuse_foreign_file(Path(parsed.database))
    with _opening(parsed), _making_tables(parsed):
        return RDBStorage(url, engine_kwargs=_engine_settings(parsed))


@contextmanager
def _making_tables(parsed: sqlalchemy.engine.URL) -> Iterator[None]:
    """Let one process at a time make tables in a server's database: two at once break each other."""
    if parsed.get_backend_name() != "postgresql":
        yield
        return
    engine = sqlalchemy.create_engine(parsed, **_engine_settings(parsed))
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.select(lock_of("harness tables")))
            yield
    finally:
        engine.dispose()


def open_engine(url: str) -> sqlalchemy.Engine:
    """Open a server's database, beside Optuna's own connections. Raises RequestError as `open_database`."""
    parsed = _parsed(url)
    with _opening(parsed):
        engine = sqlalchemy.create_engine(parsed, **_engine_settings(parsed))
        engine.connect().close()
        return engine


def _parsed(url: str) -> sqlalchemy.engine.URL:
    try:
        return sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the second: an address that is none
        raise RequestError(
            f"study.storage={redact(url)} is no database url; such as sqlite:////path/study.db or"
            " postgresql://user@host/database"
        ) from None


@contextmanager
def _opening(parsed: sqlalchemy.engine.URL) -> Iterator[None]:
    """Say what is wrong with a database that cannot be opened."""
    try:
        yield
    except ImportError as error:
        raise RequestError(
            f"no driver for {parsed.drivername} is installed ({error.__cause__ or error}); for"
            " PostgreSQL: pip install 'psycopg[binary]'"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        where = parsed.render_as_string(hide_password=True)
        said = first_line(error.__cause__ or error)
        raise RequestError(f"the study's database {where} cannot be opened: {said}") from error


def damage_of(path: Path) -> str | None:
    """Say what is wrong with a SQLite file, page by page; None where nothing is, or where nobody can look."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
        finally:
            connection.close()
    except sqlite3.OperationalError:  # locked, forbidden, no space: opening it will say so
        return None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return str(error)
    return None if found == ["ok"] else " ".join(str(found[0]).split())


def _refuse_foreign_file(path: Path) -> None:
    """Touch no file that is not a study's."""
    if not path.exists() or path.stat().st_size == 0:
        return
    advice = "move it away, or give the sweep another name"
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        try:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {name for (name,) in connection.execute(query)}
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise RequestError(f"{path} is no SQLite database ({error}); {advice}") from None
    if tables and not tables & _FIRST_TABLES:
        raise RequestError(
            f"{path} is a database of something else (tables {', '.join(sorted(tables)[:3])}); {advice}"
        )


def _engine_settings(url: sqlalchemy.engine.URL) -> dict[str, Any]:
    if url.get_backend_name() != "sqlite":
        return dict(_SERVER_SETTINGS)
    return {
        "connect_args": {"timeout": _BUSY_SECONDS},
        "pool_events": [(_set_journal, "connect")],
    }


def _set_journal(connection: sqlite3.Connection, _record: object) -> None:
    """Let readers read while the writer writes, and write without waiting for the disk.

    What is committed survives the death of the process at any instruction. When the machine loses its
    power, the last commits may be missing, but the file is whole.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


# The study of a question --------------------------------------------------------------------------


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
        before = notes[_ASKED_KEY]
        differs = before.get("space") != asked["space"]
        if differs and QUESTION_KEY in notes and _widen(storage, notes, question, joins=not asks):
            before = before | {"space": asked["space"]}
        refuse_another(f"the study {question.name}", before, asked)
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
    if (asks or QUESTION_KEY not in notes) and notes.get(QUESTION_KEY) != tree:
        storage.set_study_user_attr(storage.study_id, QUESTION_KEY, tree)
    searched = as_json({"optuna": optuna.__version__, "sampler": sampler, "pruner": pruner})
    earlier = notes.get(_SEARCHED_KEY, [])
    if not earlier or earlier[-1] != searched:
        storage.set_study_user_attr(storage.study_id, _SEARCHED_KEY, [*earlier, searched])


def _widen(
    storage: MirroredStorage, notes: Mapping[str, Any], question: Question, *, joins: bool = False
) -> bool:
    """Let the study have been asked the question's space, where that holds all of its own.

    Returns whether both can stand: also where the question of a member that `joins` has less.
    """
    try:
        earlier = Space(read_axes(Entries(axes=dict(notes[QUESTION_KEY]["space"]))))
    except RequestError:  # of a version that had other keys
        return False
    if earlier == question.space or not can_grow_to(question, earlier):
        return joins and contains(earlier, question.space)
    storage.widen({axis.key: distribution_of(axis) for axis in question.space.axes})
    asked = notes[_ASKED_KEY] | {"space": as_json(comparable(question))["space"]}
    storage.set_study_user_attr(storage.study_id, _ASKED_KEY, asked)
    return True


def extend(storage: MirroredStorage, question: Question) -> dict[str, Any]:
    """Let a study that has begun go on with more trials or a wider space; returns what it is asked now.

    Members that join, and those that refresh, go by it; what is this member's own is not theirs.
    """
    notes = storage.get_study_user_attrs(storage.study_id)
    _widen(storage, notes, question)
    tree = as_json(question.tree())
    asked = notes[QUESTION_KEY] | {part: tree[part] for part in ("space", "search", "compare")}
    storage.set_study_user_attr(storage.study_id, QUESTION_KEY, asked)
    return asked


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
    tree = database.get_study_user_attrs(known[name]).get(QUESTION_KEY)
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
