"""How many runs have a slot, and how many of them share a forward pass: by memory and by measured time.

The planner says how many fit before a pass has been measured. Whether sharing one pays depends on the
machine, the base, the rows and what else the processor does, so it is timed: on passes that train the runs
anyway, sizes 1, 2, 4, … are tried for as long as a run's share of the pass does not grow. Where no size is
clearly faster than one run at a time, runs train one at a time.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.measure.meter import Meter, meter_of
from harness.training.entry import RunEntry

MARGIN = 0.04
"""Sharing a pass must save this share of a run's time; a larger size that costs as much more is the last."""
MEMORY_SHARE = 0.9
"""Share of the memory that predictions may fill: allocators fragment, and linear growth is an estimate."""

_FEW_PASSES, _MANY_PASSES, _FEW_SECONDS = 3, 8, 0.25
_FIRST_INTERVAL, _LAST_INTERVAL = 128, 2048

Times = Mapping[int, Sequence[float]]
"""Size of a pass -> seconds per run of each pass that was timed."""


def is_enough(size: int, seconds_per_run: Sequence[float]) -> bool:
    """Say whether a size has been timed: three passes if they are long, up to eight short ones."""
    passes = len(seconds_per_run)
    if passes < _FEW_PASSES:
        return False
    return passes >= _MANY_PASSES or size * sum(seconds_per_run) >= _FEW_SECONDS


