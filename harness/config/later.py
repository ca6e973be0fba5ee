"""Keys that came to the configuration after runs had been made without them. Imports no torch and no
Hydra."""

from enum import Enum
from typing import Any

from harness.config.schema import LoraConfig, OptimConfig

CAME_LATER = {
    "lora": (
        *("method", "rank_pattern", "alpha_pattern", "loftq_iterations", "qalora_group_size"),
        "train_also",
    ),
    "optim": (
        *("schedule_cycles", "schedule_power", "min_lr_ratio", "decay_steps", "patience"),
        *("neftune_alpha", "offload_activations"),
    ),
    "eval": (
        *("every_epochs", "base_domain"),
        *("tasks", "num_fewshot", "limit", "apply_chat_template"),
    ),
}
"""They say nothing where they are as by default: runs from before keep their ids."""
RENAMED = {"optim.loraplus_lr_ratio": "optim.loraplus_ratio"}
"""Keys by the names that they had first; ids still go by these."""


def by_default() -> dict[str, Any]:
    """Return what a run from before has, by dotted key: of the keys of adapters and optimizers."""
    sections = {"lora": LoraConfig(), "optim": OptimConfig()}
    found: dict[str, Any] = {}
    for section, config in sections.items():
        for key in CAME_LATER[section]:
            value = getattr(config, key)
            match value:
                case Enum():
                    found[f"{section}.{key}"] = value.name
                case list():
                    found[f"{section}.{key}"] = tuple(value)
                case _:
                    found[f"{section}.{key}"] = value
    return found


def with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's tree with the names that its keys have now."""
    tree = {key: dict(part) if isinstance(part, dict) else part for key, part in tree.items()}
    for old, new in RENAMED.items():
        section, own = old.split(".")
        part = tree.get(section)
        if isinstance(part, dict) and own in part:
            part[new.split(".")[1]] = part.pop(own)
    return tree
