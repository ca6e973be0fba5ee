"""Loss, perplexity and token accuracy over held-out positions as one `evaluate` metric."""

from typing import Any

import datasets
import evaluate

from harness.evals.result import token_loss_results


class TokenLoss(evaluate.Metric):
    """Mean cross-entropy per token and what follows from it, with rows as clusters of tokens."""

    def _info(self) -> evaluate.MetricInfo:
        count = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Loss (nats per token), perplexity and token accuracy over held-out rows.",
            citation="",
            inputs_description=(
                "loss_sums: nats summed over the tokens of each row; correct: tokens of each row that were "
                "the most likely ones; tokens: tokens of each row that carry loss."
            ),
            features=datasets.Features(
                {"loss_sums": datasets.Value("float64"), "correct": count, "tokens": count}
            ),
        )

    def _compute(self, **inputs: Any) -> dict:
        """Return loss, perplexity and token_accuracy, each with `_standard_error`, and n rows."""
        results = token_loss_results(inputs["loss_sums"], inputs["correct"], inputs["tokens"])
        values: dict[str, float | int | None] = {"n": results["loss"].n}
        for name, result in results.items():
            values[name] = result.value
            values[f"{name}_standard_error"] = result.standard_error
        return values
