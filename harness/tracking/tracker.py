"""The tracker of one run, as the training loop sees it. Must not import wandb."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, assert_never

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.record import RunStatus
from harness.tracking.wandb_tracker import WandbTracker


class Tracker(Protocol):
    """A mirror of one run's metrics. No method raises for, or waits on, what is mirrored to."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Mirror one row of metrics.jsonl; steps never fall."""
        ...

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Set the run's final values, by metric name or `<phase>.<metric name>`."""
        ...

    def finish(self, status: RunStatus) -> list[str]:
        """End the mirror and return what went wrong with it, as notes for the record."""
        ...


class NoTracker:
    """The record on disk is enough."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Do nothing."""

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Do nothing."""

    def finish(self, status: RunStatus) -> list[str]:
        """Return no problems."""
        return []


def open_tracker(
    config: TrackerConfig, *, run_id: str, directory: Path, config_tree: Mapping[str, Any]
) -> Tracker:
    """Return the tracker of a run; for W&B its files go to `<directory>/wandb/`.

    Opening returns at once: W&B starts in a thread of its own, and what is logged until it is ready
    waits. A run that is resumed opens a tracker again: a further offline file, or the same online run.
    `config_tree` is the composed configuration; secrets are taken out of it here.
    """
    match config.name:
        case TrackerName.none:
            return NoTracker()
        case TrackerName.wandb_offline | TrackerName.wandb_online:
            return WandbTracker(config, run_id=run_id, directory=directory, config_tree=config_tree)
        case unknown:
            assert_never(unknown)
