"""Records as flat rows: one plain dict per run, one key per fact.

A row holds `run_id`, `status`, `measured_in`, `wall_seconds`, `started_at`, `error` and `notes`; every
leaf of the configuration under its dotted key (`lora.rank`); every metric under its name; and every
evaluation under `<phase>.<metric>`, with `.standard_error` and `.n` beside it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.record import Record

Row = dict[str, Any]

_RUN_KEYS = (
    "run_id",
    "status",
    "measured_in",
    "wall_seconds",
    "started_at",
    "error",
    "notes",
)


def flat_rows(records: Iterable[Record]) -> list[Row]:
    """Return one row per record, in the given order."""
    return [flat_row(record) for record in records]


def flat_row(record: Record) -> Row:
    """Return a record as a row; enums stay enums, lists of the configuration become tuples."""
    row: Row = {key: getattr(record, key) for key in _RUN_KEYS}
    config = _flat_config(record.config)
    clashes = sorted(set(row) & set(config))
    assert not clashes, f"configuration keys that a row already uses: {clashes}"
    row |= config | record.metrics
    for phase, results in record.evals.items():
        for name, result in results.items():
            row[f"{phase}.{name}"] = result.value
            row[f"{phase}.{name}.standard_error"] = result.standard_error
            row[f"{phase}.{name}.n"] = result.n
    return row


def config_keys(row: Row) -> set[str]:
    """Return the dotted configuration keys of a row; names of metrics, unlike them, hold a slash."""
    return {key for key in row if key not in _RUN_KEYS and "/" not in key}


def _flat_config(tree: Mapping[str, Any], prefix: str = "") -> Row:
    leaves: Row = {}
    for key, value in tree.items():
        match value:
            case Mapping():
                leaves |= _flat_config(value, f"{prefix}{key}.")
            case list():
                leaves[prefix + key] = tuple(value)
            case _:
                leaves[prefix + key] = value
    return leaves
