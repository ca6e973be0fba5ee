"""What a model's evaluation needs to know of it: its mode, and how many positions it can see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
    """Return how many positions a transformers model was made for; None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
