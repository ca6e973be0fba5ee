"""What must be known to train one run: what was asked, its data, and where it comes from."""

from dataclasses import dataclass, field
from typing import Any

from harness.config.schema import RunConfig
from harness.data.prepare import PreparedData
from harness.records.run_directory import RunDirectory
from harness.request import Request


@dataclass(kw_only=True, slots=True)
class Job:
    """One run to train, ready to start."""

    request: Request
    data: PreparedData
    provenance: dict[str, Any]
    is_probe: bool = False
    """Whether it is trained for what it costs: then the record says so."""
    probe: RunDirectory | None = None
    """Where the probe of this configuration is, if it has one: its costs go into the record."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the record should know; grows while the run is trained."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.request.config

    @property
    def run_id(self) -> str:
        """The run's identity, and the name of its directory."""
        return self.request.identity.run_id

    @property
    def directory(self) -> RunDirectory:
        """Where the run is kept."""
        return self.request.directory
