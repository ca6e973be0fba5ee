"""The optimizer and the learning rate of one adapter."""

import math
from collections.abc import Mapping
from typing import Any, assert_never

import torch
from torch import nn

from harness.config import OptimConfig, OptimizerName, Schedule


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """Return the optimizer over one adapter: A at `lr`, B at `lr * loraplus_lr_ratio` (LoRA+)."""
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in parameters.items() if ".lora_B." not in name], "ratio": 1.0},
        {
            "params": [p for name, p in parameters.items() if ".lora_B." in name],
            "ratio": config.loraplus_lr_ratio,
        },
    ]
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    match config.name:
        case OptimizerName.adamw:
            return torch.optim.AdamW(groups, **common, fused=True)
        case OptimizerName.adamw_8bit:
            return _bitsandbytes("AdamW8bit", groups, common)
        case OptimizerName.paged_adamw_8bit:
            return _bitsandbytes("PagedAdamW8bit", groups, common)
        case OptimizerName.paged_adamw_32bit:
            return _bitsandbytes("PagedAdamW32bit", groups, common)
        case _ as unreachable:
            assert_never(unreachable)


def _bitsandbytes(
    name: str, groups: list[dict[str, Any]], common: dict[str, Any]
) -> torch.optim.Optimizer:
    import bitsandbytes.optim

    return getattr(bitsandbytes.optim, name)(groups, **common)


def learning_rate_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Return the share of `lr` used by 0-based `step`.

    Warm-up rises linearly and reaches 1 at step `warmup_steps`; then the schedule runs down to zero,
    which it would reach at step `total_steps` (so the last step still moves).
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    match config.schedule:
        case Schedule.constant:
            return 1.0
        case Schedule.linear:
            return 1.0 - progress
        case Schedule.cosine:
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case _ as unreachable:
            assert_never(unreachable)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set every group's learning rate, LoRA+ ratios applied."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return every tensor of the optimizer's state."""
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
