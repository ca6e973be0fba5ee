"""The identity of a run: a readable slug and a hash of everything that can change its result.

Must not import torch. Tracker, paths, resources and checkpoints do not change a result and are left out;
files count by their contents, not by where they lie.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from harness.config.compose import config_tree
from harness.config.later import CAME_LATER, RENAMED
from harness.config.lora import alpha_patterns
from harness.config.schema import EMBEDDED_DOMAIN, LoraConfig, LoraMethod, RunConfig
from harness.config.storage import label_of
from harness.parsing import home_path

NUMERICS_VERSION = 4
"""Raised when a change of the harness changes the numbers of a run (and named in CHANGELOG.md)."""

_NOT_RESULT = ("tracker", "checkpoint", "resources", "paths")
_BY_CONTENT = {
    "model": ("name", "revision", "trust_remote_code"),
    "data": ("path", "validation_path", "test_path", "hub", "hub_config", "hub_split", "revision"),
}
_EVAL_FILES = ("choice_path", "choice_shots_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a run is."""

    run_id: str
    cell_id: str
    """Hash of the configuration without the seed: replicates share it."""


def identify(
    config: RunConfig,
    *,
    model_fingerprint: str,
    data_fingerprint: str,
    tasks_fingerprint: str | None = None,
) -> Identity:
    """Return the identity of `config` on a model, data and evaluation tasks of these contents.

    Reads the files of multiple-choice questions, which belong to the result like the data; `check_choices`
    has seen that they are there.
    """
    tree = config_tree(config)
    for section in _NOT_RESULT:
        del tree[section]
    for section, keys in _BY_CONTENT.items():
        for key in keys:
            tree[section].pop(key)
    tree["lora"] = _lora_tree(tree["lora"], config.lora)
    if (answered := tree["data"].pop("answers")) is not None:
        content = home_path(answered).read_bytes()
        tree["data"]["answers"] = hashlib.sha256(content).hexdigest()
    del tree["quant"]["skip_experts"], tree["data"]["strict"]  # they allow what is done anyway
    defaults = config_tree(RunConfig())
    for section, keys in CAME_LATER.items():
        for key in keys:
            if tree[section].get(key, defaults[section][key]) != defaults[section][key]:
                continue
            tree[section].pop(key, None)
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        tree[section][key] = tree[section].pop(new.partition(".")[2])
    optim = tree["optim"]
    if optim["schedule"] == "constant_with_warmup":  # which constant has, too
        optim["schedule"] = "constant"
    optim["micro_batch_size"] = optim["micro_batch_size"] or optim["batch_size"]
    for key in _EVAL_FILES:
        if (file := tree["eval"][key]) is not None:
            content = home_path(file).read_bytes()
            tree["eval"][key] = hashlib.sha256(content).hexdigest()
    base_domain = tree["eval"].get("base_domain")
    if base_domain is None:
        del tree["eval"]["base_domain_rows"]
    elif base_domain != EMBEDDED_DOMAIN:
        content = home_path(base_domain).read_bytes()
        tree["eval"]["base_domain"] = hashlib.sha256(content).hexdigest()
    if tasks_fingerprint is not None:
        tree["eval"]["tasks"] = tasks_fingerprint
    seed = tree.pop("seed")
    tree |= {
        "numerics": NUMERICS_VERSION,
        "model_fingerprint": model_fingerprint,
        "data_fingerprint": data_fingerprint,
    }
    cell = _digest(tree)
    return Identity(run_id=f"{_slug(config)}-{_digest({**tree, 'seed': seed})}", cell_id=cell)


def _lora_tree(lora: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """Return what an adapter's settings mean, however they are spelled; full fine-tuning has none."""
    if lora["method"] == LoraMethod.none.value:
        return {"method": lora["method"]}
    # In their order: the first that matches counts.
    lora["rank_pattern"] = list((config.rank_pattern or {}).items()) or None
    lora["alpha_pattern"] = list(alpha_patterns(config).items()) or None
    lora["train_also"] = sorted(lora["train_also"])
    over_rank = lora.pop("alpha_over_rank")
    lora["alpha"] = float(lora["alpha"] if over_rank is None else over_rank * lora["rank"])
    lora["target_modules"] = sorted(lora["target_modules"])
    return lora


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def _slug(config: RunConfig) -> str:
    """Return words for a person who reads a directory listing; nothing ever parses them."""
    data = config.data
    source = data.task or _last_part(data.path, suffix=False) or _last_part(data.hub) or "data"
    words = [
        _last_part(config.model.name) or "model",
        source,
        label_of(config.quant),
        *_adapter_words(config.lora),
        f"s{config.seed}",
    ]
    return re.sub(r"[^\w.+-]", "_", "-".join(words))[:100]


def _adapter_words(lora: LoraConfig) -> list[str]:
    if lora.trains_all:
        return ["full"]
    method = [] if lora.method is LoraMethod.lora else [lora.method.value]
    return ["+".join(sorted(lora.target_modules)), *method, f"r{lora.rank}"]


def _last_part(name: str | None, *, suffix: bool = True) -> str | None:
    """Return the last part of a path or id as it is called on disk, however the path is spelt."""
    if name is None:
        return None
    path = home_path(name)
    path = path.resolve() if path.exists() else path
    return path.name if suffix else path.stem
