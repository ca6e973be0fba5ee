"""Counts what was tried and what held, for the table that `make faults` prints."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """One row of the table."""

    kind: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, what: str, holds: Callable[[], bool]) -> None:
        """Try one fault; what raises has not held."""
        self.tried += 1
        try:
            held = holds()
            said = "" if held else "does not hold"
        except Exception as error:
            held, said = False, f"{type(error).__name__}: {error}"
        if not held:
            self.failures.append(f"{what}: {said}"[:300])

    @property
    def row(self) -> tuple[str, int, int, str]:
        """What was tried, how much of it held, and the first failure."""
        first = self.failures[0] if self.failures else ""
        return self.kind, self.tried, self.tried - len(self.failures), first
