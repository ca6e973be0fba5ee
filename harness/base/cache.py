"""Quantized bases on disk: one directory for each model, format, block size and double quantization."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.base.blocks import block_linears, linear_modules
from harness.base.storage import Dense, Storage
from harness.parsing import Unreadable, read_json, shaped
from harness.records.run_directory import file_sha256, staged, sweep_staged

ABOUT = "about.json"
PARTS = ("packed.safetensors", "rest.safetensors")
logger = logging.getLogger(__name__)

CACHE_VERSION = 3
"""Raised whenever the stored tensors change meaning."""


def cache_entry(cache: Path, fingerprint: str, storage: Storage) -> Path:
    """Return where the base of (model fingerprint, format, block size, double quantization) is kept."""
    quant = storage.quant
    parts = [CACHE_VERSION, fingerprint, quant.format.value, quant.block_size, quant.double_quant]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return cache / "bases" / f"{storage.label}-b{quant.block_size}-{digest}"


def save_entry(entry: Path, model: Any, fingerprint: str, storage: Storage) -> None:
    """Write packed layers and the rest in their stored types; appear under the final name or not at all."""
    from safetensors import SafetensorError

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
    try:
        _save(entry, fingerprint, storage, {"packed": layers, "rest": rest})
    except (OSError, SafetensorError) as error:  # the cache saves time, and nothing else
        logger.warning("the base cannot be kept in %s: %s", entry, error)
        shutil.rmtree(staged(entry), ignore_errors=True)


def _save(
    entry: Path, fingerprint: str, storage: Storage, parts: dict[str, dict[str, torch.Tensor]]
) -> None:
    from safetensors.torch import save_file

    entry.parent.mkdir(parents=True, exist_ok=True)
    sweep_staged(entry.parent)
    new = staged(entry)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for file, tensors in parts.items():
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, new / f"{file}.safetensors")
    about = _About(
        fingerprint=fingerprint,
        format=storage.quant.format.value,
        sha256={path.name: file_sha256(path) for path in sorted(new.iterdir())},
    )
    (new / ABOUT).write_text(json.dumps(asdict(about), indent=1))
    try:
        new.rename(entry)
    except OSError:  # another process was faster: its entry holds the same bytes
        shutil.rmtree(new, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What an entry is, and what its files were when they were written."""

    fingerprint: str
    """Of the model."""
    format: str
    sha256: dict[str, str]
    """By file."""


def _verify(entry: Path) -> None:
    """Raise Unreadable for files that are not as they were written: a flipped bit would train as well."""
    about: _About = shaped(_About, read_json((entry / ABOUT).read_bytes()))
    for name in PARTS:
        if file_sha256(entry / name) != about.sha256.get(name):
            raise Unreadable(f"{name} does not match its hash")


def load_entry(
    entry: Path,
    empty_model: Callable[[], Any],
    storage: Storage,
    device: torch.device,
) -> Any | None:
    """Return the model from the cache entry, or None if there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if isinstance(storage, Dense) or not entry.exists():
        return None
    try:
        _verify(entry)
        layers = load_file(entry / "packed.safetensors", device=str(device))
        rest = load_file(entry / "rest.safetensors", device="cpu")
    except (OSError, SafetensorError, Unreadable) as error:
        logger.warning("the base in %s is damaged (%s) and is made again", entry, error)
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
