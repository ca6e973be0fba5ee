"""What a pass costs and whose it is, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import RunFailed
from harness.measure.series import PassCost
from harness.training.passes import _smaller, _tell_cost, check_size


class Entry:
    """Stands in for a run: what a pass reads of it, and what it is told."""

    def __init__(self, micro: int, activation_bytes: int | None) -> None:
        self.told: list[Any] = []
        self.notes: list[str] = []
        self.note = self.notes.append
        self.costs = SimpleNamespace(add=lambda cost, own: self.told.append((cost, own)))
        self.slot = SimpleNamespace(
            micro_batch_size=micro,
            activation_bytes=activation_bytes,
            shrink_micro_batch=self.shrink,
        )

    def shrink(self) -> bool:
        self.slot.micro_batch_size //= 2
        return self.slot.micro_batch_size > 0


def entry(micro: int = 4, activation_bytes: int | None = None) -> Any:
    return Entry(micro, activation_bytes)


@pytest.mark.parametrize(
    ("before", "after", "joules"),
    [(100.0, 350.0, 250.0), (None, 350.0, None), (100.0, None, None), (0.0, 7.0, 7.0)],
)
def test_each_run_is_told_the_whole_pass_and_its_own_tokens(
    before: float | None, after: float | None, joules: float | None
) -> None:
    one, other = entry(), entry()
    sizer: Any = SimpleNamespace(pass_bytes=lambda group: 900)
    meter: Any = SimpleNamespace(energy_joules=lambda: after, now=lambda: "a reading")
    _tell_cost(sizer, [one, other], {one: 30, other: 12}, meter, before)
    cost = PassCost(
        runs=2,
        input_tokens=42,
        reading="a reading",  # pyright: ignore[reportArgumentType]
        saved_bytes=900,
        joules=joules,
    )
    assert (one.told, other.told) == ([(cost, 30)], [(cost, 12)])


def test_what_a_pass_keeps_is_the_runs_own_count_where_no_pass_was_looked_at() -> None:
    alone = entry(activation_bytes=700)
    sizer: Any = SimpleNamespace(pass_bytes=lambda group: None)
    meter: Any = SimpleNamespace(energy_joules=lambda: None, now=lambda: "a reading")
    _tell_cost(sizer, [alone], {alone: 5}, meter, None)
    assert alone.told[0][0].saved_bytes == 700


def test_what_does_not_fit_is_divided_by_runs_then_by_rows() -> None:
    group = [entry() for _ in range(5)]
    sizer: Any = SimpleNamespace(ran_out=lambda group: 3)
    assert _smaller(sizer, group) == [group[:3], group[3:]]
    assert group[4].notes == ["out of memory with 5 runs in a pass; went on with 3"]
    alone = [entry(micro=2)]
    assert _smaller(sizer, alone) == [alone]
    told = "out of memory with a micro-batch of 2 rows; went on with 1 (the same batch)"
    assert alone[0].notes == [told]
    assert _smaller(sizer, alone) is None


def test_a_run_is_trained_by_as_many_processes_as_it_asks_for() -> None:
    check_size(2, 2)
    for asked, running in ((2, 1), (1, 2)):
        with pytest.raises(RunFailed, match=f"data_parallel={asked} asks .* and {running} would"):
            check_size(asked, running)
