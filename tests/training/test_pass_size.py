"""The size of a pass: chosen by made-up timings, bounded by made-up memory."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.training import pass_size
from harness.training.entry import RunEntry
from harness.training.pass_size import PassSizer, best_size, is_enough, ladder, size_to_time

MANY = 8


def times(**seconds_per_run: float) -> dict[int, list[float]]:
    """Return eight equal timings for each size, given as s1=…, s2=…"""
    return {int(name[1:]): [value] * MANY for name, value in seconds_per_run.items()}


def entry(rows: int = 16, length: int = 48, adapter_bytes: int = 1000) -> RunEntry:
    """Return what a sizer reads of a run."""
    fields: Any = SimpleNamespace(
        slot=SimpleNamespace(
            micro_batch_size=rows,
            can_be_captured=False,
            adapter=SimpleNamespace(num_bytes=adapter_bytes),
            pass_tokens=rows * length,
        ),
        job=SimpleNamespace(data=SimpleNamespace(train=SimpleNamespace(row_length=length))),
        shared=SimpleNamespace(base=SimpleNamespace(device=torch.device("cpu"))),
    )
    return fields


def simulate(
    sizer: PassSizer, seconds: Callable[[int], float], runs: int, passes: int
) -> list[int]:
    """Let `runs` runs of one kind train as the sizer says, a pass of n taking seconds(n); sizes made."""
    entries = [entry() for _ in range(runs)]
    sizes = []
    for _ in range(passes):
        for group in sizer.groups(entries[: sizer.slots]):
            sizer.observe(group, seconds(len(group)))
            sizes.append(len(group))
    return sizes


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (6, [1, 2, 4, 6])]
)
def test_sizes_double_up_to_the_most(most: int, sizes: list[int]) -> None:
    assert ladder(most) == sizes


def test_short_passes_are_timed_more_often() -> None:
    assert is_enough(1, [0.2] * 3)
    assert is_enough(4, [0.05] * 3)
    assert not is_enough(1, [0.05] * 3)
    assert is_enough(1, [0.001] * MANY)
    assert not is_enough(1, [0.001] * (MANY - 1))
    assert not is_enough(1, [9.0] * 2)


def test_larger_sizes_are_tried_until_one_costs_time() -> None:
    assert size_to_time({}, 16) == 1
    assert size_to_time(times(s1=1.0), 16) == 2
    assert size_to_time(times(s1=1.0, s2=0.8), 16) == 4
    assert size_to_time(times(s1=1.0, s2=1.02), 16) == 4
    assert size_to_time(times(s1=1.0, s2=1.1), 16) is None
    assert size_to_time(times(s1=1.0, s2=0.8, s4=0.7), 4) is None


def test_a_burst_of_other_work_does_not_end_the_search() -> None:
    disturbed = {1: [0.100] * MANY, 2: [0.079, 0.110, 0.200]}
    assert size_to_time(disturbed, 16) == 4


def test_the_fastest_size_is_chosen_and_one_at_a_time_unless_sharing_is_clearly_faster() -> None:
    assert best_size(times(s1=1.0, s2=0.8, s4=0.6, s8=0.65), 8) == 4
    assert best_size(times(s1=1.0, s2=0.98, s4=0.97), 8) == 1
    assert best_size(times(s1=1.0, s2=0.95), 8) == 2
    assert best_size(times(s1=1.0, s2=0.8, s4=0.6), 2) == 2
    assert best_size({}, 8) == 1


def test_one_slot_is_one_run_and_no_timing() -> None:
    sizer = PassSizer(max_slots=1)
    assert simulate(sizer, lambda n: 1.0, runs=4, passes=50) == [1] * 50
    assert sizer.slots == 1
    assert not sizer.is_timing([entry()])
    assert sizer.description == "one at a time"


def test_where_sharing_pays_all_slots_are_used_after_a_few_passes() -> None:
    sizer = PassSizer(max_slots=8)
    sizes = simulate(sizer, lambda n: 0.1 + 0.05 * n, runs=8, passes=60)
    assert sizer.slots == 8
    assert sizes[-20:] == [8] * 20
    assert sizes.index(8) < 25
    assert sizer.description.startswith("8 of 8 slots a pass, 2.4")


def test_where_sharing_costs_time_one_run_is_admitted_and_trained() -> None:
    sizer = PassSizer(max_slots=8)
    sizes = simulate(sizer, lambda n: 0.1 * n * (1 + 0.1 * n), runs=8, passes=60)
    assert sizer.slots == 1
    assert set(sizes) == {1, 2}
    assert sizes.count(2) <= 4
    assert sizes[-20:] == [1] * 20
    assert sizer.description == "one at a time: sharing a pass is no faster here"


def test_the_best_size_may_lie_between_and_the_oldest_go_first() -> None:
    sizer = PassSizer(max_slots=16)
    simulate(sizer, lambda n: 0.1 + 0.02 * n**1.7, runs=16, passes=80)
    entries = [entry() for _ in range(16)]
    (group,) = sizer.groups(entries)
    assert group == entries[: len(group)]
    assert len(group) in (4, 8)
    assert sizer.slots == len(group)


def test_fewer_runs_than_the_next_size_are_compared_as_they_are() -> None:
    sizer = PassSizer(max_slots=16)
    sizes = simulate(sizer, lambda n: 0.1 + 0.05 * n, runs=3, passes=60)
    assert sizes[-10:] == [3] * 10
    sizer = PassSizer(max_slots=16)
    sizes = simulate(sizer, lambda n: 0.2 if n == 3 else 0.05 + 0.04 * n, runs=3, passes=60)
    assert sizes[-10:] == [2] * 10


def test_a_machine_that_becomes_busy_is_timed_again() -> None:
    sizer = PassSizer(max_slots=4)
    simulate(sizer, lambda n: 0.3 + 0.01 * n, runs=4, passes=50)
    assert sizer.slots == 4
    simulate(sizer, lambda n: 0.1 * n**2, runs=4, passes=1000)
    assert sizer.slots == 1


def test_times_are_taken_anew_after_128_passes_then_256_and_at_last_every_2048() -> None:
    sizer, one, waits = PassSizer(max_slots=2), [entry()], [0]
    for _ in range(6):
        while sizer.is_timing(one):
            sizer.observe(one, 1.0)
        sizer.observe([entry(), entry()], 1.0)  # the first of its kind warms up
        while sizer.is_timing([entry(), entry()]):
            sizer.observe([entry(), entry()], 2.0)
        waits.append(0)
        while not sizer.is_timing(one):
            sizer.observe(one, 1.0)
            waits[-1] += 1
    assert waits[1:] == [128, 256, 512, 1024, 2048, 2048]


def test_a_measurement_counts_as_much_as_the_one_before() -> None:
    """Two runs a pass were slow once, and twice as quick the next time: the median of both lies between."""
    sizer, pair = PassSizer(max_slots=2), [entry(), entry()]
    for seconds in (3.0, 0.5):
        for group, of_pass in ((pair[:1], 1.0), (pair, seconds)):
            while sizer.is_timing(group):
                sizer.observe(group, of_pass)
        if seconds == 3.0:
            for _ in range(128):
                sizer.observe(pair, seconds)
    assert sizer.groups(pair) == [pair]
    assert sizer.description == "2 of 2 slots a pass, 1.14 x one at a time"


def test_the_first_pass_of_a_size_warms_up_and_is_not_timed() -> None:
    sizer, pair = PassSizer(max_slots=2), [entry(), entry()]
    for group in (pair[:1], pair):
        sizer.observe(group, 99.0)
        sizer.forget_timing(group)  # captured anew: the next is the first again
        sizer.observe(group, 99.0)
        while sizer.is_timing(group):
            sizer.observe(group, 1.0 + 0.5 * len(group))
    assert sizer.groups(pair) == [pair]
    assert sizer.description == "2 of 2 slots a pass, 1.50 x one at a time"


def test_runs_of_other_micro_batches_are_timed_apart_and_share_no_pass() -> None:
    sizer = PassSizer(max_slots=8)
    simulate(sizer, lambda n: 0.1 + 0.01 * n, runs=8, passes=60)
    large = [entry(rows=64) for _ in range(2)]
    groups = sizer.groups([*(entry() for _ in range(3)), *large])
    assert [len(group) for group in groups] == [3, 1]
    assert sizer.is_timing(groups[1])


def test_the_size_grows_only_as_predicted_memory_allows() -> None:
    free = 10**12
    sizer = PassSizer(max_slots=16, memory_bytes=free)
    one = [entry(adapter_bytes=0)]
    assert sizer.wants_bytes(one)
    sizer.observe_bytes(one, pass_bytes=free // 5)
    assert not sizer.wants_bytes(one)
    simulate(sizer, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    assert sizer.slots == 4  # five fifths are more than nine tenths


def measured(
    monkeypatch: pytest.MonkeyPatch, count: int, pass_bytes: int, adapter_bytes: int, used: int
) -> int:
    """Return how many runs share a pass in 10,000 bytes, `used` of them by others, after one of `count`."""
    meter = SimpleNamespace(used_bytes=lambda: used, usable_bytes=lambda: 10_000)
    monkeypatch.setattr(pass_size, "meter_of", lambda device: meter)
    sizer = PassSizer(max_slots=16)
    sizer.observe_bytes([entry(adapter_bytes=adapter_bytes)] * count, pass_bytes)
    simulate(sizer, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    return sizer.slots


@pytest.mark.parametrize(
    ("count", "pass_bytes", "adapter_bytes", "used", "slots"),
    [
        (1, 900, 0, 0, 10),  # nine tenths of the memory
        (1, 901, 0, 0, 9),
        (3, 2700, 0, 0, 10),  # of all three
        (1, 500, 100, 0, 10),  # an adapter comes with its gradient and two moments
        (1, 500, 101, 0, 9),
        (1, 900, 0, 901, 8),
        (1, 20_000, 0, 0, 1),
    ],
)
def test_as_many_runs_share_a_pass_as_have_room_with_what_they_keep(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    pass_bytes: int,
    adapter_bytes: int,
    used: int,
    slots: int,
) -> None:
    assert measured(monkeypatch, count, pass_bytes, adapter_bytes, used) == slots


def test_a_prediction_bounds_the_size_until_a_pass_has_been_measured() -> None:
    free = 10**12
    sizer = PassSizer(max_slots=16, memory_bytes=free, predicted_bytes=lambda entry: free // 5)
    simulate(sizer, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    assert sizer.slots == 4
    sizer.observe_bytes([entry(adapter_bytes=0)], pass_bytes=free // 3)
    simulate(sizer, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    assert sizer.slots == 2


def test_a_pass_that_has_run_out_of_memory_is_the_last_of_its_size() -> None:
    sizer = PassSizer(max_slots=16)
    assert sizer.ran_out([entry() for _ in range(7)]) == 4  # the larger half
    sizer.observe_bytes([entry()], pass_bytes=1)
    simulate(sizer, lambda n: 0.1 + 0.01 * n, runs=16, passes=100)
    assert sizer.slots == 4
    sizer.allow_slots(2)
    assert sizer.slots == 2


def test_a_pass_with_more_positions_than_any_so_far_is_measured_again() -> None:
    sizer = PassSizer(max_slots=4, memory_bytes=10**12)
    short, long = entry(), entry()
    short.slot.pass_tokens = 100  # pyright: ignore[reportAttributeAccessIssue]  (a stand-in)
    sizer.observe_bytes([short], pass_bytes=7)
    assert not sizer.wants_bytes([short])
    assert sizer.wants_bytes([long])
    sizer.observe_bytes([long], pass_bytes=11)
    sizer.observe_bytes([long], pass_bytes=9)
    assert sizer.pass_bytes([short]) == sizer.pass_bytes([long]) == 11
