"""A base that all ranks hold together: how it is divided, gathered, and how the leader calls to its passes.

Gathering is FSDP2's own way, save that a lost process is told from a fault of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

from harness.base.build import Base
from harness.base.sharding import shard_model
from harness.parallel.group import Group
from harness.parallel.messages import Word


def share_out(base: Base, group: Group) -> None:
    """Keep this rank's share of `base`, which lies on the CPU, on the rank's device. All ranks call it."""
    gathering = Gathering(group)
    for part in shard_model(base.model, base.linears, base.storage, group.device):
        part.set_custom_all_gather(gathering)
    base.device, base.processes = group.device, group.size


class Gathering(DefaultAllGather):
    """Gathers one block's shares; raises RankLost where another process is gone."""

    def __init__(self, ranks: Group) -> None:
        self._ranks = ranks

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Gather: between GPUs beside the computation, while gloo is awaited here, where it can fail."""
        beside = async_op and input_tensor.is_cuda
        with self._ranks.connected():
            return super().__call__(output_tensor, input_tensor, group, async_op=beside)


class AssistedForwards:
    """Calls all ranks to each forward pass of the leader's own, in evaluation: they gather, it computes."""

    def __init__(self, model: nn.Module, group: Group) -> None:
        self._group = group
        self._calls = True
        self.is_in_step = True
        """Whether no pass has been broken off, in which the others would still wait."""
        # Before FSDP2's own hook, which waits for the others.
        model.register_forward_pre_hook(self._begin, prepend=True)
        model.register_forward_hook(self._end)

    @contextmanager
    def of_all_ranks(self) -> Iterator[None]:
        """Within this context a pass is one that all ranks make, as they have been told already."""
        self._calls = False
        try:
            yield
        finally:
            self._calls = True

    def _begin(self, *_: Any) -> None:
        if not self._calls:
            return
        if not self.is_in_step:
            self._group.abandon()
        self._group.tell(Word.assist)
        self.is_in_step = False

    def _end(self, *_: Any) -> None:
        if self._calls:
            self.is_in_step = True
