"""The leading rank: it trains as one process does, and lets the others compute their rows of each pass.

It alone moves adapters, evaluates, decides and writes; what the others hold of a run is its adapter, which
they receive when it has moved. So nothing has to be agreed upon, and no two ranks can drift apart.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from harness.base.build import Base
from harness.engine.adapter import Adapter
from harness.engine.micro_step import Gradient, Work
from harness.engine.shared_base import SharedBase
from harness.errors import RunFailed
from harness.parallel.fsdp import AssistedForwards, share_out
from harness.parallel.group import Group, RankLost
from harness.parallel.messages import Command, Drop, Fault, Hold, Pass, Reply, Share, Word
from harness.parallel.shares import added_up, computed, divided, fault_of
from harness.training.passes import Ranks
from harness.training.slot import Slot


class Leader(Ranks):
    """The ranks of a run as its training loop sees them."""

    def __init__(self, group: Group, logs: Sequence[Path]) -> None:
        """`logs`: where each rank's output goes, for messages."""
        assert group.is_leader
        self._group = group
        self._logs = logs
        self._lends: AssistedForwards | None = None
        """Models of a sharded base whose forward passes need all ranks."""
        self.fault: Fault | None = None
        """Error of a sharded base that happened here, in the middle of a pass of all ranks."""
        self._sent: dict[str, int] = {}
        """Adapters that all ranks hold, with the step whose values they have; -1: their own initial ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._notice_broken_pass()
        if kind is None and not self._group.is_broken:
            self._tell(Word.end)  # else the connections close, which says it too

    def _tell(self, command: Command) -> None:
        self._notice_broken_pass()
        self._group.tell(command)

    def _notice_broken_pass(self) -> None:
        if self._lends is not None and not self._lends.is_in_step:
            self._group.abandon()

    @property
    def size(self) -> int:
        return self._group.size

    def shard(self, base: Base) -> None:
        """Let all ranks build the base, and divide it among them."""
        self._tell(Word.divide)
        error: Exception | None = None
        try:
            share_out(base, self._group)
        except Exception as own:  # is an answer, too, for which the others wait
            error = own
        answers = self._group.exchange(Reply(fault=fault_of(error)))
        if error is not None:
            raise error
        self._raise_fault(answers)
        self._lends = AssistedForwards(base.model, self._group)

    def gradients(
        self, shared: SharedBase, slots: Sequence[Slot], work: Sequence[Work]
    ) -> list[Gradient]:
        for name in self._sent.keys() - shared.plan.adapters.keys():
            self._drop(name)
        for slot in slots:
            if slot.adapter.name not in self._sent:
                self._hold(slot)
        shares = [divided(slot, item, self.size) for slot, item in zip(slots, work, strict=True)]
        by_rank = tuple(
            tuple(share for share in of_rank if share is not None)
            for of_rank in zip(*shares, strict=True)
        )
        if self._lends is not None and not all(by_rank):
            raise RunFailed(
                f"a micro-batch of fewer rows than {self.size} processes leaves one without any, and a "
                "sharded base needs all of them in each pass"
            )
        return self._pass(shared, slots, by_rank)

    def _pass(
        self, shared: SharedBase, slots: Sequence[Slot], by_rank: tuple[tuple[Share, ...], ...]
    ) -> list[Gradient]:
        moved = [s for s in slots if self._sent[s.adapter.name] != s.progress.step]
        self._tell(
            Pass(
                names=tuple(slot.adapter.name for slot in slots),
                moved=tuple(slot.adapter.name for slot in moved),
                shares=by_rank,
            )
        )
        for slot in moved:
            self._group.spread(slot.adapter.flat_P)
            self._sent[slot.adapter.name] = slot.progress.step
        adapters = {slot.adapter.name: slot.adapter for slot in slots}
        if self._lends is None:
            own = computed(shared, by_rank[0], adapters)
        else:
            with self._lends.of_all_ranks():
                own = computed(shared, by_rank[0], adapters)
            if own.error is not None:
                self._leave_step(own.error)
        answers = self._group.exchange(Reply(fault=fault_of(own.error)))
        if own.error is not None:
            try:
                raise own.error
            finally:
                del (
                    own
                )  # this frame is in the error's traceback: together they would keep its tensors
        self._raise_fault(answers)
        return added_up(self._group, adapters, own.gradients)

    def _leave_step(self, error: Exception) -> None:
        """End the run: the others wait in the middle of a pass, which therefore cannot be repeated."""
        if isinstance(error, RankLost):
            raise error
        self._group.abandon()
        self.fault = fault_of(error)
        raise RunFailed(
            f"{type(error).__name__}: {error} (the other process cannot repeat a pass over a sharded base)"
        ) from error

    def _hold(self, slot: Slot) -> None:
        """Let the other ranks attach a slot's adapter, and check that it begins as ours does."""
        name = slot.adapter.name
        config = slot.config
        self._tell(Hold(name=name, lora=config.lora, seed=config.seed))
        own = digest(slot.adapter)
        answers = self._group.exchange(Reply(digest=own))
        try:
            self._raise_fault(answers)
            is_new = slot.progress.step == 0  # else a checkpoint has moved ours on
            different = [rank for rank, each in enumerate(answers) if each.digest != own]
            if is_new and different:
                raise RunFailed(
                    f"the adapter of seed {config.seed} begins otherwise in process "
                    f"{', '.join(map(str, different))} than in process 0: its base or its libraries differ"
                )
        except Exception:
            self._drop(name)
            raise
        self._sent[name] = -1

    def _drop(self, name: str) -> None:
        self._sent.pop(name, None)
        self._tell(Drop(name=name))

    def _raise_fault(self, answers: Sequence[Reply]) -> None:
        """Raise what has gone wrong in another rank; memory first, because less of it can be asked for."""
        faults = [(rank, each.fault) for rank, each in enumerate(answers) if each.fault is not None]
        for rank, fault in faults:
            if fault.is_out_of_memory:
                raise torch.OutOfMemoryError(f"process {rank}: {fault.text}")
        for rank, fault in faults:
            raise RunFailed(f"process {rank}: {fault.text} (see {self._logs[rank]})")


def digest(adapter: Adapter) -> str:
    """Return a hash of an adapter's values."""
    return hashlib.sha256(adapter.flat_P.cpu().numpy().tobytes()).hexdigest()
