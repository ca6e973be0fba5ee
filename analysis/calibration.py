"""How far the planner was off: predicted against measured memory, part by part, as one table."""

import statistics
from collections.abc import Sequence

from analysis.cells import Cell, Column, ColumnKind, Table
from analysis.frame import PREDICTED, Row
from harness.records.metrics import MEMORY_PARTS, METRICS, format_bytes, memory_part_name
from harness.records.record import MeasuredIn, RunStatus

_METRICS = (*map(memory_part_name, MEMORY_PARTS), "memory/peak_bytes")
_COLUMNS = [
    Column(key="part", label="part", kind=ColumnKind.key),
    Column(key="n", label="n", kind=ColumnKind.count),
    Column(key="predicted", label="predicted (median)", kind=ColumnKind.statistic),
    Column(key="measured", label="measured (median)", kind=ColumnKind.statistic),
    Column(key="median_error", label="median error", unit="%", kind=ColumnKind.statistic),
    Column(key="largest_error", label="largest error", unit="%", kind=ColumnKind.statistic),
]


def calibration_table(rows: Sequence[Row]) -> Table | None:
    """Return a line for each part of the memory and for the peak; None where no row has both numbers.

    An error is |predicted - measured| over measured, of one run or probe that had its process to itself.
    """
    alone = [
        row
        for row in rows
        if row["status"] is RunStatus.completed and row["measured_in"] is not MeasuredIn.cohort
    ]
    lines = [line for metric in _METRICS if (line := _line(metric, alone)) is not None]
    if not lines:
        return None
    return Table(
        name="predicted_memory",
        title="Predicted and measured memory by part",
        columns=_COLUMNS,
        rows=lines,
        footnotes=[
            "Predicted as harness plan does, from the configuration and the length of the rows; measured by "
            "probes and by runs that had a process to themselves. Nothing was fitted to these measurements."
        ],
    )


def _line(metric: str, rows: Sequence[Row]) -> list[Cell] | None:
    both = [
        (predicted, measured, row["run_id"])
        for row in rows
        if (predicted := row.get(PREDICTED + metric)) is not None
        and (measured := row.get(metric)) is not None
    ]
    if not both:
        return None
    runs = tuple(run_id for _, _, run_id in both)
    predicted = statistics.median(pair[0] for pair in both)
    measured = statistics.median(pair[1] for pair in both)
    errors = [_error_percent(pair[0], pair[1]) for pair in both]

    def number(value: float, text: str) -> Cell:
        return Cell(text=text, value=value, n=len(both), run_ids=runs)

    median, largest = statistics.median(errors), max(errors)
    return [
        Cell(text=METRICS[metric].label),
        Cell(text=str(len(both)), n=len(both), run_ids=runs),
        number(predicted, format_bytes(predicted)),
        number(measured, format_bytes(measured)),
        number(median, f"{median:.2f}"),
        number(largest, f"{largest:.2f}"),
    ]


def _error_percent(predicted: float, measured: float) -> float:
    if measured == 0:
        return 0.0 if predicted == 0 else float("inf")
    return 100 * abs(predicted - measured) / measured
