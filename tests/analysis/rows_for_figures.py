"""Small records for figures: quality by what was chosen, memory by parts, probes."""

from dataclasses import dataclass
from typing import Any

from analysis.frame import Row, flat_row
from harness.config.compose import compose_run, config_tree
from harness.records.record import Estimate, MeasuredIn, Record, RunStatus

PARTS = ("base", "quant_constants", "adapter", "gradient", "optimizer", "activation")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One record in short."""

    format: str = "nf4"
    block: int = 64
    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("all_linear",)
    lr: float = 1e-3
    seed: int = 0
    steps: int = 400
    loss: float | None = None
    exact: float | None = None
    parameters: float | None = None
    parts: tuple[float | None, ...] = ()
    peak: float | None = None
    status: RunStatus = RunStatus.completed
    measured_in: MeasuredIn = MeasuredIn.solo
    role: str | None = None
    trial: int | None = None
    split: str = "validation"
    task: str = "facts"
    error: str | None = None

    @property
    def run_id(self) -> str:
        chosen = (self.task, self.format, self.block, self.rank, self.alpha, *self.targets, self.lr)
        return "-".join(map(str, (*chosen, self.seed, self.split, self.measured_in.value)))

    def record(self) -> Record:
        named = zip(PARTS, self.parts, strict=False)
        metrics: dict[str, Any] = {f"memory/{part}_bytes": value for part, value in named}
        metrics |= {"memory/peak_bytes": self.peak, "adapter/trainable_params": self.parameters}
        scores = {"eval/loss": self.loss, "eval/exact_match": self.exact}
        sweep = {"name": "small", "role": self.role, "trial": self.trial}
        return Record(
            run_id=self.run_id,
            status=self.status,
            config={
                "model": {"name": "embedded"},
                "quant": {
                    "format": self.format,
                    "double_quant": False,
                    "block_size": self.block,
                },
                "lora": {
                    "rank": self.rank,
                    "alpha": self.alpha,
                    "alpha_over_rank": None if self.alpha is not None else 2.0,
                    "target_modules": list(self.targets),
                },
                "data": {"task": self.task},
                "optim": {"lr": self.lr, "steps": self.steps},
                "eval": {"split": self.split},
                "tracker": {"name": "none"},
                "seed": self.seed,
            },
            metrics={name: value for name, value in metrics.items() if value is not None},
            evals={
                "after": {
                    name: Estimate(value=value, standard_error=None, n=1)
                    for name, value in scores.items()
                    if value is not None
                }
            },
            measured_in=self.measured_in,
            provenance={
                "sweep": sweep,
                "git": {"commit": "c0ffee", "dirty": True},
                "host": "here",
                "packages": {"torch": "2"},
            },
            started_at="2026-11-21T00:00:00+00:00",
            wall_seconds=2.0,
            error=self.error,
        )


def asked(*requests: list[str], **measured: float) -> list[Row]:
    """Return the rows of runs of the embedded base in float32, by what was asked for, with all its keys."""
    return [
        flat_row(
            Record(
                run_id="-".join(words),
                status=RunStatus.completed,
                config=config_tree(compose_run(["quant=none", "optim.steps=4", *words])),
                metrics=dict(measured),
                measured_in=MeasuredIn.solo,
            )
        )
        for words in requests
    ]


def rows(*runs: Run) -> list[Row]:
    """Return the rows of some runs."""
    return [flat_row(run.record()) for run in runs]
