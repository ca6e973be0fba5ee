"""Accuracy of multiple choice as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate

from harness.evals.result import mean_result


class ChoiceAccuracy(evaluate.Metric):
    """Share of questions whose right choice was chosen."""

    def _info(self) -> evaluate.MetricInfo:
        index = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Share of questions whose chosen choice is the right one.",
            citation="",
            inputs_description="predictions, references: the index of one choice per question.",
            features=datasets.Features({"predictions": index, "references": index}),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict:
        """Return choice_accuracy, its standard_error (None for one question) and n."""
        pairs = zip(predictions, references, strict=True)
        result = mean_result([float(chosen == right) for chosen, right in pairs])
        return {
            "choice_accuracy": result.value,
            "standard_error": result.standard_error,
            "n": result.n,
        }
