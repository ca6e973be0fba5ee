"""Mirrors of a run's metrics outside its record: W&B, offline or online, or none."""

from harness.tracking.credentials import check_tracker
from harness.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "check_tracker", "open_tracker"]
