"""What a configuration's cost is measured with: a few steps of it, alone. Imports no torch."""

from dataclasses import fields, replace

from harness.config.compose import config_tree
from harness.config.resources import Shard
from harness.config.schema import (
    CheckpointConfig,
    EvalConfig,
    LoraConfig,
    OptimConfig,
    PathsConfig,
    ResourcesConfig,
    RunConfig,
    Schedule,
    TrackerConfig,
    TrackerName,
)

PROBE_STEPS = 12
"""Steps of a probe: the warm-up that is not counted, and enough for a median."""
_OF_A_STEP = (
    *("name", "loraplus_ratio", "neftune_alpha", "max_grad_norm", "batch_size"),
    *("micro_batch_size", "gradient_checkpointing", "offload_activations"),
)
"""Settings of the optimizer on which the cost of a step depends; a probe sets the others aside."""
_COST_NOTHING = frozenset(
    {
        *("seed", "lora.alpha", "lora.alpha_over_rank", "lora.rslora"),
        *(f"optim.{each.name}" for each in fields(OptimConfig) if each.name not in _OF_A_STEP),
    }
)
_SECTIONS_WITHOUT_COST = ("eval", "paths", "tracker", "checkpoint", "resources")


def costs_nothing(key: str) -> bool:
    """Whether a configuration key, or a group, changes neither memory nor time of a step."""
    return key in _COST_NOTHING or key.partition(".")[0] in _SECTIONS_WITHOUT_COST


def cost_key(config: RunConfig) -> str:
    """Return what determines a configuration's memory and step time: equal keys cost the same."""
    probe = replace(
        probe_config(config),
        paths=PathsConfig(),
        checkpoint=CheckpointConfig(),
        resources=ResourcesConfig(),
    )
    return repr(config_tree(probe))


def _unscaled(lora: LoraConfig) -> LoraConfig:
    """Return an adapter of one scaling in that of all such; several are not computed like one."""
    if lora.rank_pattern or lora.alpha_pattern or lora.trains_all:
        return lora
    return replace(lora, alpha=None, alpha_over_rank=1.0, rslora=False)


def probe_config(config: RunConfig) -> RunConfig:
    """Return a few steps of `config` without evaluation, with whatever does not change its cost set aside.

    Learning rate, schedule, alpha and seed cost nothing, so configurations that differ in them share one.
    """
    kept = {name: getattr(config.optim, name) for name in _OF_A_STEP}
    optim = OptimConfig(lr=1e-4, schedule=Schedule.constant, steps=PROBE_STEPS, **kept)
    return replace(
        config,
        lora=_unscaled(config.lora),
        optim=optim,
        eval=EvalConfig(before=False, generate=False),
        tracker=TrackerConfig(name=TrackerName.none),
        resources=replace(config.resources, data_parallel=1, shard=Shard.none),
        seed=0,
    )
