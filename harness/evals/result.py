"""Results with standard errors, as pure functions. Must not import torch, transformers or evaluate.

A standard error says how far the value would move with another sample of as many rows from where these
came from. Why rows (or clusters of them) and not tokens: Miller 2024, "Adding Error Bars to Evals"
(arXiv 2411.00640), sections 2.1 and 2.2.
"""

import math
from collections.abc import Sequence

from harness.records.record import Estimate

EvalResult = Estimate
"""What one evaluation measures is what the record keeps: value, standard error (None if n = 1), n."""


def mean_result(values: Sequence[float]) -> EvalResult:
    """Return the mean of one value per row, with the standard error s / sqrt(n).

    s is the sample standard deviation, with n - 1 (Cochran 1977, Sampling Techniques, eq. 2.19, for a
    population without end).

    Raises:
        ValueError: there is no value.
    """
    n = len(values)
    if not n:
        raise ValueError("the mean of no rows is not defined; give at least one")
    mean = sum(values) / n
    if n == 1:
        return EvalResult(value=mean, standard_error=None, n=1)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return EvalResult(value=mean, standard_error=math.sqrt(variance / n), n=n)


def ratio_result(numerators: Sequence[float], denominators: Sequence[int]) -> EvalResult:
    """Return R = sum(y) / sum(x) over n clusters of different size, with its standard error.

    SE(R) = sqrt(n / (n - 1) * sum((y - R x)^2)) / sum(x): the ratio estimator with whole clusters as the
    sampled units (Cochran 1977, Sampling Techniques, eq. 6.13, for a population without end). Clusters
    of size 0 hold no observation and are not counted in n.

    Raises:
        ValueError: different numbers of numerators and denominators, or all denominators are 0.
    """
    pairs = [(y, x) for y, x in zip(numerators, denominators, strict=True) if x]
    total = sum(x for _, x in pairs)
    if not pairs:
        raise ValueError("the ratio over no observations is not defined; every cluster is empty")
    ratio = sum(y for y, _ in pairs) / total
    n = len(pairs)
    if n == 1:
        return EvalResult(value=ratio, standard_error=None, n=1)
    residual = sum((y - ratio * x) ** 2 for y, x in pairs)
    return EvalResult(value=ratio, standard_error=math.sqrt(residual * n / (n - 1)) / total, n=n)


def perplexity_result(loss: EvalResult) -> EvalResult:
    """Return exp(loss), with standard error exp(loss) * SE(loss) by the delta method.

    The delta method is first order (Casella and Berger 2002, Statistical Inference, theorem 5.5.24); a
    loss above about 709 nats gives infinity.
    """
    try:
        value = math.exp(loss.value)
    except OverflowError:
        value = math.inf
    error = None if loss.standard_error is None else value * loss.standard_error
    return EvalResult(value=value, standard_error=error, n=loss.n)


def token_loss_results(
    loss_sums: Sequence[float], correct: Sequence[int], tokens: Sequence[int]
) -> dict[str, EvalResult]:
    """Return loss (nats/token), perplexity and token accuracy from sums over each cluster of tokens.

    A cluster is what was sampled independently, a row or an example; n counts clusters.
    """
    loss = ratio_result(loss_sums, tokens)
    return {
        "loss": loss,
        "perplexity": perplexity_result(loss),
        "token_accuracy": ratio_result(correct, tokens),
    }
