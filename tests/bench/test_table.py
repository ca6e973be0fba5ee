"""The table of the comparison: a missed line is named, and unlike work has no ratio."""

from typing import Any

import pytest

from bench.peers.table import Bound, Verdict, lines_of, markdown

SAME = {"curve_difference": 1e-7, "eval_difference": 1e-4, "eval_loss": 1.0}
OTHER = {"curve_difference": 0.1, "eval_difference": 1e-4, "eval_loss": 1.0}


def ratio(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.1, "high": median + 0.1, "pairs": 3}


def arm(agreement: dict[str, float] | None) -> dict[str, Any]:
    numbers = {"tokens_per_second": 1000.0, "first_step_seconds": 5.0, "peak_bytes": 2.0**29}
    return numbers | ({} if agreement is None else {"agreement": [agreement]})


def run_part(speed: float, memory: float, agreement: dict[str, float]) -> dict[str, Any]:
    ratios = {
        "tokens_per_second": ratio(speed),
        "first_step": ratio(2),
        "peak_bytes": ratio(memory),
    }
    return {
        "model": "embedded",
        "arms": {"harness": arm(None), "trl": arm(agreement)},
        "over_peers": {"trl": ratios},
    }


def search_part(*, speed: float, same_best: list[bool]) -> dict[str, Any]:
    loop = {
        "length": 64,
        "processes_run": 6,
        "seconds": [600.0],
        "agreement": [SAME],
        "over_sweep": ratio(speed),
    }
    return {"cells": 64, "same_best": same_best, "sweep_seconds": [40.0], "loops": {"trl": loop}}


def verdicts(parts: dict[str, Any]) -> list[Verdict]:
    return [line.verdict for line in lines_of(parts)]


def test_lines_are_met_and_missed_in_their_own_direction():
    met = verdicts({"run": run_part(1.2, 0.9, SAME)})
    assert met == [Verdict.met, Verdict.shown, Verdict.met]
    missed = verdicts({"run": run_part(1.1, 1.05, SAME)})
    assert missed == [Verdict.missed, Verdict.shown, Verdict.missed]


def test_other_losses_void_a_row_and_take_its_ratio_away():
    lines = lines_of({"run": run_part(9.0, 0.1, OTHER)})
    assert {line.verdict for line in lines} == {Verdict.void}
    assert all("9.00" not in line.value for line in lines)


@pytest.mark.parametrize(
    ("same_best", "expected"), [([True, True], Verdict.met), ([True, False], Verdict.missed)]
)
def test_a_fast_search_that_finds_less_has_not_met_its_line(
    same_best: list[bool], expected: Verdict
):
    assert verdicts({"search": search_part(speed=20, same_best=same_best)}) == [expected]


def test_a_search_that_is_too_slow_has_not_met_its_line():
    assert verdicts({"search": search_part(speed=11, same_best=[True])}) == [Verdict.missed]


def test_a_bound_says_its_aim():
    assert Bound(at_least=4, aim=8).text(" ×") == "≥ 4 × (aim 8 ×)"
    assert Bound(at_most=2).text(" %") == "≤ 2 %"


def test_the_table_names_versions_machine_and_what_was_run():
    measured = {
        "measured_at": "2026-01-02T03:04:05+00:00",
        "took_seconds": 61.0,
        "threads": 2,
        "load_average_before": 0.1,
        "machine": {"cpu": "A processor", "cpu_threads": 2},
    }
    parts = {"search": search_part(speed=13, same_best=[True]) | measured}
    text = markdown(lines_of(parts), {"peers": {"trl": "1.2.3"}, "parts": parts})
    assert "6 of 64 run" in text
    assert "trl 1.2.3" in text
    assert "A processor" in text
    assert "2026-01-02" in text
