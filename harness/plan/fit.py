"""What fits into so much memory: one configuration, and how many of it side by side."""

from harness.plan.prediction import Prediction
from harness.plan.subject import MARGIN, Subject
from harness.records.metrics import format_bytes

MAX_COHORT = 64
"""Runs side by side that are tried for the largest cohort that fits."""


def fits(prediction: Prediction, limit: int) -> bool:
    """Say whether a peak and its margin stay within `limit` bytes."""
    return prediction.peak_bytes * (1 + MARGIN) <= limit


def largest_cohort(subject: Subject, limit: int, most: int = MAX_COHORT) -> int:
    """Return how many runs of this configuration fit side by side, at most `most`; 0 if not even one does."""
    if subject.config.lora.trains_alone:  # which trains alone
        return int(fits(subject.predict(1), limit))
    fitting, too_many = 0, most + 1
    size = 1
    while fitting + 1 < too_many:
        if fits(subject.predict(size), limit):
            fitting = size
        else:
            too_many = size
        size = min(2 * size, most) if too_many > most else (fitting + too_many) // 2
        if size == fitting:
            break
    return fitting


def fit_text(subject: Subject, prediction: Prediction, limit: int) -> str:
    """Say whether it fits, and how large a cohort would."""
    needed = format_bytes(round(prediction.peak_bytes * (1 + MARGIN)))
    if not fits(prediction, limit):
        return f"does not fit {format_bytes(limit)}: {needed} with its margin"
    if subject.config.lora.trains_alone:
        return f"fits {format_bytes(limit)}; it trains alone, on its own copy of the weights"
    cohort = largest_cohort(subject, limit)
    return f"fits {format_bytes(limit)}; side by side up to {cohort} such runs do" + (
        " (more were not tried)" if cohort == MAX_COHORT else ""
    )
