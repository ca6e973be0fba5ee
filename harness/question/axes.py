"""The axes of a sweep's space as values. Pure: imports neither Hydra nor Optuna."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Condition:
    """An axis exists only where an earlier axis has one of these values."""

    key: str
    values: frozenset[str]

    def holds(self, point: Mapping[str, str]) -> bool:
        """Whether a point, in which the earlier axes are known, is such a place."""
        return point.get(self.key) in self.values


@dataclass(frozen=True, slots=True)
class ChoiceAxis:
    """A configuration key or group that takes one of a few values."""

    key: str
    values: tuple[str, ...]
    """Values as Hydra's override grammar takes them: `nf4`, `[q_proj,v_proj]`, `8`."""
    condition: Condition | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """Every value, in the order given."""
        return self.values

    @property
    def samples(self) -> tuple[str, ...]:
        """The values that stand for all when a space is checked: every one."""
        return self.values

    @property
    def grammar(self) -> str:
        """The axis in Hydra's sweep grammar, whose `choice` takes no null."""
        if "null" in self.values:
            return ",".join(self.values)
        return f"choice({', '.join(self.values)})"

    @property
    def described(self) -> str:
        """The axis in one line, for a person."""
        return f"{self.key}: {self.grammar}{_where(self.condition)}"


@dataclass(frozen=True, slots=True)
class NumberAxis:
    """A configuration key that takes a number from a range or an interval."""

    key: str
    low: float
    high: float
    """The largest value, which the axis can take, too: of `range(2, 9, 2)` it is 8."""
    step: float | None = None
    """Distance between the values of a range; none: an interval."""
    log: bool = False
    """Draw the logarithm evenly, not the number."""
    integer: bool = False
    condition: Condition | None = None

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Every value of a range; none of an interval, which has too many."""
        if self.step is None:
            return None
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        count = round((Decimal(repr(self.high)) - low) / step) + 1
        return tuple(self.spelled(float(low + index * step)) for index in range(count))

    @property
    def samples(self) -> tuple[str, ...]:
        """The values that stand for all when a space is checked: both ends, and all of a short range."""
        choices = self.choices
        if choices is not None and len(choices) <= _SHORT_RANGE:
            return choices
        return (self.spelled(self.low), self.spelled(self.high))

    @property
    def grammar(self) -> str:
        """The axis in Hydra's sweep grammar."""
        low, high = self.spelled(self.low), self.spelled(self.high)
        if self.step is not None:
            stop = float(Decimal(repr(self.high)) + Decimal(repr(self.step)))
            return f"range({low}, {self.spelled(stop)}, {self.spelled(self.step)})"
        text = f"interval({low}, {high})"
        text = f"int({text})" if self.integer else text
        return f"tag(log, {text})" if self.log else text

    @property
    def described(self) -> str:
        """The axis in one line, for a person."""
        return f"{self.key}: {self.grammar}{_where(self.condition)}"

    def spelled(self, value: float) -> str:
        """Return a number as it stands in a point; reading it back gives exactly that number."""
        return str(int(value)) if self.integer else repr(float(value))


_SHORT_RANGE = 16


@dataclass(frozen=True, slots=True)
class CaseAxis:
    """A label that is no configuration key; each of its values stands for several overrides."""

    key: str
    cases: dict[str, tuple[str, ...]]
    condition: Condition | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """Every label, in the order given."""
        return tuple(self.cases)

    @property
    def samples(self) -> tuple[str, ...]:
        """The values that stand for all when a space is checked: every label."""
        return tuple(self.cases)

    @property
    def described(self) -> str:
        """The axis in one line, for a person."""
        cases = ", ".join(f"{label} ({' '.join(given)})" for label, given in self.cases.items())
        return f"{self.key}: cases {cases}{_where(self.condition)}"


Axis: TypeAlias = ChoiceAxis | NumberAxis | CaseAxis


def _where(condition: Condition | None) -> str:
    if condition is None:
        return ""
    return f" where {condition.key} is {' or '.join(sorted(condition.values))}"
