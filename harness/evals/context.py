"""What a model's evaluation needs to know of it: its mode, and how many positions it can see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from harness.base.attention import most_positions


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode and every module of it back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def context_length(model: Any) -> int | None:
    """Return how many positions a transformers model can see; None where it does not say."""
    return most_positions(model.config)[0]
