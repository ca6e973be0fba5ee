"""What a mirror shows of a finished run beside its series: final values. Pure."""

from harness.records.metrics import SERIES
from harness.records.record import Record


def final_values(record: Record) -> dict[str, float | None]:
    """Return a run's final values by metric name, evaluations as `before.` and `after.` and their name.

    A name of the series is left to the series, and what the planner said, or a probe measured, of a
    configuration alone has `predicted.` or `alone.` in front of it.
    """
    own = {name: value for name, value in record.metrics.items() if name not in SERIES}
    for prefix, values in (
        ("predicted", record.predicted),
        ("alone", record.alone or _costs(record)),
    ):
        own |= {f"{prefix}.{name}": value for name, value in values.items()}
    for phase, results in record.evals.items():
        own |= {f"{phase}.{name}": result.value for name, result in results.items()}
    return own


def _costs(record: Record) -> dict[str, float | None]:
    """Return what a run alone says of its own cost under the names of the series."""
    return {n: v for n, v in record.metrics.items() if n in SERIES and not n.startswith("train/")}
