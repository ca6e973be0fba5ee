"""The tracker of one run, as the training loop sees it. Must not import wandb or tensorboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, assert_never

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.answers import KeptAnswer
from harness.records.record import Record
from harness.records.scores import RowScores
from harness.tracking.tensorboard_tracker import TensorboardTracker
from harness.tracking.wandb_tracker import WandbTracker


class Tracker(Protocol):
    """A mirror of one run's metrics. No method raises for, or waits on, what is mirrored to."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Mirror one row of metrics.jsonl; steps never fall."""
        ...

    def log_earlier(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Mirror what is missing of the rows of an earlier process of this run; call it before `log`."""
        ...

    def finish(
        self,
        record: Record,
        answers: Sequence[KeptAnswer],
        scores: Mapping[str, RowScores] | None = None,
    ) -> list[str]:
        """Mirror what the run came to, end, and return what went wrong, as notes for the record.

        `scores` of the rows after training, by metric, of a run that others are compared with row by row.
        """
        ...


class NoTracker:
    """The record on disk is enough."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Do nothing."""

    def log_earlier(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Do nothing."""

    def finish(
        self,
        record: Record,
        answers: Sequence[KeptAnswer],
        scores: Mapping[str, RowScores] | None = None,
    ) -> list[str]:
        """Return no problems."""
        return []


def open_tracker(
    config: TrackerConfig,
    *,
    run_id: str,
    directory: Path,
    config_tree: Mapping[str, Any],
    is_probe: bool = False,
) -> Tracker:
    """Return the tracker of a run; its files go to `<directory>/wandb/` or `<directory>/tensorboard/`.

    Opening returns at once: W&B starts in a thread of its own, and what is logged until it is ready
    waits. A run that is resumed opens a tracker again: a further offline file, or the same online run.
    `config_tree` is the composed configuration; secrets are taken out of it here.
    """
    match config.name:
        case TrackerName.none:
            return NoTracker()
        case TrackerName.wandb_offline | TrackerName.wandb_online:
            return WandbTracker(
                config,
                run_id=run_id,
                directory=directory,
                config_tree=config_tree,
                waits=is_probe,
            )
        case TrackerName.tensorboard:
            return TensorboardTracker(directory / "tensorboard", config_tree)
        case unknown:
            assert_never(unknown)
