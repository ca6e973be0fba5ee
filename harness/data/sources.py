"""From `DataConfig` to the examples of each split. Imports `datasets` only for a hub data set.

A split never depends on the process, the machine or a library's random numbers: rows are ordered by
SHA-256 of (split_seed, index), and the splits share no example, however often the source repeats it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import assert_never

from harness.config.keyed import Keyed
from harness.config.schema import DataConfig, Split
from harness.data.example import Example, examples_digest, pair
from harness.data.files import FileVersion, file_version, read_file
from harness.data.records import ReadRows, RecordForm
from harness.errors import DataError, near_names

HELD_OUT_SHARE = 4
"""Reciprocal of the greatest share of rows that is split off for validation; the test split gets as many."""
TASK_TRAIN_ROWS = 2000
"""Training rows of an embedded task, which has no end of its own, where `train_rows` is not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What was read and how it was divided; counts of examples."""

    source: str
    """The file's name, the task, or the hub data set."""
    rows_read: int
    """Usable rows of every file or set that was read."""
    rows_empty: int
    """Rows without a response (or text), left out."""
    rows_shared: int
    """Rows left out of a split because another one holds the same row out."""
    train_rows: int
    validation_rows: int
    test_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The examples of each split, in the order of their source."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    report: SourceReport

    def of(self, split: Split) -> tuple[Example, ...]:
        """Return the examples of `split`; an empty one is a DataError, since it is asked for."""
        match split:
            case Split.train:
                examples = self.train
            case Split.validation:
                examples = self.validation
            case Split.test:
                examples = self.test
            case _:
                assert_never(split)
        if not examples:
            raise DataError(empty_split_message(split, self.report))
        return examples

    def digest(self) -> str:
        """Return the SHA-256 of all examples and of how they are divided."""
        parts = "".join(map(examples_digest, (self.train, self.validation, self.test)))
        return hashlib.sha256(parts.encode()).hexdigest()


def empty_split_message(split: Split, report: SourceReport) -> str:
    """Say that `split` has no rows and what would give it some."""
    message = f"the {split.value} split of {report.source} is empty ({report.rows_read} rows read"
    if report.rows_shared:
        message += f", {report.rows_shared} left out because another split holds them"
    if split is Split.train:
        return message + "); give more rows"
    return message + (
        f"); set data.{split.value}_rows above 0, and give a file at least {HELD_OUT_SHARE} rows (at most a "
        f"quarter of it is split off) or a data.{split.value}_path of its own"
    )


def read_splits(config: DataConfig) -> Splits:
    """Read the source that `config` names and divide it.

    Expects what `harness.data.check.check_data` accepts; relative paths count from the working
    directory. Rows of `validation_path` and `test_path` are theirs; without one, rows are split off the
    training source. Where fewer rows are wanted than there are, those with the smallest hash are taken,
    so that a smaller `train_rows` is a subset of a larger one.

    Raises:
        DataError: a file or row cannot be used (see `harness.data.files`), `datasets` cannot load the hub
            data set, or no training row is left.
    """
    if config.task is not None:
        return _task_splits(config)
    if config.path is None:  # only a preparation loads a hub data set
        from harness.data.hub import read_hub

        assert config.hub is not None, "check_data refuses a config without a source"
        return _divide(config, config.hub, read_hub(config))
    keys = ("path", "validation_path", "test_path")
    given = [(path, f"data.{key}") for key in keys if (path := getattr(config, key)) is not None]
    return _file_splits(Keyed(config), tuple(file_version(path, key) for path, key in given))


@lru_cache(maxsize=8)
def _file_splits(asked: Keyed[DataConfig], _versions: tuple[FileVersion, ...]) -> Splits:
    """Divide local files, once per process and version of theirs."""
    config = asked.value
    assert config.path is not None
    rows = read_file(config.path, RecordForm.of(config), "data.path")
    return _divide(config, Path(config.path).name, rows)


def _task_splits(config: DataConfig) -> Splits:
    assert config.task is not None
    return _make_task(
        config.task,
        TASK_TRAIN_ROWS if config.train_rows is None else config.train_rows,
        config.validation_rows,
        config.test_rows,
        config.split_seed,
    )


