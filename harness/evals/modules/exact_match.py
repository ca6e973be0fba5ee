"""Exact match as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate

from harness.evals.result import mean_result
from harness.evals.text_scores import exact_match_scores


class ExactMatch(evaluate.Metric):
    """Share of predictions that equal their reference after stripping white space."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of predictions equal to the reference after stripping white space.",
            citation="",
            inputs_description="predictions, references: one text per row.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict:
        """Return exact_match, its standard_error (None for one row) and n."""
        result = mean_result(exact_match_scores(predictions, references))
        return {
            "exact_match": result.value,
            "standard_error": result.standard_error,
            "n": result.n,
        }
