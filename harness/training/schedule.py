"""The learning rate of a step, and when a run has learned enough: functions of its step and its losses alone.

Nothing here keeps a state, so that a run that goes on from a checkpoint has the rates that it would have had.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from harness.config.keyed import Keyed
from harness.config.schema import FOLLOWS_LOSS, OptimConfig, Schedule


def learning_rate_factor(
    step: int, total_steps: int, config: OptimConfig, losses: Sequence[float] = ()
) -> float:
    """Return the share of `lr` used by 0-based `step`, after evaluations that found `losses`.

    That of transformers' `get_scheduler`: with most schedules a warm-up rises linearly from 0, so that the
    first step does not move, and reaches 1 at step `warmup_steps`; `constant` has one where it is asked for.
    """
    if config.schedule in FOLLOWS_LOSS:
        return _after_losses(Keyed(config), tuple(losses))
    return float(_of_step(Keyed(config), total_steps)(step))


def is_out_of_patience(losses: Sequence[float], patience: int | None) -> bool:
    """Say whether the last `patience` evaluations have found no lower loss than those before them."""
    best, without_gain = math.inf, 0
    for loss in losses:
        best, without_gain = (loss, 0) if loss < best else (best, without_gain + 1)
    return patience is not None and without_gain >= patience


@lru_cache(maxsize=64)
def _of_step(config: Keyed[OptimConfig], total_steps: int) -> Callable[[int], float]:
    return _scheduler(config.value, total_steps).lr_lambdas[0]


@lru_cache(maxsize=64)
def _after_losses(config: Keyed[OptimConfig], losses: tuple[float, ...]) -> float:
    scheduler = _scheduler(config.value, 0)
    for loss in losses:
        scheduler.step(loss)
    return scheduler.optimizer.param_groups[0]["lr"] / config.value.lr


def _scheduler(config: OptimConfig, total_steps: int) -> Any:
    """Return transformers' own scheduler of an optimizer that moves nothing."""
    from transformers import get_scheduler

    warms_up = config.schedule is Schedule.constant and config.warmup_steps
    name = Schedule.constant_with_warmup if warms_up else config.schedule
    return get_scheduler(
        name.value,
        torch.optim.SGD([torch.zeros(1)], lr=config.lr),
        num_warmup_steps=config.warmup_steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=_settings(config),
    )


def _settings(config: OptimConfig) -> dict[str, Any]:
    """Return the settings of the schedule that are given, by the names that its function has for them."""
    ratio = config.min_lr_ratio
    settings: dict[str, Any] = {
        "num_cycles": config.schedule_cycles,
        "power": config.schedule_power,
        "num_decay_steps": config.decay_steps,
    }
    match config.schedule:
        case Schedule.cosine_with_restarts if config.schedule_cycles is not None:
            settings["num_cycles"] = int(config.schedule_cycles)
        case Schedule.polynomial if ratio is not None:
            settings["lr_end"] = ratio * config.lr
        case Schedule.reduce_lr_on_plateau | Schedule.greedy if ratio is not None:
            settings["min_lr"] = ratio * config.lr
        case Schedule.warmup_stable_decay:
            settings["min_lr_ratio"] = ratio
        case _:
            settings["min_lr_rate"] = ratio
    return {name: value for name, value in settings.items() if value is not None}
