"""Numbers and keys as a table prints them: digits of the metric, one unit of bytes per column."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from analysis.cells import MISSING
from harness.records.metrics import METRICS, Metric
from harness.records.record import RunStatus

_EXACT_PREFIXES = ("adapter/", "base/")
_EXACT = frozenset(
    f"memory/{part}_bytes"
    for part in ("base", "quant_constants", "adapter", "gradient", "optimizer")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How the numbers of one column are printed."""

    unit: str
    size: float
    """Size of one unit, in the metric's own unit."""
    digits: int
    """Digits after the decimal point."""

    def number(self, value: float) -> str:
        """Return the digits of a value, without separators."""
        text = f"{value / self.size:.{self.digits}f}"
        return text if float(text) else text.removeprefix("-")  # no minus zero

    def signed(self, value: float) -> str:
        """Return the digits of a difference, with its sign."""
        number = self.number(value)
        return number if number.startswith("-") else f"+{number}"


def scale_of(name: str, values: Sequence[float]) -> Scale:
    """Return the scale of a metric's column; bytes are in the largest unit that leaves 1 of the smallest."""
    metric = METRICS[name]
    if metric.unit != "bytes":
        return Scale(unit=_unit(metric), size=1, digits=metric.digits)
    size, unit = bytes_unit(min((abs(value) for value in values if value), default=0))
    if size == 1:
        return Scale(unit="B", size=1, digits=0)
    return Scale(unit=unit, size=size, digits=2)


def bytes_unit(amount: float) -> tuple[float, str]:
    """Return the size and the name of the largest binary unit that leaves at least 1."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if amount >= size:
            return float(size), unit
    return 1.0, "bytes"


def with_separators(number: str) -> str:
    """Return a number with a comma between groups of three digits before the point."""
    return f"{Decimal(number):,f}"


def is_exact(name: str) -> bool:
    """Whether a metric is counted, the same for every seed, so that an interval would say nothing."""
    return name.startswith(_EXACT_PREFIXES) or name in _EXACT


def printed(value: Any) -> str:
    """Return a value of a configuration key as a table shows it; what is not there is —."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def status_label(status: RunStatus) -> str:
    """Return what became of a run in a word."""
    return "OOM" if status is RunStatus.out_of_memory else status.value


def _unit(metric: Metric) -> str:
    """Return the unit for the header, empty where the label says it already."""
    return "" if metric.unit in metric.label else metric.unit
