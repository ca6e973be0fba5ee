"""Records as flat rows: one plain dict per run, one key per fact.

A row holds `run_id`, `status`, `measured_in`, `wall_seconds`, `started_at`, `error` and `notes`; every
leaf of the configuration under its dotted key (`lora.rank`); every metric under its name; every
evaluation under `<phase>.<metric>`, with `.standard_error` and `.n` beside it; where it came from under
`provenance.…`; and its place in a sweep: `role`, `trial`, `point`.
"""

from collections.abc import Mapping
from enum import Enum
from sys import intern
from typing import Any

from harness.config.later import by_default, with_new_names
from harness.config.storage import WITHOUT_BLOCKS, storage_label
from harness.plan.probe import costs_nothing
from harness.records.record import MeasuredIn, Record

Row = dict[str, Any]

FULL_FINE_TUNING = "full fine-tuning"
"""What `lora=none` is called in tables and figures."""
_NO_ADAPTER = "none"
"""Its `lora.method`."""


class Role(Enum):
    """Why a sweep trained a run."""

    search = "search"
    confirmation = "confirmation"
    probe = "probe"
    clone = "clone"
    """Asked for by a user, beside the search."""


PREDICTED = "predicted."
"""Prefix of a row's key for what the planner predicted of a metric."""

ALONE = "alone."
"""Prefix of a row's key for what a probe of its configuration measured of a metric."""
ROWS = "rows."
"""Prefix of a row's key for the scores of a metric row by row, after training; confirmed runs have them."""

PLACE_KEYS = ("role", "trial", "point")
"""Where a run stands in its sweep: a role's word or None, a trial's number or None, axis -> spelled value."""

_RUN_KEYS = (
    "run_id",
    "status",
    "measured_in",
    "wall_seconds",
    "started_at",
    "error",
    "notes",
)
_NOT_CONFIG = frozenset((*_RUN_KEYS, *PLACE_KEYS))


def flat_row(record: Record) -> Row:
    """Return a record as a row; enums stay enums, lists of the configuration become tuples."""
    row: Row = {key: getattr(record, key) for key in _RUN_KEYS}
    row |= _place(record.provenance.get("sweep"))
    config: Row = {}
    _flatten(with_new_names(record.config), "", config)
    clashes = sorted(set(row) & set(config))
    assert not clashes, f"configuration keys that a row already uses: {clashes}"
    row |= _without_adapter(config)
    row |= record.metrics
    row |= {intern(PREDICTED + name): value for name, value in record.predicted.items()}
    row |= {intern(ALONE + name): value for name, value in record.alone.items()}
    for phase, results in record.evals.items():
        for name, result in results.items():
            key = intern(f"{phase}.{name}")
            row[key] = result.value
            row[intern(f"{key}.standard_error")] = result.standard_error
            row[intern(f"{key}.n")] = result.n
    return row | _provenance(record.provenance)


def config_keys(row: Row) -> set[str]:
    """Return the dotted configuration keys of a row; names of metrics, unlike them, hold a slash."""
    return {key for key in row if is_config_key(key)}


def is_without_effect(key: str) -> bool:
    """Whether a configuration key changes no result."""
    return key.startswith(("paths.", "tracker.", "checkpoint.", "resources."))


def is_probe(row: Row) -> bool:
    """Whether a row is of a run that measured the cost of its configuration, and nothing else."""
    return row["measured_in"] is MeasuredIn.probe or row.get("role") == Role.probe.value


def cost_key(row: Row) -> frozenset[Any]:
    """Return what costs go by: the settings that change them, and who computed the passes."""
    return frozenset(
        item
        for item in row.items()
        if (is_config_key(item[0]) and not costs_nothing(item[0]))
        or item[0] == "provenance.backend"
    )


def is_config_key(key: str) -> bool:
    """Whether a row's key is a configuration key."""
    return "/" not in key and key not in _NOT_CONFIG and not key.startswith("provenance.")


def _place(sweep: Mapping[str, Any] | None) -> Row:
    sweep = sweep or {}
    return {"role": sweep.get("role"), "trial": sweep.get("trial"), "point": {}}


