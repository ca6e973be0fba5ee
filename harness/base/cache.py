"""Quantized bases on disk: one directory for each model, format, block size and double quantization."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.base.blocks import block_linears, linear_modules
from harness.base.storage import Dense, Storage

CACHE_VERSION = 2
"""Raised whenever the stored tensors change meaning."""


def cache_entry(cache: Path, fingerprint: str, storage: Storage) -> Path:
    """Return where the base of (model fingerprint, format, block size, double quantization) is kept."""
    quant = storage.quant
    parts = [CACHE_VERSION, fingerprint, quant.format.value, quant.block_size, quant.double_quant]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return cache / "bases" / f"{storage.label}-b{quant.block_size}-{digest}"


def save_entry(entry: Path, model: Any, fingerprint: str, storage: Storage) -> None:
    """Write packed layers and the rest in their stored types; appear under the final name or not at all."""
    from safetensors.torch import save_file

    layers: dict[str, torch.Tensor] = {}
    inside: set[str] = set()
    for name, module in linear_modules(model):
        assert isinstance(module, nn.Linear)
        for key, tensor in storage.tensors(module).items():
            layers[f"{name}|{key}"] = tensor
        if module.bias is not None:
            layers[f"{name}|bias"] = module.bias.data
        inside.add(name)
    rest = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not any(key.startswith(f"{name}.") for name in inside)
    }
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    rest = {key: tensor for key, tensor in rest.items() if key not in tied}
    staged = entry.with_name(f"{entry.name}.{os.getpid()}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for file, tensors in (("packed", layers), ("rest", rest)):
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, staged / f"{file}.safetensors")
    about = {"fingerprint": fingerprint, "format": storage.quant.format.value}
    (staged / "about.json").write_text(json.dumps(about, indent=1))
    try:
        staged.rename(entry)
    except OSError:  # another process was faster: its entry holds the same bytes
        shutil.rmtree(staged, ignore_errors=True)


def load_entry(
    entry: Path,
    empty_model: Callable[[], Any],
    storage: Storage,
    device: torch.device,
) -> Any | None:
    """Return the model from the cache entry, or None if there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if isinstance(storage, Dense) or not (entry / "about.json").exists():
        return None
    try:
        layers = load_file(entry / "packed.safetensors", device=str(device))
        rest = load_file(entry / "rest.safetensors", device="cpu")
    except (OSError, SafetensorError):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    model = empty_model()
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in layers.items():
        name, _, part = key.partition("|")
        by_layer.setdefault(name, {})[part] = tensor
    for spec in list(block_linears(model)):
        tensors = by_layer[spec.name]
        bias = tensors.pop("bias", None)
        bias = None if bias is None else bias.to(storage.dtype)
        layer = storage.restore(tensors, spec.in_features, spec.out_features, bias)
        model.set_submodule(spec.name, layer)
    model.load_state_dict(rest, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, f"{entry} lacks {left[:3]}"
    return model
