"""What a question cost: spans that overlap count once, and a loop's time is that of steps alone."""

from typing import Any

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
