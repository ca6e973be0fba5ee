"""How many workers a machine without a GPU gets when nobody says. Must not import torch."""

from collections.abc import Iterable

import psutil

from harness.base.source import find_model, weights_bytes
from harness.config.devices import usable_cores
from harness.config.schema import ModelConfig, RunConfig

SMALL_BYTES = 2**25
"""A base is small if its weights have at most so many bytes on disk: 32 MiB."""
WORKER_BYTES = 2**31
"""Bytes that a worker with a small base is taken to need at most: 2 GiB, mostly of activations."""


def workers_on_cpu(configs: Iterable[RunConfig], trials: int) -> int:
    """Return one for each core where every base is small, as far as memory and trials go; else one.

    A product with small matrices is no faster on several threads, so runs side by side use the cores better.
    A large base keeps all of them busy, and each worker would hold it once more.
    """
    models: list[ModelConfig] = []
    for config in configs:
        if config.model not in models:
            models.append(config.model)
    if not all(_is_small(model) for model in models):
        return 1
    room = psutil.virtual_memory().available // WORKER_BYTES
    return max(1, min(usable_cores(), room, trials))


def _is_small(model: ModelConfig) -> bool:
    size = weights_bytes(find_model(model))
    return size is not None and size <= SMALL_BYTES
