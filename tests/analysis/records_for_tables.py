"""Records in short, for the tests of tables: what varies is named, the rest is alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.frame import Row, flat_row
from harness.records.record import (
    Estimate,
    MeasuredIn,
    Record,
    RunDirectory,
    RunStatus,
    write_record,
)

PROVENANCE: dict[str, Any] = {
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "packages": {"torch": "2.13.0", "peft": "0.21.2"},
    "host": "alpha",
    "cpu": "EPYC",
    "gpus": [],
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run."""

    format: str = "nf4"
    rank: int = 8
    seed: int = 0
    lr: float = 2e-4
    model: str = "embedded"
    loss: float | None = None
    before: float | None = None
    match: float | None = None
    peak: float | None = None
    adapter: float | None = None
    step_ms: float | None = None
    status: RunStatus = RunStatus.completed
    measured_in: MeasuredIn = MeasuredIn.cohort
    role: str | None = None
    trial: int | None = None
    run_id: str | None = None
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        """Return the record."""
        metrics = {
            "memory/peak_bytes": self.peak,
            "memory/adapter_bytes": self.adapter,
            "throughput/step_ms": self.step_ms,
        }
        after = {"eval/loss": self.loss, "eval/exact_match": self.match}
        sweep = {} if self.role is None else {"name": "s", "role": self.role, "trial": self.trial}
        return Record(
            run_id=self.run_id
            or f"{self.format}-r{self.rank}-{self.lr}-s{self.seed}-{self.measured_in.value}",
            status=self.status,
            config={
                "model": {"name": self.model},
                "quant": {"format": self.format, "double_quant": False},
                "lora": {"rank": self.rank, "alpha": None, "alpha_over_rank": 2.0},
                "optim": {"lr": self.lr},
                "tracker": {"name": "none"},
                "seed": self.seed,
            },
            metrics={name: value for name, value in metrics.items() if value is not None},
            evals={
                "before": {} if self.before is None else {"eval/loss": estimate(self.before)},
                "after": {k: estimate(v) for k, v in after.items() if v is not None},
            },
            measured_in=self.measured_in,
            started_at="2026-11-21T00:00:00+00:00",
            notes=list(self.notes),
            provenance=PROVENANCE | self.provenance | ({"sweep": sweep} if sweep else {}),
        )

    def write(self, out: Path) -> Path:
        """Write the record where a run leaves it; return the run's directory."""
        record = self.record()
        directory = RunDirectory(out / "runs" / record.run_id)
        directory.path.mkdir(parents=True)
        write_record(directory.record, record)
        return directory.path


def estimate(value: float) -> Estimate:
    """Return an evaluation of a hundred rows."""
    return Estimate(value=value, standard_error=0.01, n=100)


def rows(*runs: Run) -> list[Row]:
    """Return the rows of runs."""
    return [flat_row(run.record()) for run in runs]


def seeds(*losses: float, **common: Any) -> list[Run]:
    """Return one run for each loss, with the seeds 0, 1, …"""
    return [Run(seed=seed, loss=loss, **common) for seed, loss in enumerate(losses)]
