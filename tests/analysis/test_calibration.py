"""The planner's errors by part: of runs that measured their own cost, and of no others."""

from dataclasses import replace

from analysis.calibration import calibration_table
from analysis.frame import flat_row
from harness.records.record import MeasuredIn, Record, RunStatus


def record(name: str, *, predicted: float, measured: float) -> Record:
    metrics: dict[str, float | None] = {
        "memory/peak_bytes": measured,
        "memory/base_bytes": 1000.0,
    }
    return Record(
        run_id=name,
        status=RunStatus.completed,
        config={},
        metrics=metrics,
        predicted={"memory/peak_bytes": predicted, "memory/base_bytes": 1000.0},
        measured_in=MeasuredIn.probe,
    )


def test_errors_are_shares_of_what_was_measured() -> None:
    records = record("a", predicted=90, measured=100), record("b", predicted=203, measured=200)
    rows = [flat_row(each) for each in records]
    table = calibration_table(rows)
    assert table is not None
    by_part = {line[0].text: [cell.text for cell in line[1:]] for line in table.rows}
    assert by_part["peak memory"] == ["2", "146 B", "150 B", "5.75", "10.00"]
    assert by_part["base"] == ["2", "1000 B", "1000 B", "0.00", "0.00"]
    assert table.rows[-1][1].run_ids == ("a", "b")


def test_runs_of_cohorts_and_runs_that_failed_do_not_count() -> None:
    good = record("good", predicted=100, measured=100)
    shared = replace(record("shared", predicted=1, measured=100), measured_in=MeasuredIn.cohort)
    failed = replace(record("failed", predicted=1, measured=100), status=RunStatus.failed)
    table = calibration_table([flat_row(each) for each in (good, shared, failed)])
    assert table is not None
    assert {line[1].text for line in table.rows} == {"1"}
    assert calibration_table([flat_row(each) for each in (shared, failed)]) is None


def test_what_measured_nothing_is_off_by_nothing_or_by_no_share() -> None:
    rows = [flat_row(record("a", predicted=0.0, measured=0.0))]
    table = calibration_table(rows)
    assert table is not None
    assert [cell.text for cell in table.rows[-1][-2:]] == ["0.00", "0.00"]
    off = calibration_table([flat_row(record("b", predicted=1.0, measured=0.0))])
    assert off is not None
    assert [cell.text for cell in off.rows[-1][-2:]] == ["inf", "inf"]
    assert off.rows[-1][1].n == 1
    assert calibration_table([]) is None
