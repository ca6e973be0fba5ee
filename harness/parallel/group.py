"""The ranks of one run as torchrun has started them, and how they speak: orders, answers, tensors.

Orders and answers go over gloo, tensors over NCCL between GPUs and over gloo between CPUs. Nothing here knows
what is computed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from harness.config.devices import resolved_device, threads_per_process
from harness.config.schema import ResourcesConfig
from harness.errors import RunFailed, first_line
from harness.parallel.messages import Command
from harness.training.passes import check_size

T = TypeVar("T")

LEADER = 0
IDLE = timedelta(days=365)
"""Time that a rank waits for a command: the leader may evaluate for hours; a dead one hangs up."""
STUCK = timedelta(minutes=30)
"""Time after which a rank that does not take part counts as lost; the first answer waits for its base."""


class RankLost(RunFailed):
    """Another rank has died, or no longer answers."""


class Group:
    """The ranks of one run, seen from one of them. Every method is called by all of them, or hangs."""

    def __init__(self, rank: int, size: int, device: torch.device, orders: Any) -> None:
        """`orders`: a process group of its own, whose patience is `IDLE`."""
        self.rank = rank
        self.size = size
        self.device = device
        """Device on which this rank holds the base; a GPU has its number."""
        self._orders = orders
        self.is_broken = False
        """Whether a rank has been lost, or is no longer in step: then nothing more is sent or awaited."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank decides, evaluates and writes."""
        return self.rank == LEADER

    def tell(self, command: Command) -> None:
        """Give a command to all other ranks, which `hear` it."""
        self._broadcast([command])

    def hear(self) -> Command:
        """Wait for the leader's next command."""
        heard: list[Any] = [None]
        self._broadcast(heard)
        return heard[0]

    def _broadcast(self, objects: list[Any]) -> None:
        with self.connected():
            dist.broadcast_object_list(objects, src=LEADER, group=self._orders)

    def exchange(self, value: T) -> list[T]:
        """Return what each rank has given, by rank, on all ranks."""
        found: list[T] = [value] * self.size
        with self.connected():
            dist.all_gather_object(found, value)
        return found

    def spread(self, tensor: torch.Tensor) -> None:
        """Overwrite `tensor` by the leader's, on all ranks."""
        with self.connected():
            dist.broadcast(tensor, src=LEADER)

    def add_up(self, tensor: torch.Tensor) -> None:
        """Make the leader's `tensor` the sum over all ranks; what the others then hold is undefined."""
        with self.connected():
            dist.reduce(tensor, dst=LEADER)

    def abandon(self) -> None:
        """Say that this rank is out of step with the others, who wait in a collective: it must end."""
        self.is_broken = True

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Say in our words that the connection to another rank has broken, now or before."""
        try:
            if self.is_broken:
                raise RuntimeError("as before")
            yield
        except RuntimeError as error:
            self.is_broken = True
            said = first_line(error)
            raise RankLost(f"another process of the run is gone or stuck ({said})") from error


@contextmanager
def join(resources: ResourcesConfig) -> Iterator[Group]:
    """Meet the other ranks that torchrun has started, as many as `resources` ask for, or raise RunFailed.

    Each rank takes the GPU of its own number among those visible, and its share of the CPU's threads.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    check_size(resources.data_parallel, size)
    torch.set_num_threads(threads_per_process(resources, torch.get_num_threads()))
    if resolved_device(resources.device) == "cpu":
        device = torch.device("cpu")
        dist.init_process_group("gloo", timeout=STUCK)
    else:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=STUCK, device_id=device)
    group = Group(rank, size, device, dist.new_group(backend="gloo", timeout=IDLE))
    present = group.exchange(rank)
    assert present == list(range(size)), f"{size} ranks were to meet, and {present} have"
    yield group
    if not group.is_broken:  # what is gone would be waited for
        dist.destroy_process_group()
