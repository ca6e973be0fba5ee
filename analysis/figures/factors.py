"""What varies among rows, as factors: a format, a rank, a learning rate. Pure; imports no matplotlib.

A factor is one thing a researcher chose, which several configuration keys may spell: `format` is
`quant.format` with `quant.double_quant`, `lora.alpha` is given or follows from `lora.alpha_over_rank`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cells import MISSING
from analysis.frame import FULL_FINE_TUNING, Row, is_config_key, is_without_effect, value_of
from analysis.groups import sort_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One thing that was chosen."""

    name: str
    label: str
    keys: tuple[str, ...]
    """The configuration keys that spell it."""
    value: Callable[[Row], Any]
    is_logarithmic: bool = False
    """Whether its numbers are compared by ratio."""


def _targets(row: Row) -> str | None:
    targets = row.get("lora.target_modules")
    return None if targets is None else "+".join(str(target) for target in targets)


def _plain(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


FORMAT = Factor(
    name="format",
    label="storage format",
    keys=("quant.format", "quant.double_quant"),
    value=lambda row: value_of(row, "quant"),
)
BLOCK_SIZE = Factor(
    name="quant.block_size",
    label="block size",
    keys=("quant.block_size",),
    value=_plain("quant.block_size"),
    is_logarithmic=True,
)
RANK = Factor(
    name="lora.rank",
    label="LoRA rank",
    keys=("lora.rank",),
    value=_plain("lora.rank"),
    is_logarithmic=True,
)
ALPHA = Factor(
    name="lora.alpha",
    label="LoRA alpha",
    keys=("lora.alpha", "lora.alpha_over_rank"),
    value=lambda row: value_of(row, "alpha"),
    is_logarithmic=True,
)
TARGETS = Factor(
    name="lora.target_modules",
    label="target modules",
    keys=("lora.target_modules",),
    value=_targets,
)
LEARNING_RATE = Factor(
    name="optim.lr",
    label="learning rate",
    keys=("optim.lr",),
    value=_plain("optim.lr"),
    is_logarithmic=True,
)
KNOWN = (FORMAT, BLOCK_SIZE, RANK, ALPHA, TARGETS, LEARNING_RATE)
_LOGARITHMIC = ("batch_size", "max_length", "steps", "dim", "size")


def varying_factors(rows: Sequence[Row]) -> list[Factor]:
    """Return what differs among rows besides the seed and what has no effect, known factors first.

    Alpha counts where it was chosen: a fixed `lora.alpha_over_rank` under several ranks is no choice. What
    full fine-tuning lacks, and all adapters have alike, is no choice beside `lora.method`.
    """
    varying = {key for key in _keys_of(rows) if _differs(rows, key)}
    found = [factor for factor in KNOWN if varying & set(factor.keys)]
    rest = sorted(varying - {key for factor in KNOWN for key in factor.keys})
    return found + [_other(key) for key in rest]


def _differs(rows: Sequence[Row], key: str) -> bool:
    if key.startswith("lora.") and key != "lora.method":
        rows = [row for row in rows if row.get("lora.method") != FULL_FINE_TUNING]
    return any(row.get(key) != rows[0].get(key) for row in rows)


def _keys_of(rows: Sequence[Row]) -> list[str]:
    return [
        key
        for key in set[str]().union(*rows)
        if is_config_key(key) and not is_without_effect(key) and _is_setting(key)
    ]


def _is_setting(key: str) -> bool:
    """Whether a row's key is a setting that a figure can show: one of the configuration's sections."""
    section, dot, _ = key.partition(".")
    return bool(dot) and section in ("model", "quant", "lora", "data", "optim", "eval")


def _other(key: str) -> Factor:
    is_logarithmic = key.endswith(_LOGARITHMIC)
    return Factor(
        name=key, label=key, keys=(key,), value=_plain(key), is_logarithmic=is_logarithmic
    )


def is_numeric(factor: Factor, rows: Iterable[Row]) -> bool:
    """Whether every value that is there is a number (a bool is none)."""
    values = [factor.value(row) for row in rows]
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )


def levels(factor: Factor, rows: Iterable[Row]) -> list[Any]:
    """Return the values that occur, numbers by size, names by spelling, a missing one first."""
    values = {repr(value): value for value in map(factor.value, rows)}
    return sorted(values.values(), key=lambda value: sort_key([value]))


def printed(value: Any) -> str:
    """Print a setting's value."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return "+".join(map(str, value))
        case _:
            return str(getattr(value, "value", value))