def _provenance(tree: Mapping[str, Any]) -> Row:
    """Return what decides whether two results can stand side by side: code, versions, machine, inputs."""
    if not tree:
        return {}
    git = tree.get("git") or {}
    gpus = tree.get("gpus")
    packages: Mapping[str, str | None] = tree.get("packages") or {}
    versions = (f"{name} {version}" for name, version in packages.items() if version)
    return {
        "provenance.commit": git.get("commit"),
        "provenance.dirty": bool(git.get("dirty")),
        "provenance.packages": intern(", ".join(versions)),
        "provenance.host": tree.get("host"),
        "provenance.cpu": tree.get("cpu"),
        "provenance.gpus": None if gpus is None else ", ".join(gpu["name"] for gpu in gpus),
        "provenance.backend": tree.get("backend"),
        "provenance.command": tree.get("command"),
        "provenance.cell_id": tree.get("cell_id"),
        "provenance.model_fingerprint": tree.get("model_fingerprint"),
        "provenance.data_fingerprint": tree.get("data_fingerprint"),
        "provenance.sweep": (tree.get("sweep") or {}).get("name"),
    }


def _without_adapter(config: Row) -> Row:
    """Return the configuration of full fine-tuning without the settings of an adapter, which it has not."""
    if config.get("lora.method") != _NO_ADAPTER:
        return config
    of_adapter = {key: None for key in config if key.startswith("lora.")}
    named = {"lora.method": FULL_FINE_TUNING, "lora.target_modules": (FULL_FINE_TUNING,)}
    return config | of_adapter | named


def _flatten(tree: Mapping[str, Any], prefix: str, leaves: Row) -> None:
    """Put the leaves of a tree under their dotted keys; one copy of a key or word serves all rows."""
    for key, value in tree.items():
        name = intern(prefix + key)
        match value:
            case dict() if name in _PATTERNS:
                leaves[name] = ", ".join(f"{key}: {own:g}" for key, own in value.items()) or None
            case dict():
                _flatten(value, f"{name}.", leaves)
            case list():
                leaves[name] = tuple(value)
            case str():
                leaves[name] = intern(value)
            case _:
                leaves[name] = value


def value_of(row: Row, key: str) -> Any:
    """Return what a row says under a key of the configuration, `trial`, or an axis of its sweep.

    Derived keys: `quant` is the format's name as the command line takes it (`nf4_dq`), `alpha` and
    `alpha/rank` are in force whichever of the two was given. A key that the row does not have is None, and so
    is one without a meaning: the block size of a base that is not rounded in blocks.
    """
    if key in row:
        rounded_by_block = row.get("quant.format") not in WITHOUT_BLOCKS
        return row[key] if key not in _OF_BLOCKS or rounded_by_block else None
    point = row.get("point") or {}
    if key in point:
        return parsed_choice(point[key])
    match key:
        case "quant" if "quant.format" in row:
            return storage_label(row["quant.format"], row.get("quant.double_quant"))
        case "alpha" | "alpha/rank":
            return _alpha(row, over_rank=key == "alpha/rank")
        case _:
            return BEFORE.get(key) if "lora.rank" in row else None


def _alpha(row: Row, *, over_rank: bool) -> float | None:
    """Return alpha, or alpha/rank, whichever of the two was given."""
    given = row.get("lora.alpha_over_rank" if over_rank else "lora.alpha")
    other = row.get("lora.alpha" if over_rank else "lora.alpha_over_rank")
    rank = row.get("lora.rank")
    if given is not None:
        return float(given)
    if other is None or not rank:
        return None
    return float(other / rank if over_rank else other * rank)


def metric_key(column: str) -> str:
    """Return the row's key of a metric: an evaluation without a phase is the one after training."""
    return intern(f"after.{column}") if column.startswith("eval/") else column


def parsed_choice(text: str) -> Any:
    """Return the number, truth value or None that a spelled choice of an axis stands for, else the text."""
    if text in _WORDS:
        return _WORDS[text]
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


_PATTERNS = ("lora.rank_pattern", "lora.alpha_pattern")
"""Keys whose value is a mapping of its own, which is one leaf."""
BEFORE = by_default()
"""What runs have, from before the keys came that their records lack."""


def named_level(key: str, value: Any) -> Any:
    """Return a value of an axis in the words of a table: `lora=none` is full fine-tuning."""
    return FULL_FINE_TUNING if (key, value) == ("lora", _NO_ADAPTER) else value


_OF_BLOCKS = ("quant.block_size", "quant.double_quant")
_WORDS = {"true": True, "false": False, "null": None}
