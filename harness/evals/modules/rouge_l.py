"""ROUGE-L as an `evaluate` metric, over the implementation of `rouge-score`."""

from typing import Any

import datasets
import evaluate

from harness.evals.result import mean_result
from harness.evals.text_scores import rouge_l_scores


class RougeL(evaluate.Metric):
    """Mean F1 of the longest common subsequence of words."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Mean longest-common-subsequence F1 of prediction and reference, unstemmed.",
            citation="Lin 2004, ROUGE: a package for automatic evaluation of summaries, ACL workshop.",
            inputs_description="predictions, references: one text per row.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict:
        """Return rouge_l, its standard_error (None for one row) and n."""
        result = mean_result(rouge_l_scores(predictions, references))
        return {"rouge_l": result.value, "standard_error": result.standard_error, "n": result.n}
