"""What must be known to train one run: its configuration, data and place on disk."""

from dataclasses import dataclass, field
from typing import Any

from harness.config.schema import RunConfig
from harness.data.prepare import PreparedData
from harness.records.run_directory import RunDirectory


@dataclass(kw_only=True, slots=True)
class Job:
    """One run to train, ready to start."""

    config: RunConfig
    run_id: str
    directory: RunDirectory
    data: PreparedData
    provenance: dict[str, Any]
    is_probe: bool = False
    """Whether it is trained for what it costs: then the record says so."""
    notes: list[str] = field(default_factory=list)
    """Facts that a reader of the record needs; grows while the run is trained."""
