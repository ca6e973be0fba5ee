"""What a mirror shows of a finished run beside its series: final values, and a few answers. Pure."""

from collections.abc import Iterable, Sequence

from harness.records.answers import KeptAnswer
from harness.records.metrics import SERIES
from harness.records.record import Record

NUM_SAMPLES = 8
SAMPLE_COLUMNS = ("prompt", "reference", "answer before", "answer after")


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


def samples(answers: Iterable[KeptAnswer]) -> list[Sequence[str]]:
    """Return the first rows that were answered: prompt, reference, answer before and after training."""
    by_row: dict[int, dict[str, KeptAnswer]] = {}
    for answer in answers:
        by_row.setdefault(answer.row, {})[answer.phase] = answer
    found = []
    for phases in list(by_row.values())[:NUM_SAMPLES]:
        some = next(iter(phases.values()))
        said = [phases[phase].answer if phase in phases else "" for phase in ("before", "after")]
        found.append((some.prompt, some.reference, *said))
    return found
