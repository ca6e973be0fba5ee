"""The size of a pass: chosen by made-up timings, bounded by made-up memory."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.training.entry import RunEntry
from harness.training.packing import Packing, best_size, is_enough, ladder, size_to_time

MANY = 8


def times(**seconds_per_run: float) -> dict[int, list[float]]:
    """Return eight equal timings for each size, given as s1=…, s2=…"""
    return {int(name[1:]): [value] * MANY for name, value in seconds_per_run.items()}


def entry(rows: int = 16, length: int = 48, adapter_bytes: int = 1000) -> RunEntry:
    """Return what a packing reads of a run."""
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
    packing: Packing, seconds: Callable[[int], float], runs: int, passes: int
) -> list[int]:
    """Let `runs` runs of one kind train as the packing says, a pass of n taking seconds(n); sizes made."""
    entries = [entry() for _ in range(runs)]
    sizes = []
    for _ in range(passes):
        for group in packing.groups(entries[: packing.slots]):
            packing.observe(group, seconds(len(group)))
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
    packing = Packing(max_slots=1)
    assert simulate(packing, lambda n: 1.0, runs=4, passes=50) == [1] * 50
    assert packing.slots == 1
    assert not packing.is_timing([entry()])
    assert packing.description == "one at a time"


def test_where_sharing_pays_all_slots_are_used_after_a_few_passes() -> None:
    packing = Packing(max_slots=8)
    sizes = simulate(packing, lambda n: 0.1 + 0.05 * n, runs=8, passes=60)
    assert packing.slots == 8
    assert sizes[-20:] == [8] * 20
    assert sizes.index(8) < 25
    assert packing.description.startswith("8 of 8 slots a pass, 2.4")


def test_where_sharing_costs_time_one_run_is_admitted_and_trained() -> None:
    packing = Packing(max_slots=8)
    sizes = simulate(packing, lambda n: 0.1 * n * (1 + 0.1 * n), runs=8, passes=60)
    assert packing.slots == 1
    assert set(sizes) == {1, 2}
    assert sizes.count(2) <= 4
    assert sizes[-20:] == [1] * 20
    assert packing.description == "one at a time: sharing a pass is no faster here"


def test_the_best_size_may_lie_between_and_the_oldest_go_first() -> None:
    packing = Packing(max_slots=16)
    simulate(packing, lambda n: 0.1 + 0.02 * n**1.7, runs=16, passes=80)
    entries = [entry() for _ in range(16)]
    (group,) = packing.groups(entries)
    assert group == entries[: len(group)]
    assert len(group) in (4, 8)
    assert packing.slots == len(group)


def test_fewer_runs_than_the_next_size_are_compared_as_they_are() -> None:
    packing = Packing(max_slots=16)
    sizes = simulate(packing, lambda n: 0.1 + 0.05 * n, runs=3, passes=60)
    assert sizes[-10:] == [3] * 10
    packing = Packing(max_slots=16)
    sizes = simulate(packing, lambda n: 0.2 if n == 3 else 0.05 + 0.04 * n, runs=3, passes=60)
    assert sizes[-10:] == [2] * 10


def test_a_machine_that_becomes_busy_is_timed_again() -> None:
    packing = Packing(max_slots=4)
    simulate(packing, lambda n: 0.3 + 0.01 * n, runs=4, passes=50)
    assert packing.slots == 4
    simulate(packing, lambda n: 0.1 * n**2, runs=4, passes=1000)
    assert packing.slots == 1


def test_runs_of_other_micro_batches_are_timed_apart_and_share_no_pass() -> None:
    packing = Packing(max_slots=8)
    simulate(packing, lambda n: 0.1 + 0.01 * n, runs=8, passes=60)
    large = [entry(rows=64) for _ in range(2)]
    groups = packing.groups([*(entry() for _ in range(3)), *large])
    assert [len(group) for group in groups] == [3, 1]
    assert packing.is_timing(groups[1])


def test_the_size_grows_only_as_predicted_memory_allows() -> None:
    free = 10**12
    packing = Packing(max_slots=16, memory_bytes=free)
    one = [entry(adapter_bytes=0)]
    assert packing.wants_bytes(one)
    packing.observe_bytes(one, pass_bytes=free // 5)
    assert not packing.wants_bytes(one)
    simulate(packing, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    assert packing.slots == 4  # five fifths are more than nine tenths


def test_a_prediction_bounds_the_size_until_a_pass_has_been_measured() -> None:
    free = 10**12
    packing = Packing(max_slots=16, memory_bytes=free, predicted_bytes=lambda entry: free // 5)
    simulate(packing, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    assert packing.slots == 4
    packing.observe_bytes([entry(adapter_bytes=0)], pass_bytes=free // 3)
    simulate(packing, lambda n: 0.1 + 0.01 * n, runs=16, passes=60)
    assert packing.slots == 2


def test_a_pass_that_has_run_out_of_memory_is_the_last_of_its_size() -> None:
    packing = Packing(max_slots=16)
    assert packing.ran_out([entry() for _ in range(8)]) == 4
    packing.observe_bytes([entry()], pass_bytes=1)
    simulate(packing, lambda n: 0.1 + 0.01 * n, runs=16, passes=100)
    assert packing.slots == 4
    packing.allow_slots(2)
    assert packing.slots == 2


def test_a_pass_with_more_positions_than_any_so_far_is_measured_again() -> None:
    packing = Packing(max_slots=4, memory_bytes=10**12)
    short, long = entry(), entry()
    short.slot.pass_tokens = 100  # pyright: ignore[reportAttributeAccessIssue]  (a stand-in)
    packing.observe_bytes([short], pass_bytes=7)
    assert not packing.wants_bytes([short])
    assert packing.wants_bytes([long])
    packing.observe_bytes([long], pass_bytes=11)
    packing.observe_bytes([long], pass_bytes=9)
    assert packing.pass_bytes([short]) == packing.pass_bytes([long]) == 11
