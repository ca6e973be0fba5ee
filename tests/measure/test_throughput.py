"""Throughput of a run by hand: what the warm-up leaves out, and what is divided by what."""

import pytest

from harness.measure.throughput import WARMUP_STEPS, StepClock


def clock(*steps: tuple[float, int, int]) -> StepClock:
    made = StepClock()
    for seconds, inputs, losses in steps:
        made.add(seconds, inputs, losses)
    return made


SLOW = [(100.0, 1, 1)] * 3  # the warm-up: it would spoil every figure


def test_figures_are_those_of_the_steps_after_the_third() -> None:
    assert WARMUP_STEPS == 3
    steps = [(0.5, 64, 16), (1.5, 96, 48), (2.0, 40, 20), (4.0, 80, 36)]
    assert clock(*SLOW, *steps).metrics() == {
        "throughput/step_ms": 1750.0,  # the median of four: (1.5 + 2) / 2
        "throughput/input_tokens_per_second": 280 / 8,
        "throughput/loss_tokens_per_second": 120 / 8,
    }


def test_one_step_after_the_warm_up_is_enough_and_none_is_none() -> None:
    assert clock(*SLOW).metrics() == {}
    assert clock(*SLOW, (0.25, 10, 5)).metrics() == {
        "throughput/step_ms": 250.0,
        "throughput/input_tokens_per_second": 40.0,
        "throughput/loss_tokens_per_second": 20.0,
    }


def test_no_time_gives_no_figure() -> None:
    assert clock(*SLOW, (0.0, 10, 5)).metrics() == {}
    assert clock().recent_tokens_per_second() is None
    assert clock((0.0, 10, 5)).recent_tokens_per_second() is None


def test_the_display_shows_the_last_steps_only() -> None:
    made = clock((100.0, 1, 1), (2.0, 30, 3), (3.0, 20, 2))
    assert made.recent_tokens_per_second(window=2) == 10.0
    assert made.recent_tokens_per_second() == pytest.approx(51 / 105)
