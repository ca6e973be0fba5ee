"""What a question cost: spans that overlap count once, and a loop's time is that of steps alone."""

from typing import Any

import pytest

from analysis.question_cost import cost_table
from harness.records.record import MeasuredIn, RunStatus


def run(start: str, seconds: float, **more: Any) -> dict[str, Any]:
    row = {
        "run_id": f"{start}-{seconds}",
        "status": RunStatus.completed,
        "measured_in": MeasuredIn.cohort,
        "started_at": f"2026-01-01T{start}+00:00",
        "wall_seconds": seconds,
        "provenance.host": "a",
        "optim.steps": 100,
        "alone.throughput/step_ms": 50.0,
        "cohort/energy_joules": None,
    }
    return row | more


def lines(rows: list[dict[str, Any]], devices: int = 1) -> dict[str, str]:
    table = cost_table(rows, devices)
    assert table is not None
    return {line[0].text: line[1].text for line in table.rows}


def test_runs_side_by_side_cost_their_common_time_once() -> None:
    rows = [run("10:00:00", 30), run("10:00:10", 30), run("10:05:00", 5)]
    found = lines(rows)
    assert found["time with a run in progress"] == "45 s"  # 10:00:00 to 10:00:40, and 5 s
    assert (
        found["steps of the completed runs alone, one after the other"] == "15 s"
    )  # 3 * 100 * 50 ms
    assert found["of them in a pass with others"] == "3"


def test_machines_count_apart() -> None:
    rows = [run("10:00:00", 30), run("10:00:00", 30, **{"provenance.host": "b"})]
    assert lines(rows)["time with a run in progress"] == "1.0 min"


def test_energy_is_the_sum_of_what_devices_told() -> None:
    told = run("10:00:00", 30, **{"cohort/energy_joules": 3.6e6})
    assert lines([told, told])["energy (kWh)"] == "2.000"
    assert lines([run("10:00:00", 30)])["energy (kWh)"] == "—"


def test_a_run_whose_speed_alone_is_unknown_adds_nothing_and_is_counted() -> None:
    unknown = run("10:00:00", 30, **{"alone.throughput/step_ms": None})
    table = cost_table([unknown, run("10:00:00", 30)], 2)
    assert table is not None
    assert any("of 1 of 2 completed runs" in note for note in table.footnotes)
    assert cost_table([], 1) is None


def test_device_hours_are_those_of_all_devices_while_a_run_was_in_progress() -> None:
    rows = [
        run("10:00:00", 3600),
        run("10:30:00", 3600),
        run("10:00:00", 900, **{"provenance.host": "b"}),
    ]
    found = lines(rows, devices=3)
    assert (
        found["device-hours, at most"] == "5.25"
    )  # an hour and a half, and a quarter; three devices
    assert (found["devices"], found["machines"]) == ("3", "2")
    found = lines(rows, devices=0)
    assert (found["devices"], found["device-hours, at most"]) == ("—", "—")


def test_probes_have_ended_and_are_no_runs() -> None:
    probe = run("09:00:00", 60, measured_in=MeasuredIn.probe, role="probe")
    solo = run("10:00:00", 30, measured_in=MeasuredIn.solo, **{"throughput/step_ms": 70.0})
    found = lines([run("10:00:00", 30), probe, solo])
    assert found["runs that ended, probes among them"] == "3"
    assert found["of them in a pass with others"] == "1"
    assert found["time with a run in progress"] == "1.5 min"
    assert found["steps of the completed runs alone, one after the other"] == "12 s"
    table = cost_table(
        [run("10:00:00", 30), run("10:00:00", 30, **{"cohort/energy_joules": 1.0})], 1
    )
    assert table is not None
    assert any("Energy of 1 of 2 runs" in note for note in table.footnotes)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60.0, "1.0 min"),
        (3594.0, "59.9 min"),
        (3600.0, "1.0 h"),
        (3600.0 * 1234.5, "1,234.5 h"),
    ],
)
def test_a_time_is_in_the_unit_that_one_would_say(seconds: float, text: str) -> None:
    assert lines([run("10:00:00", seconds)])["time with a run in progress"] == text


def test_spans_count_once_however_they_lie() -> None:
    """A span inside another, one that begins where another ends, and a gap: 100 + 20 + 5 seconds."""
    rows = [
        run("10:02:00", 5),
        run("10:00:30", 10),
        run("10:00:00", 100),
        run("10:01:40", 20),
        run("10:00:20", 10),
    ]
    assert lines(rows)["time with a run in progress"] == "2.1 min"
    assert lines([*rows, run("11:00:00", 25)])["time with a run in progress"] == "2.5 min"


def test_what_has_not_ended_or_has_no_steps_costs_nothing_yet() -> None:
    waiting = run("10:00:00", 30) | {"wall_seconds": None}
    assert cost_table([waiting], 1) is None
    found = lines([waiting, run("10:00:00", 30)])
    assert found["runs that ended, probes among them"] == "1"
    unstepped = run("10:00:00", 30, **{"optim.steps": 0})
    key = "steps of the completed runs alone, one after the other"
    assert lines([unstepped])[key] == "—"
    failed = run("10:00:00", 30, status=RunStatus.failed)
    assert lines([failed, run("10:00:00", 30)])[key] == "5 s"
    probe = run("10:00:00", 30, measured_in=MeasuredIn.probe, role="probe")
    assert cost_table([probe], 1) is None, "probes alone are no question"


def test_the_notes_say_what_is_known() -> None:
    told = run("10:00:00", 30, **{"cohort/energy_joules": 1.0})
    table = cost_table([told], 1)
    assert table is not None
    assert not any("energy" in note.lower() for note in table.footnotes)
    assert any("of 1 of 1 completed runs" in note for note in table.footnotes)
    silent = cost_table([run("10:00:00", 30, **{"alone.throughput/step_ms": None})], 1)
    assert silent is not None
    assert "No device told its energy." in silent.footnotes
    assert len(silent.footnotes) == 2, "no loop can be reckoned"
    assert {cell.run_ids for line in table.rows for cell in line[1:]} == {(told["run_id"],)}