@lru_cache(maxsize=8)
def _make_task(
    name: str, train_rows: int, validation_rows: int, test_rows: int, seed: int
) -> Splits:
    from harness.embedded.english import ENGLISH_TASKS, make_english_task
    from harness.embedded.tasks import TASKS, make_task  # the standard library only

    known = (*TASKS, *ENGLISH_TASKS)
    if name not in known:
        raise DataError(
            f"data.task={name} is no embedded task; known: {', '.join(known)}{near_names(name, known)}"
        )
    make = make_english_task if name in ENGLISH_TASKS else make_task
    try:
        task = make(
            name,
            train_rows=train_rows,
            validation_rows=max(1, validation_rows),  # a task makes at least one row of each split
            test_rows=max(1, test_rows),
            seed=seed,
        )
    except ValueError as error:
        raise DataError(f"data.task={name}: {error}") from None
    train, validation, test = (
        tuple(pair(*row) for row in rows[:count])
        for rows, count in (
            (task.train, train_rows),
            (task.validation, validation_rows),
            (task.test, test_rows),
        )
    )
    report = SourceReport(
        source=f"task {name}",
        rows_read=len(train) + len(validation) + len(test),
        rows_empty=0,
        rows_shared=0,
        train_rows=len(train),
        validation_rows=len(validation),
        test_rows=len(test),
    )
    return Splits(train=train, validation=validation, test=test, report=report)


def _divide(config: DataConfig, source: str, rows: ReadRows) -> Splits:
    """Draw the test rows first, then validation, then train; each leaves what the others hold."""
    order = _order(len(rows.examples), config.split_seed)
    limit = len(rows.examples) // HELD_OUT_SHARE
    read, empty, shared = len(rows.examples), rows.num_empty, 0
    held: set[Example] = set()
    taken: set[int] = set()
    drawn: dict[Split, tuple[Example, ...]] = {}
    for split, path, count in (
        (Split.test, config.test_path, config.test_rows),
        (Split.validation, config.validation_path, config.validation_rows),
    ):
        if path is None:
            chosen = _draw(rows.examples, order, min(count, limit), taken, held)
            drawn[split] = tuple(rows.examples[index] for index in chosen)
            taken.update(chosen)
        else:
            given = read_file(path, RecordForm.of(config), f"data.{split.value}_path")
            given_order = _order(len(given.examples), config.split_seed)
            chosen = _draw(given.examples, given_order, count, set(), held)
            drawn[split] = tuple(given.examples[index] for index in chosen)
            read, empty = read + len(given.examples), empty + given.num_empty
            shared += sum(example in held for example in given.examples)
        held.update(drawn[split])
    left = len(rows.examples) - len(taken)
    chosen = _draw(rows.examples, order, left, taken, held)
    shared += left - len(chosen)
    chosen = _draw(rows.examples, order, config.train_rows or left, taken, held)
    report = SourceReport(
        source=source,
        rows_read=read,
        rows_empty=empty,
        rows_shared=shared,
        train_rows=len(chosen),
        validation_rows=len(drawn[Split.validation]),
        test_rows=len(drawn[Split.test]),
    )
    splits = Splits(
        train=tuple(rows.examples[index] for index in chosen),
        validation=drawn[Split.validation],
        test=drawn[Split.test],
        report=report,
    )
    splits.of(Split.train)
    return splits


def _order(num_rows: int, seed: int) -> list[int]:
    """Return the indices of the rows, ordered by hash: a permutation that no library version changes."""
    return sorted(
        range(num_rows), key=lambda index: hashlib.sha256(f"split/{seed}/{index}".encode()).digest()
    )


def _draw(
    examples: Sequence[Example], order: list[int], count: int, taken: set[int], held: set[Example]
) -> list[int]:
    """Return the first `count` free indices of `order`, ascending; `held` examples are never free."""
    free = (index for index in order if index not in taken and examples[index] not in held)
    return sorted(index for _, index in zip(range(count), free, strict=False))
