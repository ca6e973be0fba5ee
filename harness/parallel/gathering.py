"""How a sharded base is gathered: FSDP2's own way, save that a lost process is told from a fault of ours."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

from harness.parallel.group import Group


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


def gather_by(parts: Sequence[FSDPModule], ranks: Group) -> None:
    """Let the parts of a sharded model be gathered among `ranks`."""
    gathering = Gathering(ranks)
    for part in parts:
        part.set_custom_all_gather(gathering)
