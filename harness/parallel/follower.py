"""A rank that follows: it holds the base, computes the rows that it is given, and decides nothing."""

import traceback
from collections.abc import Callable, Mapping
from typing import assert_never

import torch

from harness.engine.adapter import Adapter
from harness.engine.micro_step import Gradient
from harness.engine.shared_base import SharedBase
from harness.measure.meter import meter_of
from harness.parallel.group import Group
from harness.parallel.leader import digest
from harness.parallel.messages import Command, Drop, Fault, Hold, Pass, Reply, Word
from harness.parallel.shares import added_up, computed, fault_of


class Follower:
    """One rank's base and adapters, at the leader's disposal."""

    def __init__(self, group: Group, open_base: Callable[[], SharedBase], *, shards: bool) -> None:
        """A base that cannot be opened answers the first command; one that `shards` waits for it."""
        assert not group.is_leader
        self._group = group
        self._open_base = open_base
        self._shards = shards
        self._adapters: dict[str, Adapter] = {}
        """Adapters by the leader's names."""
        self._base: SharedBase | None = None
        self._fault: Exception | None = None
        if not shards:
            self._open()

    def _open(self) -> None:
        try:
            self._base = self._open_base()
        except Exception as error:
            traceback.print_exc()
            self._fault = error

    def follow(self) -> None:
        """Do what the leader says until it ends. Raises RankLost where it is gone."""
        while self._obey(self._group.hear()):
            pass

    def _obey(self, command: Command) -> bool:
        """Do what one command says; return whether others will come."""
        match command:
            case Word.divide:
                self._open()
                self._group.exchange(Reply(fault=fault_of(self._fault)))
            case Word.assist:
                self._assist()
            case Hold():
                self._group.exchange(self._hold(command))
            case Drop():
                self._drop(command.name)
            case Pass():
                self._pass(command)
            case Word.end:
                return False
            case _ as unreachable:
                assert_never(unreachable)
        return True

    def _hold(self, command: Hold) -> Reply:
        if self._base is None:
            return Reply(fault=fault_of(self._fault))
        try:
            adapter = self._base.attach(command.lora, command.seed)
        except Exception as error:
            traceback.print_exc()
            return Reply(fault=fault_of(error))
        self._adapters[command.name] = adapter
        return Reply(digest=digest(adapter))

    def _drop(self, name: str) -> None:
        adapter = self._adapters.pop(name, None)
        if adapter is not None and self._base is not None:
            self._base.detach(adapter)

    def _assist(self) -> None:
        """Gather the base with the others; a pass over one position does that, and nothing is made of it."""
        base = self._base
        assert base is not None, "a pass over a base that is not open"
        one_position = torch.zeros(1, 1, dtype=torch.long, device=base.base.device)
        with torch.no_grad(), base.only(None):
            base.model(input_ids=one_position, use_cache=False)

    def _pass(self, command: Pass) -> None:
        assert self._base is not None, "a pass before an adapter"
        for name in command.moved:
            self._group.spread(self._adapters[name].flat_P)
        gradients, fault = self._computed(self._base, command)
        answers = self._group.exchange(Reply(fault=fault))
        if all(answer.fault is None for answer in answers):
            added_up(self._group, {name: self._adapters[name] for name in command.names}, gradients)
        else:
            meter_of(self._base.base.device).empty()

    def _computed(
        self, base: SharedBase, command: Pass
    ) -> tuple[Mapping[str, Gradient], Fault | None]:
        """Return the gradients of our share or what went wrong; not the error, which holds tensors."""
        own = computed(base, command.shares[self._group.rank], self._adapters)
        if own.error is not None:
            if self._shards:  # the others wait in the middle of the pass: there is no answering
                raise own.error
            traceback.print_exception(own.error)
        return own.gradients, fault_of(own.error)
