"""The bases that a worker keeps loaded between cohorts."""

from harness.engine.shared_base import SharedBase
from harness.measure.meter import meter_of
from harness.sweeping.messages import Role, Train
from harness.training.launch import open_base

BASES_SHARE = 0.25
"""Bases that are not in use are kept while all of them fit into this share of the device's memory."""


class Bases:
    """The bases that stay loaded between cohorts."""

    def __init__(self) -> None:
        self._kept: dict[str, SharedBase] = {}

    def open(self, task: Train) -> SharedBase:
        """Return the base of a task, loaded if it is not kept; it is the newest now."""
        request = task.request
        key = repr((request.fingerprint, request.config.model, request.config.quant))
        shared = self._kept.pop(key, None)
        if task.role is Role.probe:
            self._kept.clear()  # what a probe measures must be its own
        if shared is None:
            shared = open_base(request.config, request.source, request.fingerprint)
        self._kept[key] = shared
        self._evict(shared)
        return shared

    def drop_rewritten(self) -> None:
        """Forget bases that an adapter's initialization has changed."""
        self._kept = {key: base for key, base in self._kept.items() if not base.is_rewritten}

    def _evict(self, newest: SharedBase) -> None:
        limit = BASES_SHARE * meter_of(newest.base.device).total_bytes()
        while len(self._kept) > 1 and sum(b.size.total_bytes for b in self._kept.values()) > limit:
            del self._kept[next(iter(self._kept))]
