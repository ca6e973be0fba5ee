"""Intervals over seeds and rows at once: would a mean hold with other seeds and on other test rows? Pure.

A seed answers every row and a row is answered by every seed, so that neither are replicates of the other.
Value of seed s and row r = mean + part of the seed + part of the row + rest. The variance of the mean is the
seeds' / S + the rows' / R + that of the rest / SR, from the mean squares of a two-way table (Searle, Casella,
McCulloch 1992, chapter 4; in language research Clark 1973, "The language-as-fixed-effect fallacy"), with
degrees of freedom by Satterthwaite (1946).

Shape suffixes: S seeds, R rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.intervals import Interval, mean_and_deviation, t_quantile
from harness.records.scores import RowScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """A mean over seeds and rows with its variance."""

    mean: float
    variance: float
    freedom: float
    """Degrees of freedom of the variance."""
    seeds: int
    rows: int

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the t-interval of the mean."""
        half = t_quantile(self.freedom, confidence) * math.sqrt(self.variance)
        low, high = self.mean - half, self.mean + half
        return Interval(mean=self.mean, low=low, high=high, n=self.seeds, deviation=None)

    def share_interval(self, confidence: float = 0.95) -> Interval:
        """Return the interval of a mean that is a share: Wilson's (1927) for the effective number of answers.

        That is p(1 - p) / variance (Kish 1965), less for few degrees of freedom (Korn and Graubard 1998).
        Where every answer is right, or none, the seeds agree on every row: as many as there are rows.
        """
        from scipy.special import ndtri

        p, z = self.mean, float(ndtri((1 + confidence) / 2))
        if 0 < p < 1 and self.variance > 0:
            most = self.seeds * self.rows
            n = min(most, p * (1 - p) / self.variance)
            n *= (z / t_quantile(self.freedom, confidence)) ** 2
        else:
            n = self.rows
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        return Interval(
            mean=self.mean,
            low=0.0 if p == 0 else low,
            high=1.0 if p == 1 else high,
            n=self.seeds,
            deviation=None,
        )


def crossed(scores: Sequence[RowScores]) -> Crossed | None:
    """Return the mean of one cell's runs, a seed each; None for fewer than two, or on different rows."""
    return _crossed([each.sums for each in scores], scores)


def crossed_difference(pairs: Sequence[tuple[RowScores, RowScores]]) -> Crossed | None:
    """Return the mean difference of two cells' runs, a pair for each seed that both have; None likewise."""
    both = [each for pair in pairs for each in pair]
    differences = [
        [a - b for a, b in zip(one.sums, other.sums, strict=False)] for one, other in pairs
    ]
    return _crossed(differences, both)


def crossed_of_means(means: Sequence[float], errors: Sequence[float], rows: int) -> Crossed | None:
    """Return what the means of seeds and their standard errors over rows allow: wider, never narrower.

    The rows' parts cannot be told from the rest then, which is counted in both. None for fewer than two seeds
    or rows.
    """
    mean, deviation = mean_and_deviation(means)
    if deviation is None or rows < 2:
        return None
    of_seeds = deviation**2 / len(means)
    of_rows = math.fsum(error**2 for error in errors) / len(errors)
    variance = of_seeds + of_rows
    terms = of_seeds**2 / (len(means) - 1) + of_rows**2 / (rows - 1)
    freedom = variance**2 / terms if terms else float(rows - 1)
    return Crossed(mean=mean, variance=variance, freedom=freedom, seeds=len(means), rows=rows)


def _crossed(sums: Sequence[Sequence[float]], scores: Sequence[RowScores]) -> Crossed | None:
    if len(sums) < 2 or any(
        each.rows != scores[0].rows or each.weights != scores[0].weights for each in scores
    ):
        return None
    sums_SR, weights_R = np.asarray(sums, dtype=float), np.asarray(scores[0].weights, dtype=float)
    counted = weights_R > 0
    sums_SR, weights_R = sums_SR[:, counted], weights_R[counted]
    seeds, rows = sums_SR.shape
    if rows < 2:
        return None
    mean = float(sums_SR.sum() / (seeds * weights_R.sum()))
    # Rows weigh differently: the ratio's linear form, whose mean over rows varies as the ratio does.
    values_SR = (sums_SR - mean * weights_R) * rows / weights_R.sum()
    variance, freedom = _variance_of_mean(values_SR)
    return Crossed(mean=mean, variance=variance, freedom=freedom, seeds=seeds, rows=rows)


def _variance_of_mean(values_SR: np.ndarray) -> tuple[float, float]:
    """Return the variance of a two-way table's mean, and its degrees of freedom.

    A part that is estimated below 0 counts as 0: then the mean square of the other is all there is.
    """
    seeds, rows = values_SR.shape
    of_seed_S, of_row_R = values_SR.mean(1), values_SR.mean(0)
    whole = values_SR.mean()
    rest_SR = values_SR - of_seed_S[:, None] - of_row_R + whole
    squares = (
        rows * float(((of_seed_S - whole) ** 2).sum()) / (seeds - 1),
        seeds * float(((of_row_R - whole) ** 2).sum()) / (rows - 1),
        float((rest_SR**2).sum()) / ((seeds - 1) * (rows - 1)),
    )
    freedoms = (seeds - 1, rows - 1, (seeds - 1) * (rows - 1))
    by_seed, by_row, rest = squares
    joint = by_seed + by_row - rest
    least = max(by_seed, by_row)
    if joint <= least:
        freedom = freedoms[squares.index(least)]
        return least / (seeds * rows), float(freedom)
    terms = sum(square**2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    return joint / (seeds * rows), joint**2 / terms