def ladder(most: int) -> list[int]:
    """Return the sizes of pass that are compared: 1, 2, 4, … and `most`."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power < most} | {most})


def size_to_time(times: Times, most: int) -> int | None:
    """Return the size of pass to time next; None once a larger one has cost time, or at `most`."""
    best: Sequence[float] = ()
    for size in ladder(most):
        seconds = times.get(size, ())
        if not is_enough(size, seconds):
            return size
        if best and _is_slower(seconds, best):
            return None
        best = min(best or seconds, seconds, key=statistics.median)
    return None


def _is_slower(one: Sequence[float], other: Sequence[float]) -> bool:
    """Say whether one size is clearly slower: other work on the machine leaves some pass its speed."""
    limit = 1 + MARGIN
    return statistics.median(one) > limit * statistics.median(other) and min(one) > limit * min(
        other
    )


def best_size(times: Times, most: int) -> int:
    """Return the size with the least seconds per run; 1 unless another one saves at least `MARGIN`."""
    medians = {
        size: statistics.median(times[size])
        for size in ladder(most)
        if is_enough(size, times.get(size, ()))
    }
    if 1 not in medians:
        return 1
    best = min(medians, key=lambda size: medians[size])
    return best if medians[best] <= (1 - MARGIN) * medians[1] else 1


Key = tuple[int, int, bool]
"""What runs must have in common to share a pass: rows of a micro-batch, positions of a row, whether a backend
that captures steps can move them."""


@dataclass(slots=True)
class _Sizes:
    """What is known about passes of one kind of micro-batch."""

    most: int
    """The largest size that memory allows, as far as it is predicted."""
    ceiling: int
    """The largest size that has not run out of memory, and at most all slots."""
    times: dict[int, list[float]] = field(default_factory=dict)
    """Times of the measurement in progress, or of the last one."""
    before: dict[int, list[float]] = field(default_factory=dict)
    """Times of the measurement before, which counts as much: one of them may have met a busy moment."""
    warm: set[int] = field(default_factory=set)
    """Sizes that have had their first pass since the measurement began."""
    interval: int = _FIRST_INTERVAL
    passes: int = 0
    """Passes since the last measurement."""

    def both(self) -> dict[int, list[float]]:
        """Return the times of the last two measurements."""
        sizes = self.times.keys() | self.before.keys()
        return {size: self.before.get(size, []) + self.times.get(size, []) for size in sizes}

    def size(self, present: int) -> int:
        """Return how many of `present` runs make the next pass."""
        wanted = size_to_time(self.times, self.most)
        if wanted is None:
            return min(best_size(self.both(), self.most), present)
        if wanted <= present:
            return wanted
        return size_to_time(self.times, present) or best_size(self.both(), present)

    def slots(self) -> int:
        """Return how many runs can be used now."""
        best = best_size(self.both(), self.most)
        return max(best, size_to_time(self.times, self.most) or 1)

    def is_timing(self, size: int) -> bool:
        """Say whether a pass of this size is one that is timed."""
        return not is_enough(size, self.times.get(size, ()))

    def observe(self, size: int, seconds: float) -> None:
        """Take note of one pass."""
        if self.is_timing(size):
            if size in self.warm:
                self.times.setdefault(size, []).append(seconds / size)
            self.warm.add(size)
            return
        self.passes += 1
        if self.passes >= self.interval and self.most > 1:
            self.before, self.times, self.warm, self.passes = self.times, {}, set(), 0
            self.interval = min(2 * self.interval, _LAST_INTERVAL)


class PassSizer:
    """Decides which runs make the next micro-step, in which passes, and how many may be admitted."""

    def __init__(
        self,
        *,
        max_slots: int,
        memory_bytes: int | None = None,
        predicted_bytes: Callable[[RunEntry], int] | None = None,
    ) -> None:
        """At most `max_slots` runs side by side.

        `memory_bytes` of the device are ours (None: all of it). `predicted_bytes` says what a pass of one run
        needs, before one has been measured.
        """
        assert max_slots >= 1, f"max_slots={max_slots}"
        self.max_slots = max_slots
        self.memory_bytes = memory_bytes
        self._predicted_bytes = predicted_bytes
        self._sizes: dict[Key, _Sizes] = {}
        self._bytes: dict[tuple[Key, int], tuple[int, int]] = {}
        """By kind and size of a pass: what the one with the most positions needed, and how many it had."""
        self._present: list[Key] = []

    @property
    def slots(self) -> int:
        """How many runs may be admitted now, those that train already included."""
        if not self._present:
            return 1
        return max(1, *(self._of(key).slots() for key in self._present))

    def groups(self, entries: Sequence[RunEntry]) -> list[list[RunEntry]]:
        """Return which runs make the next micro-step, one list per pass.

        Runs of one kind that do not fit into one pass wait until an older one has ended: a search hears
        about a few runs early rather than about all of them late.
        """
        kinds: dict[Key, list[RunEntry]] = {}
        for entry in entries:
            kinds.setdefault(_key(entry), []).append(entry)
        self._present = list(kinds)
        for key, kind in kinds.items():
            if key not in self._sizes and self.max_slots > 1 and self._predicted_bytes is not None:
                self._bound(kind, self._predicted_bytes(kind[0]))
        return [kind[: self._of(key).size(len(kind))] for key, kind in kinds.items()]

    def is_timing(self, group: Sequence[RunEntry]) -> bool:
        """Say whether this pass will be timed: then its end must be waited for on a GPU."""
        sizes = self._of(_key(group[0]))
        return sizes.most > 1 and sizes.is_timing(len(group))

    def observe(self, group: Sequence[RunEntry], seconds: float) -> None:
        """Take note of what one pass of `group` has taken."""
        self._of(_key(group[0])).observe(len(group), seconds)

    def forget_timing(self, group: Sequence[RunEntry]) -> None:
        """Leave the pass in progress out of the times: it was the first of its kind, and was captured."""
        self._of(_key(group[0])).warm.discard(len(group))

    def wants_bytes(self, group: Sequence[RunEntry]) -> bool:
        """Say whether no pass of this kind and size with as many positions has been looked at."""
        if self.max_slots == 1:
            return False
        known = self._bytes.get((_key(group[0]), len(group)))
        return known is None or known[1] < _positions(group)

    def pass_bytes(self, group: Sequence[RunEntry]) -> int | None:
        """Return what the largest pass of this kind and size so far needed; None where none was looked at."""
        known = self._bytes.get((_key(group[0]), len(group)))
        return None if known is None else known[0]

    def observe_bytes(self, group: Sequence[RunEntry], pass_bytes: int) -> None:
        """Bound the size of a pass by memory: `pass_bytes` were needed for `group`, and free again now."""
        known = self._bytes.get((_key(group[0]), len(group)), (0, 0))
        self._bytes[_key(group[0]), len(group)] = max(pass_bytes, known[0]), _positions(group)
        self._bound(group, pass_bytes / len(group))

    def _bound(self, group: Sequence[RunEntry], pass_bytes_per_run: float) -> None:
        """Allow as many runs in a pass as have room, each with its gradient and two moments in float32."""
        meter = meter_of(group[0].shared.base.device)
        adapter = max(entry.slot.adapter.num_bytes for entry in group)
        per_run = pass_bytes_per_run + 4 * adapter
        free = MEMORY_SHARE * self._limit(meter) - meter.used_bytes()
        sizes = self._of(_key(group[0]))
        sizes.most = min(max(1, int(free / per_run)), sizes.ceiling)

    def ran_out(self, group: Sequence[RunEntry]) -> int:
        """Return how many runs may share a pass from now on: `group` did not fit into the memory."""
        sizes = self._of(_key(group[0]))
        sizes.ceiling = min(sizes.ceiling, math.ceil(len(group) / 2))
        sizes.most = min(sizes.most, sizes.ceiling)
        return sizes.most

    def allow_slots(self, count: int) -> None:
        """Admit at most `count` runs from now on: one more did not fit into the memory."""
        self.max_slots = max(1, min(self.max_slots, count))
        for sizes in self._sizes.values():
            sizes.ceiling = min(sizes.ceiling, self.max_slots)
            sizes.most = min(sizes.most, sizes.ceiling)

    @property
    def description(self) -> str:
        """What was decided, in words: for a display and the record."""
        if self.max_slots == 1:
            return "one at a time"
        if not self._present:
            return "nothing timed yet"
        sizes = self._of(self._present[0])
        if size_to_time(sizes.times, sizes.most) is not None:
            return f"timing passes of up to {sizes.slots()} runs"
        times = sizes.both()
        best = best_size(times, sizes.most)
        if best == 1:
            return "one at a time: sharing a pass is no faster here"
        gain = statistics.median(times[1]) / statistics.median(times[best])
        return f"{best} of {self.max_slots} slots a pass, {gain:.2f} x one at a time"

    def _of(self, key: Key) -> _Sizes:
        return self._sizes.setdefault(key, _Sizes(most=self.max_slots, ceiling=self.max_slots))

    def _limit(self, meter: Meter) -> int:
        if self.memory_bytes is None:
            self.memory_bytes = meter.usable_bytes()
        return self.memory_bytes


def _positions(group: Sequence[RunEntry]) -> int:
    return sum(entry.slot.pass_tokens for entry in group)


def _key(entry: RunEntry) -> Key:
    slot = entry.slot
    return slot.micro_batch_size, entry.job.data.train.row_length, slot.can_be_captured
