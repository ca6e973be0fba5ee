"""What a whole question cost, and what a loop of single runs would have taken, as one table."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from analysis.cells import MISSING, Cell, Column, ColumnKind, Table
from analysis.figures.cells import runs_of
from analysis.frame import ALONE, Row
from analysis.printing import with_separators
from harness.records.record import MeasuredIn, RunStatus

STEP_MS, ENERGY = "throughput/step_ms", "cohort/energy_joules"
JOULES_PER_KWH = 3.6e6


def cost_table(rows: Sequence[Row], devices: int) -> Table | None:
    """Return a line for each cost; None without a run that has ended. `devices`: at work at the end."""
    ended = [row for row in rows if row["wall_seconds"] is not None]
    runs = runs_of(ended)
    if not runs:
        return None
    ids = tuple(row["run_id"] for row in ended)
    machines = sorted({str(row.get("provenance.host")) for row in ended})
    busy = sum(
        busy_seconds(row for row in ended if str(row.get("provenance.host")) == machine)
        for machine in machines
    )
    completed = [row for row in runs if row["status"] is RunStatus.completed]
    energies = [row.get(ENERGY) for row in runs]
    known = [energy for energy in energies if energy is not None]
    loop = [_seconds_alone(row) for row in completed]
    timed = [seconds for seconds in loop if seconds is not None]
    together = [row for row in runs if row["measured_in"] is MeasuredIn.cohort]
    lines = [
        ("runs that ended, probes among them", str(len(ended))),
        ("of them in a pass with others", str(len(together))),
        ("machines", str(len(machines))),
        ("devices", str(devices) if devices else MISSING),
        ("time with a run in progress", _spelled(busy)),
        ("device-hours, at most", f"{busy * devices / 3600:.2f}" if devices else MISSING),
        ("energy (kWh)", f"{sum(known) / JOULES_PER_KWH:.3f}" if known else MISSING),
        ("steps of the completed runs alone, one after the other", _spelled(sum(timed)))
        if timed
        else ("steps of the completed runs alone, one after the other", MISSING),
    ]
    notes = [
        "Time with a run in progress: the union of all runs' spans, machine by machine; waiting between them "
        "is not in it, start-up and evaluation are."
    ]
    if known and len(known) < len(runs):
        notes.append(f"Energy of {len(known)} of {len(runs)} runs; the others' devices told none.")
    if not known:
        notes.append("No device told its energy.")
    if timed:
        notes.append(
            "A shell loop of single runs would take the last line and a start-up and an evaluation for each: "
            f"steps times the step's time that a probe or the run measured alone, of {len(timed)} of "
            f"{len(completed)} completed runs."
        )
    return Table(
        name="question_cost",
        title="What the whole question cost",
        columns=[
            Column(key="cost", label="cost", kind=ColumnKind.key),
            Column(key="value", label="value", kind=ColumnKind.statistic),
        ],
        rows=[[Cell(text=label), Cell(text=text, run_ids=ids)] for label, text in lines],
        footnotes=notes,
    )


def busy_seconds(rows: Iterable[Row]) -> float:
    """Return how long at least one of the runs was in progress."""
    spans = []
    for row in rows:
        start = datetime.fromisoformat(row["started_at"])
        spans.append((start, start + timedelta(seconds=row["wall_seconds"])))
    total, until = 0.0, None
    for start, end in sorted(spans):
        begin = start if until is None or start > until else until
        total += max(0.0, (end - begin).total_seconds())
        until = end if until is None or end > until else until
    return total


def _seconds_alone(row: Row) -> float | None:
    """Return the time of a run's optimizer steps at the speed that it has alone; None where none is known."""
    key = STEP_MS if row["measured_in"] is MeasuredIn.solo else f"{ALONE}{STEP_MS}"
    alone = row.get(key)
    steps = row.get("optim.steps")
    return None if alone is None or not steps else steps * alone / 1000


def _spelled(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{with_separators(f'{seconds / 3600:.1f}')} h"
