"""Counts what was tried and what held, for the table that `make faults` prints and writes."""

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BEGIN, END = "<!-- make faults -->", "<!-- end -->"
"""What the table stands between in a document."""


TIMES = int(os.environ.get("FAULTS_TIMES", "1"))
"""How many times as many random tries as usual; `make faults TIMES=10`."""


def tries(short: int, whole: int) -> list[Any]:
    """Return the parameters of a test that tries little in the suite and more in `make faults`."""
    return [short, pytest.param(whole * TIMES, marks=pytest.mark.faults)]


@dataclass(slots=True)
class Tally:
    """One row of the table."""

    kind: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds of the slowest try."""

    def check(self, what: str, holds: Callable[[], bool]) -> None:
        """Try one fault; what raises has not held."""
        self.tried += 1
        began = time.monotonic()
        try:
            held = holds()
            said = "" if held else "does not hold"
        except Exception as error:
            held, said = False, f"{type(error).__name__}: {error}"
        self.slowest = max(self.slowest, time.monotonic() - began)
        if not held:
            self.failures.append(" ".join(f"{what}: {said}".split())[:300])

    @property
    def row(self) -> tuple[str, int, int, str, float]:
        """What was tried, how much of it held, the first failure, and how long the slowest try took."""
        first = self.failures[0] if self.failures else ""
        return self.kind, self.tried, self.tried - len(self.failures), first, self.slowest


Row = tuple[str, int, int, str, float]


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each kind, by name, and one for all together."""
    kinds: dict[str, Row] = {}
    for kind, tried, held, first, slowest in rows:
        _, before, kept, known, longest = kinds.get(kind, (kind, 0, 0, "", 0.0))
        kinds[kind] = kind, before + tried, kept + held, known or first, max(longest, slowest)
    found = [kinds[kind] for kind in sorted(kinds)]
    failed = next((row[3] for row in found if row[3]), "")
    total = ("all", sum(row[1] for row in found), sum(row[2] for row in found), failed)
    return [*found, (*total, max((row[4] for row in found), default=0.0))]


def as_text(rows: Iterable[Row]) -> str:
    """Return the table for a terminal."""
    rows = list(rows)
    width = max(len(row[0]) for row in rows)
    lines = [f"{'fault':<{width}}  tried   held  slowest  first failure"]
    for kind, tried, held, first, slowest in rows:
        shown = f"{tried:>5}  {held:>5}" if tried else "    –      –"
        lines.append(f"{kind:<{width}}  {shown}  {slowest:>5.1f} s  {first or '–'}")
    return "\n".join(lines)


def as_markdown(rows: Iterable[Row]) -> str:
    """Return the table for a document."""
    lines = ["| fault | tried | held | slowest try | first failure |", "|---|---:|---:|---:|---|"]
    for kind, tried, held, first, slowest in rows:
        shown = f"{tried:,} | {held:,}" if tried else "– | –"
        cells = re.sub(r"[|\n]", " ", first) or "–"
        lines.append(f"| {kind} | {shown} | {slowest:.1f} s | {cells} |")
    return "\n".join(lines)


def write_into(document: Path, said: str) -> None:
    """Put what a run has said between the two marks of a document."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{document} lacks {BEGIN} … {END}"
    document.write_text(f"{before}{BEGIN}\n\n{said}\n\n{END}{after}", encoding="utf-8")
