"""What a configuration's cost is measured with: a few steps of it, alone. Imports no torch."""

from dataclasses import replace

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
    kept = config.optim
    optim = OptimConfig(
        name=kept.name,
        lr=1e-4,
        loraplus_ratio=kept.loraplus_ratio,
        neftune_alpha=kept.neftune_alpha,
        schedule=Schedule.constant,
        max_grad_norm=kept.max_grad_norm,
        batch_size=kept.batch_size,
        micro_batch_size=kept.micro_batch_size,
        steps=PROBE_STEPS,
        gradient_checkpointing=kept.gradient_checkpointing,
        offload_activations=kept.offload_activations,
    )
    return replace(
        config,
        lora=_unscaled(config.lora),
        optim=optim,
        eval=EvalConfig(before=False, generate=False),
        tracker=TrackerConfig(name=TrackerName.none),
        resources=replace(config.resources, data_parallel=1, shard=Shard.none),
        seed=0,
    )
