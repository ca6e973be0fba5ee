"""`python -m bench.tracked SWEEP [paths.out=DIRECTORY]`: which names every run of a sweep has logged.

Looks into the records (metrics.jsonl and run.json) and into the offline .wandb files (history and summary),
and prints for each role how many runs have each name, then what is missing, run by run; ends with 1 where
something is.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.frame import Role
from analysis.sources import run_roles
from harness.errors import RequestError
from harness.records.metrics import EVERY_STEP, SERIES
from harness.records.metrics_log import read_metrics
from harness.records.record import Record, RecordError, RunDirectory, RunStatus, read_record
from harness.sweeping.state import SweepDirectory, read_state_tree
from harness.tracking.final_values import final_values
from harness.tracking.wandb_file import read_wandb_run

PLACES = ("record: series", "record: summary", "W&B: series", "W&B: summary")

ALONE = {
    f"alone.{name}"
    for name in ("memory/peak_bytes", "throughput/step_ms", "throughput/input_tokens_per_second")
}
"""Costs of its configuration alone that every record has, its own or a probe's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """Names of one run by place: those that should be there, and those that are."""

    run_id: str
    role: str
    expected: dict[str, set[str]]
    found: dict[str, set[str]]

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each place and name that is not there."""
        for place in PLACES:
            for name in sorted(self.expected[place] - self.found[place]):
                yield place, name


def tracked(out: Path, sweep: str) -> list[Tracked]:
    """Return what each completed run of a sweep has logged. Raises RequestError where there is no sweep."""
    roles = run_roles(read_state_tree(SweepDirectory(out, sweep)))
    found = []
    for run_id, role in roles.items():
        directory = RunDirectory(out / "runs" / run_id)
        try:
            record = read_record(directory.record)
        except RecordError:
            continue  # pruned before it began, or another member's
        if record.status is RunStatus.completed:
            found.append(_tracked(directory, record, role))
    return found


def _tracked(directory: RunDirectory, record: Record, role: str) -> Tracked:
    rows = read_metrics(directory.metrics).rows
    mirror = read_wandb_run(directory.path)
    after = {name for name in record.evals.get("after", ()) if name in SERIES}
    series = set(EVERY_STEP) | after
    ends = {f"{name}.{which}" for name in series for which in ("min", "max", "last")}
    values = set(_values(record))
    # A search's runs have ended before their configuration is probed: W&B has the probe's own run.
    of_wandb = {n for n in values if role != Role.search.value or not n.startswith("alone.")}
    return Tracked(
        run_id=record.run_id,
        role=role,
        expected={
            "record: series": series,
            "record: summary": {"status", "throughput/floor_ms"} | ALONE,
            "W&B: series": series,
            "W&B: summary": ends | of_wandb | {"status", "record"},
        },
        found={
            "record: series": _logged(rows, after),
            "record: summary": {"status"} | values | set(record.metrics),
            "W&B: series": _logged(mirror.history, after),
            "W&B: summary": set(flat_summary(mirror.summary)),
        },
    )


def _values(record: Record) -> Iterator[str]:
    return (name for name, value in final_values(record).items() if value is not None)


def _logged(rows: Sequence[Mapping[str, Any]], after: set[str]) -> set[str]:
    """Return the names that all rows have, and of the evaluations those that the last one has."""
    last = rows[-1] if rows else {}
    return names_of_every_row(rows) | {name for name in after if last.get(name) is not None}


def names_of_every_row(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names that have a value in every row of a run."""
    if not rows:
        return set()
    return set.intersection(*({n for n, v in row.items() if v is not None} for row in rows))


def flat_summary(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a summary of W&B, those of a series also with `.min`, `.max` and `.last`."""
    for name, value in summary.items():
        yield name
        if name in SERIES and isinstance(value, Mapping):
            yield from (f"{name}.{which}" for which in value)


def main(words: Sequence[str]) -> int:
    """Print what is there and what is missing; return 1 where something is."""
    names = [word for word in words if "=" not in word]
    places = [word.removeprefix("paths.out=") for word in words if word.startswith("paths.out=")]
    if len(names) != 1 or len(names) + len(places) != len(words):
        print(__doc__, file=sys.stderr)
        return 2
    runs = tracked(Path(places[-1] if places else "out"), names[0])
    by_role = Counter(run.role for run in runs)
    for role, count in sorted(by_role.items()):
        print(f"\n{role}: {count} runs")
        mine = [run for run in runs if run.role == role]
        for place in PLACES:
            has = Counter(n for run in mine for n in run.expected[place] & run.found[place])
            text = ", ".join(
                name if has[name] == count else f"{name} ({has[name]})" for name in sorted(has)
            )
            print(f"  {place} ({len(has)}): {text}")
    gone = [(run.run_id, *each) for run in runs for each in run.missing()]
    print(f"\nmissing: {len(gone) or 'none'}, of {len(runs)} runs")
    for run_id, place, name in gone:
        print(f"  {run_id}  {place}  {name}")
    return int(bool(gone) or not runs)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RequestError as error:
        sys.exit(f"{error}")
