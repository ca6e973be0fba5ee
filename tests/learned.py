"""What a run has learned, of its rows: without what its steps cost, which no two runs have in common."""

from pathlib import Path

from harness.records.metrics_log import read_metrics

COSTS = ("throughput/", "memory/", "device/", "cohort/")


def learned(metrics: Path) -> list[dict[str, float | None]]:
    """Return the rows of a metrics.jsonl with losses, norms, rates and evaluations only."""
    rows = read_metrics(metrics).rows
    return [{k: v for k, v in row.items() if not k.startswith(COSTS)} for row in rows]
