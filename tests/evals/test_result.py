"""Standard errors against scipy, the bootstrap and hand computations."""

import math

import numpy as np
import pytest

from harness.evals.result import (
    EvalResult,
    mean_result,
    perplexity_result,
    ratio_result,
    token_loss_results,
)


def _clusters(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (sums, sizes) of clusters whose tokens share a level, as the tokens of a text do."""
    random = np.random.default_rng(seed)
    sizes = random.integers(5, 60, num)
    levels = random.normal(2.0, 0.6, num)
    sums = np.array([random.normal(mu, 1.0, n).sum() for mu, n in zip(levels, sizes, strict=True)])
    return sums, sizes


def _bootstrap(statistic, sums: np.ndarray, sizes: np.ndarray) -> float:
    """Return the standard deviation of `statistic` over 5,000 resamples of whole clusters."""
    random = np.random.default_rng(1)
    picks = random.integers(0, len(sums), (5000, len(sums)))
    return float(np.std(statistic(sums[picks].sum(1) / sizes[picks].sum(1)), ddof=1))


def test_mean_and_its_error_equal_scipys():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).random(57).tolist()
    result = mean_result(values)
    assert result.value == pytest.approx(np.mean(values))
    assert result.standard_error == pytest.approx(stats.sem(values))
    assert result.n == 57


def test_mean_of_hits_by_hand():
    # 3 of 4: s^2 = (3 * 0.25^2 + 0.75^2) / 3 = 0.25, SE = sqrt(0.25 / 4) = 0.25.
    assert mean_result([1, 1, 0, 1]) == EvalResult(value=0.75, standard_error=0.25, n=4)


def test_ratio_by_hand():
    # R = 9 / 6; residuals 2 - 1.5 * 1, 4 - 1.5 * 2, 3 - 1.5 * 3 = 0.5, 1, -1.5.
    result = ratio_result([2.0, 4.0, 3.0], [1, 2, 3])
    assert result.value == 1.5
    assert result.standard_error == pytest.approx(math.sqrt(3 / 2 * (0.25 + 1 + 2.25)) / 6)


def test_ratio_over_equal_clusters_is_the_mean_of_their_means():
    sums = np.random.default_rng(0).random(30) * 8
    ratio = ratio_result(sums.tolist(), [8] * 30)
    mean = mean_result((sums / 8).tolist())
    assert ratio.value == pytest.approx(mean.value)
    assert ratio.standard_error == pytest.approx(mean.standard_error)


def test_ratio_error_agrees_with_the_cluster_bootstrap_and_not_with_independent_tokens():
    sums, sizes = _clusters(200, seed=3)
    result = ratio_result(sums.tolist(), sizes.tolist())
    bootstrap = _bootstrap(lambda ratio: ratio, sums, sizes)
    assert result.standard_error == pytest.approx(bootstrap, rel=0.05)
    independent = math.sqrt((0.6**2 + 1.0) / sizes.sum())
    assert result.standard_error is not None
    assert result.standard_error > 2 * independent


def test_perplexity_error_agrees_with_the_bootstrap():
    sums, sizes = _clusters(200, seed=4)
    result = perplexity_result(ratio_result(sums.tolist(), sizes.tolist()))
    assert result.value == pytest.approx(math.exp(sums.sum() / sizes.sum()))
    assert result.standard_error == pytest.approx(_bootstrap(np.exp, sums, sizes), rel=0.05)


def test_one_row_has_no_standard_error():
    assert mean_result([0.5]).standard_error is None
    assert ratio_result([3.0], [2]).standard_error is None
    assert perplexity_result(ratio_result([3.0], [2])).standard_error is None


def test_clusters_without_tokens_are_not_counted():
    assert ratio_result([2.0, 0.0, 4.0], [1, 0, 2]) == ratio_result([2.0, 4.0], [1, 2])


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        mean_result([])
    with pytest.raises(ValueError, match="no observations"):
        ratio_result([0.0], [0])


def test_a_loss_beyond_exp_gives_infinite_perplexity_and_nan_stays_nan():
    huge = perplexity_result(EvalResult(value=1000.0, standard_error=1.0, n=2))
    assert huge.value == math.inf
    results = token_loss_results([math.nan, 1.0], [0, 1], [2, 2])
    assert math.isnan(results["loss"].value)
    assert math.isnan(results["perplexity"].value)
    assert results["token_accuracy"].value == 0.25
