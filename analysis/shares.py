"""Intervals of metrics that are a share of the answers, from rows: over seeds and test rows. Pure."""

from collections.abc import Sequence

from analysis.crossed import crossed, crossed_of_means
from analysis.frame import ROWS, Row, metric_key
from analysis.intervals import Interval
from harness.records.metrics import is_task_metric

SHARES = (
    *(
        "eval/token_accuracy",
        "eval/exact_match",
        "eval/choice_accuracy",
        "eval/choice_accuracy_raw",
    ),
)
"""Metrics that are a share of the answers: their intervals stay between 0 and 1."""
_TASK_SHARES = (
    *("acc", "acc_norm", "exact_match"),
    *("prompt_level_loose_acc", "prompt_level_strict_acc"),
)
"""The same of lm-evaluation-harness's tasks."""


def is_share(name: str) -> bool:
    """Whether a metric is a share of the answers."""
    return name in SHARES or (is_task_metric(name) and name.split("/")[2] in _TASK_SHARES)


def share_interval(rows: Sequence[Row], column: str) -> Interval | None:
    """Return the interval of a share, from the runs of one cell; None for other metrics, or from one seed.

    None, too, where a record has one that is no share, below 0 or above 1: it was not measured here.

    `column` is a metric, or `before.` and a metric. Where the scores of the rows are not known, the standard
    errors over rows stand for them, and the interval is wider.
    """
    if not is_share(column.removeprefix("before.")) or len(rows) < 2:
        return None
    key = metric_key(column)
    if not all(0 <= row[key] <= 1 for row in rows):
        return None
    scores = [row.get(f"{ROWS}{column}") for row in rows]
    known = [each for each in scores if each is not None]
    found = crossed(known) if len(known) == len(scores) else None
    if found is None:
        errors = [row.get(f"{key}.standard_error") or 0.0 for row in rows]
        counts = [row.get(f"{key}.n") or 0 for row in rows]
        found = crossed_of_means([row[key] for row in rows], errors, min(counts))
    return None if found is None else found.share_interval()
