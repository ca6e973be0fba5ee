"""The simulated devices: they take the time that their parts take, and the driver's work takes its own."""

import time
from pathlib import Path

import pytest

from bench.scheduler import simulate
from bench.scheduler_arm import Arm, Case
from bench.scheduler_lengths import RecordedRun, RunLengths, load_lengths
from bench.scheduler_pool import SkippingClock

START, BASE, BEGIN, STEP, EVALUATION, END = 3.0, 2.0, 0.5, 0.25, 1.0, 0.125
SHARE_OF_TWO = 0.75
LISTENING = 0.25
"""How long the driver listens at most before it gives runs to a worker, in seconds."""


def lengths() -> RunLengths:
    losses = {20: 2.0, 40: 1.5, 60: 1.0, 80: 0.8, 100: 0.7, 120: 0.6}
    runs = [
        RecordedRun(
            rank=rank,
            learning_rate=rate,
            steps=120,
            step_seconds=STEP,
            losses={step: loss * (1 + 100 * abs(rate - 1e-2)) for step, loss in losses.items()},
        )
        for rank in (2, 8)
        for rate in (1e-3, 1e-2, 3e-2)
    ]
    return RunLengths(
        start_seconds=START,
        base_seconds=BASE,
        begin_seconds=BEGIN,
        evaluation_seconds=EVALUATION,
        end_seconds=END,
        runs=tuple(runs),
        shares=((1, 1.0), (2, SHARE_OF_TWO), (4, 0.6)),
    )


def arm(directory: Path, method: str = "grid", stretch: float = 1.0, **numbers: int) -> Arm:
    case = Case(method=method, stretch=stretch, **numbers)
    return simulate(directory, case, lengths(), most_seconds=60.0)


def spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_the_clock_counts_work_and_what_is_skipped_but_not_the_simulation():
    clock = SkippingClock()
    began = clock.now()
    with clock.stands_still():
        spin(0.1)
    assert clock.now() - began < 0.05
    spin(0.1)
    assert 0.1 <= clock.now() - began < 0.15
    clock.skip_to(began + 1000)
    assert clock.now() - began == pytest.approx(1000, abs=0.01)
    clock.skip_to(began)  # never back
    assert clock.now() - began == pytest.approx(1000, abs=0.01)
    assert clock.worked() == pytest.approx(0.1, abs=0.05)


def test_one_run_takes_its_parts_and_the_time_the_driver_needs(tmp_path):
    found = arm(tmp_path, devices=1, cohort=1, trials=1)
    # 30 steps, evaluated at 20 and 30
    parts = START + BASE + BEGIN + 30 * STEP + 2 * EVALUATION + END
    assert found.finished
    assert found.told == 1
    assert parts <= found.seconds <= parts + found.driver_seconds + LISTENING
    assert found.devices_busy.whole == pytest.approx((parts - START) / found.seconds, abs=1e-6)


def test_runs_that_share_a_pass_take_its_share_and_all_wait_for_one_that_is_evaluated(tmp_path):
    found = arm(tmp_path, devices=1, cohort=2, trials=2)
    passes = 30 * 2 * STEP * SHARE_OF_TWO
    parts = START + BASE + 2 * BEGIN + passes + 4 * EVALUATION + 2 * END
    assert parts <= found.seconds <= parts + found.driver_seconds + LISTENING


def test_longer_steps_and_evaluations_leave_fixed_costs_as_they_are(tmp_path):
    found = arm(tmp_path, stretch=10, devices=1, cohort=1, trials=1)
    parts = START + BASE + BEGIN + 10 * (30 * STEP + 2 * EVALUATION) + END
    assert parts <= found.seconds <= parts + found.driver_seconds + LISTENING


@pytest.mark.parametrize("method", ["grid", "asha"])
def test_a_simulated_sweep_ends_with_every_trial_told(tmp_path, method):
    found = arm(tmp_path, method, devices=3, cohort=2, trials=18)
    assert found.finished
    assert found.told == 18
    assert (found.pruned > 0) == (method == "asha")
    for shares in (found.devices_busy, found.slots_busy):
        assert 0 < shares.whole <= 1
        assert shares.middle is not None
        assert shares.whole < shares.middle <= 1
    assert 0 < found.driver_load < 1
    assert found.delay_seconds is not None
    assert found.late_delay_seconds is not None
    assert 0 <= found.delay_seconds <= found.late_delay_seconds < 1


def test_a_sweep_is_cut_when_its_work_takes_too_long(tmp_path):
    case = Case(method="grid", stretch=1, devices=2, cohort=2, trials=64)
    found = simulate(tmp_path, case, lengths(), most_seconds=0.2)
    assert not found.finished
    assert found.told < 64
    assert found.processor_seconds < 10


def test_the_recorded_runs_learn_and_gain_by_sharing_a_pass():
    recorded = load_lengths()
    assert recorded.pass_share(1) == 1
    assert recorded.pass_share(8) < recorded.pass_share(2) < 1
    assert recorded.loss(2, 3e-3, 1.0) < recorded.loss(2, 3e-3, 0.2)
    between = recorded.loss(2, 2e-3, 1.0)
    assert recorded.loss(2, 3e-3, 1.0) < between < recorded.loss(2, 1e-3, 1.0)
    assert 0 < recorded.step_seconds(16) < recorded.start_seconds
