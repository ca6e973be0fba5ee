"""A rank that follows: it holds the base, computes the rows that it is given, and decides nothing."""

import traceback
from collections.abc import Callable, Mapping
from typing import assert_never

import torch

from harness.adapters.adapter import Adapter
from harness.adapters.shared import SharedBase
from harness.parallel.group import Group
from harness.parallel.leader import digest
from harness.parallel.orders import Drop, End, Fault, Hold, Pass, Reply
from harness.parallel.shares import added_up, computed, fault_of
from harness.training.cohort import Gradient


class Follower:
    """One rank's base and adapters, at the leader's disposal."""

    def __init__(self, group: Group, open_base: Callable[[], SharedBase]) -> None:
        """A base that cannot be opened is the answer to the first order."""
        assert not group.is_leader
        self._group = group
        self._adapters: dict[str, Adapter] = {}
        """By the leader's names."""
        self._base: SharedBase | None = None
        self._fault: Exception | None = None
        try:
            self._base = open_base()
        except Exception as error:
            traceback.print_exc()
            self._fault = error

    def follow(self) -> None:
        """Do what the leader says until it ends. Raises RankLost where it is gone."""
        while True:
            order = self._group.hear()
            match order:
                case Hold():
                    self._group.exchange(self._hold(order))
                case Drop():
                    self._drop(order.name)
                case Pass():
                    self._pass(order)
                case End():
                    return
                case _ as unreachable:
                    assert_never(unreachable)

    def _hold(self, order: Hold) -> Reply:
        if self._base is None:
            return Reply(fault=fault_of(self._fault))
        try:
            adapter = self._base.attach(order.lora, order.seed)
        except Exception as error:
            traceback.print_exc()
            return Reply(fault=fault_of(error))
        self._adapters[order.name] = adapter
        return Reply(digest=digest(adapter))

    def _drop(self, name: str) -> None:
        adapter = self._adapters.pop(name, None)
        if adapter is not None and self._base is not None:
            self._base.detach(adapter)

    def _pass(self, order: Pass) -> None:
        assert self._base is not None, "a pass before an adapter"
        for name in order.moved:
            self._group.spread(self._adapters[name].flat_P)
        gradients, fault = self._computed(self._base, order)
        answers = self._group.exchange(Reply(fault=fault))
        if all(answer.fault is None for answer in answers):
            added_up(self._group, {name: self._adapters[name] for name in order.names}, gradients)
        elif self._base.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def _computed(
        self, base: SharedBase, order: Pass
    ) -> tuple[Mapping[str, Gradient], Fault | None]:
        """Return the gradients of our share or what went wrong; not the error, which holds tensors."""
        own = computed(base, order.shares[self._group.rank], self._adapters)
        if own.error is not None:
            traceback.print_exception(own.error)
        return own.gradients, fault_of(own.error)
