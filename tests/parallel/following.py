"""A follower in a process of its own, and what may be wrong with it."""

import os
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from harness.base.build import Base
from harness.base.quick_imports import quiet_libraries
from harness.base.source import find_model, model_fingerprint
from harness.config.resources import Shard
from harness.config.schema import LoraConfig, RunConfig
from harness.engine.adapter import Adapter
from harness.engine.shared_base import SharedBase
from harness.parallel import shares
from harness.parallel.follower import Follower
from harness.parallel.fsdp import share_out
from harness.parallel.group import join
from harness.training.launch import cache_directory, open_base


class Harm(Enum):
    """What is wrong with the followers."""

    none = "none"
    one_row_fits = "one_row_fits"
    """More than a row in a pass is out of memory."""
    base_does_not_fit = "base_does_not_fit"
    second_pass_fails = "second_pass_fails"
    begins_otherwise = "begins_otherwise"
    """Adapters are initialized from another seed."""


class _Otherwise(SharedBase):
    def attach(self, lora: LoraConfig, seed: int) -> Adapter:
        return super().attach(lora, seed + 1)


def follow(config: RunConfig, harm: Harm, environment: dict[str, str]) -> None:
    """Be a follower until the leader ends."""
    os.environ.update(environment)
    quiet_libraries()
    shards = config.resources.shard is Shard.fsdp
    with join(config.resources) as group, patch.object(shares, "packed_gradients", _limited(harm)):
        shard = partial(share_out, group=group) if shards else None
        Follower(group, lambda: opened(config, harm, shard), shards=shards).follow()


def opened(
    config: RunConfig, harm: Harm = Harm.none, shard: Callable[[Base], None] | None = None
) -> SharedBase:
    """Open the base that `config` asks for, as a run does."""
    if harm is Harm.base_does_not_fit:
        raise torch.OutOfMemoryError("no room for the base")
    source = find_model(config.model)
    fingerprint = model_fingerprint(source, cache_directory(config) / "memo.json")
    shared = open_base(config, source, fingerprint, shard)
    return _Otherwise(shared.base) if harm is Harm.begins_otherwise else shared


def _limited(harm: Harm) -> Any:
    real, seen = shares.packed_gradients, []

    def packed_gradients(shared: SharedBase, work: Any) -> Any:
        seen.append(work)
        rows = sum(item.batch.input_ids_BT.shape[0] for item in work)
        if harm is Harm.one_row_fits and rows > 1:
            raise torch.OutOfMemoryError("no room")
        if harm is Harm.second_pass_fails and len(seen) == 2:
            raise ValueError("a layer has had enough")
        return real(shared, work)

    return packed_gradients
