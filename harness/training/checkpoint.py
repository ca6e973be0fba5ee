"""Checkpoints of one run: written whole or not at all, verified by hashes, the newest sound one is used.

What a run is made of besides its weights and optimizer is a function of (seed, step): data order and
dropout draw nothing from a generator that lives on, so there is no generator state to lose.
"""

import json
import os
import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.errors import first_line
from harness.parsing import Unreadable, read_json, shaped
from harness.records.run_directory import file_sha256, set_aside
from harness.training.loss_scale import LossScale

MANIFEST = "manifest.json"
_PARTS = ("adapter.pt", "optimizer.pt", "progress.json")
"""What no checkpoint lacks; the best adapter so far is there where it is asked for."""


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
    losses: list[float] = field(default_factory=list)
    """Losses of the evaluations on the way, in their order."""
    before: dict[str, dict[str, float | int | None]] | None = None
    """Results of the evaluation before training."""
    loss_scale: LossScale | None = None
    """Of a run in float16."""

    @property
    def moves(self) -> int:
        """Optimizer steps that have moved the adapter."""
        return self.step - (self.loss_scale.skipped_steps if self.loss_scale else 0)


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
    try:
        _write(staged, checkpoint)
    except BaseException:  # a full disk, above all: what is staged is room for the record
        shutil.rmtree(staged, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    _sync(directory)
    for old in _newest_first(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(staged: Path, checkpoint: Checkpoint) -> None:
    staged.mkdir(parents=True)
    torch.save(checkpoint.adapter, staged / "adapter.pt")
    torch.save(checkpoint.optimizer, staged / "optimizer.pt")
    if checkpoint.best_adapter is not None:
        torch.save(checkpoint.best_adapter, staged / "best_adapter.pt")
    (staged / "progress.json").write_text(json.dumps(asdict(checkpoint.progress), indent=1))
    manifest = {path.name: file_sha256(path) for path in sorted(staged.iterdir())}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in staged.iterdir():
        _sync(path)


def load_newest_checkpoint(
    directory: Path, run_id: str, device: torch.device
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest sound checkpoint of the run, or None, and a note for each that was set aside."""
    notes = []
    for path in _newest_first(directory):
        try:
            _verify(path)
            checkpoint = _load(path, device)
            if checkpoint.progress.run_id != run_id:
                raise Unreadable(f"it is of run {checkpoint.progress.run_id}")
            return checkpoint, notes
        except (OSError, Unreadable) as error:
            # Beside it, the next ones would count as older, and be removed.
            aside = set_aside(path)
            notes.append(f"checkpoint {path.name} is damaged ({error}); set aside as {aside.name}")
    return None, notes


def remove_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a run that has ended."""
    shutil.rmtree(directory, ignore_errors=True)


def _newest_first(directory: Path) -> list[Path]:
    """Return the checkpoints; what is staged, or set aside, has another name."""
    found = [path for path in directory.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, reverse=True)


def _verify(path: Path) -> None:
    """Raise Unreadable for a checkpoint that lacks a file, or has one that is not as it was written."""
    manifest: dict[str, str] = shaped(dict[str, str], read_json((path / MANIFEST).read_bytes()))
    there = {each.name for each in path.iterdir()} - {MANIFEST}
    for name in sorted({*_PARTS, *manifest, *there}):
        if name not in manifest:
            raise Unreadable(f"its manifest lacks {name}")
        if name not in there:
            raise Unreadable(f"{name} is missing")
        if file_sha256(path / name) != manifest[name]:
            raise Unreadable(f"{name} does not match its hash")


def _load(path: Path, device: torch.device) -> Checkpoint:
    progress: Progress = shaped(Progress, read_json((path / "progress.json").read_bytes()))
    best = path / "best_adapter.pt"
    try:
        adapter, optimizer, best_adapter = (
            torch.load(each, map_location=device, weights_only=True) if each.exists() else None
            for each in (path / "adapter.pt", path / "optimizer.pt", best)
        )
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"its tensors cannot be read: {first_line(error)}") from error
    assert adapter is not None
    assert optimizer is not None
    return Checkpoint(
        progress=progress, adapter=adapter, optimizer=optimizer, best_adapter=best_adapter
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
