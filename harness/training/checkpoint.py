"""Checkpoints of one run: written whole or not at all, verified by hashes, the newest sound one is used.

What a run is made of besides its weights and optimizer is a function of (seed, step): data order and
dropout draw nothing from a generator that lives on, so there is no generator state to lose.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.errors import RunFailed

MANIFEST = "manifest.json"


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a run stands, besides its tensors."""

    run_id: str
    step: int = 0
    """Optimizer steps done."""
    wall_seconds: float = 0.0
    """Time spent on this run in all processes so far."""
    best_loss: float | None = None
    best_step: int | None = None
    before: dict[str, dict[str, float | int | None]] | None = None
    """Results of the evaluation before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One loaded checkpoint."""

    progress: Progress
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    best_adapter: dict[str, torch.Tensor] | None


def save_checkpoint(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint` under `directory` and remove all but the newest `keep`; returns its path."""
    final = directory / f"step-{checkpoint.progress.step:08d}"
    staged = directory / f".{final.name}.new"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    torch.save(checkpoint.adapter, staged / "adapter.pt")
    torch.save(checkpoint.optimizer, staged / "optimizer.pt")
    if checkpoint.best_adapter is not None:
        torch.save(checkpoint.best_adapter, staged / "best_adapter.pt")
    (staged / "progress.json").write_text(json.dumps(asdict(checkpoint.progress), indent=1))
    manifest = {path.name: _sha256(path) for path in sorted(staged.iterdir())}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in staged.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    _sync(directory)
    for old in _newest_first(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest_checkpoint(
    directory: Path, run_id: str, device: torch.device
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest sound checkpoint, or None if there is none, and a note for each damaged one."""
    notes = []
    for path in _newest_first(directory):
        fault = _fault(path)
        if fault is not None:
            notes.append(f"checkpoint {path.name} is damaged ({fault}); using the one before")
            continue
        checkpoint = _load(path, device)
        if checkpoint.progress.run_id != run_id:
            raise RunFailed(
                f"{path} belongs to run {checkpoint.progress.run_id}, not to {run_id}; "
                "remove the checkpoint directory to start again"
            )
        return checkpoint, notes
    return None, notes


def remove_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a run that has ended."""
    shutil.rmtree(directory, ignore_errors=True)


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"), reverse=True)


def _fault(path: Path) -> str | None:
    """Say what is wrong with a checkpoint directory, or None."""
    try:
        manifest: dict[str, str] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"manifest unreadable: {error}"
    for name, digest in manifest.items():
        if not (path / name).exists():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} does not match its hash"
    return None


def _load(path: Path, device: torch.device) -> Checkpoint:
    best = path / "best_adapter.pt"
    return Checkpoint(
        progress=Progress(**json.loads((path / "progress.json").read_text())),
        adapter=torch.load(path / "adapter.pt", map_location=device, weights_only=True),
        optimizer=torch.load(path / "optimizer.pt", map_location=device, weights_only=True),
        best_adapter=torch.load(best, map_location=device, weights_only=True)
        if best.exists()
        else None,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
