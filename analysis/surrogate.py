"""What each axis of an adaptive search does on average, by a Gaussian process over its trials. Pure.

An adaptive search visits good places often and most places never, so that means over the trials at a level
say where it went, not what the level does. A surrogate fills the gaps and says how sure it is: partial
dependence (Friedman 2001) is its mean over the trials' other settings, with the posterior deviation of that
mean (Moosbauer et al. 2021, "Explaining hyperparameter optimization via partial dependence plots").

Shape suffixes: N trials, D columns of an encoded point, G places on an axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics import LEAST_TRIALS, TRIALS_PER_AXIS

PLACES = 17
"""Places along an axis of many numbers."""
MAX_LEVELS = 9
MOST_TRIALS = 400
"""The best so many are fitted: time grows with their cube."""
STARTS = 3
_JITTER = 1e-8
Z_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """Partial dependence of the objective on one axis, in its own unit."""

    axis: str
    levels: tuple[str | float, ...]
    """Numbers of an axis of numbers, ascending; else choices, in the order tried."""
    mean: tuple[float, ...]
    low: tuple[float, ...]
    """Lower ends of 95 % intervals of the surrogate's mean, without the noise of single trials."""
    high: tuple[float, ...]
    is_numeric: bool
    is_logarithmic: bool


def partial_dependence(
    points: Sequence[Mapping[str, str]], values: Sequence[float]
) -> list[Dependence]:
    """Return the dependence on every axis that varied, from finished trials with finite values.

    Positive values that lie more than tenfold apart are fitted by their logarithms.

    Raises ValueError for too few trials to say anything, or values that do not vary.
    """
    axes = [axis for axis in dict.fromkeys(k for p in points for k in p) if _varies(points, axis)]
    needed = max(LEAST_TRIALS, TRIALS_PER_AXIS * len(axes))
    if len(points) < needed or not axes:
        raise ValueError(
            f"{len(points)} completed trials over {len(axes)} axes: partial dependence needs {needed} or more"
        )
    if len(points) > MOST_TRIALS:
        kept = np.argsort(values)[:MOST_TRIALS].tolist()
        points, values = [points[i] for i in kept], [values[i] for i in kept]
    y_N = np.asarray(values, dtype=float)
    by_ratio = bool(y_N.min() > 0 and y_N.max() > 10 * y_N.min())
    y_N = np.log(y_N) if by_ratio else y_N
    centre, spread = float(y_N.mean()), float(y_N.std())
    if spread == 0:
        raise ValueError("every trial has the same value")
    columns = [_Column.of(axis, [point.get(axis) for point in points]) for axis in axes]
    process = _Process.fitted(np.hstack([c.encoded_ND for c in columns]), (y_N - centre) / spread)
    found = []
    for column in columns:
        averaged = [process.averaged(_with(columns, column, level)) for level in column.levels]
        mean_G = np.array([mean for mean, _ in averaged]) * spread + centre
        half_G = Z_95 * np.array([deviation for _, deviation in averaged]) * spread
        ends = [mean_G, mean_G - half_G, mean_G + half_G]
        mean, low, high = (tuple((np.exp(e) if by_ratio else e).tolist()) for e in ends)
        found.append(
            Dependence(
                axis=column.axis,
                levels=tuple(column.levels),
                mean=mean,
                low=low,
                high=high,
                is_numeric=column.is_numeric,
                is_logarithmic=column.is_logarithmic,
            )
        )
    return found


def _varies(points: Sequence[Mapping[str, str]], axis: str) -> bool:
    return len({point.get(axis) for point in points}) > 1


# Points as numbers --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One axis: its values as numbers from 0 to 1, or as one of several columns that are 0 or 1."""

    axis: str
    levels: list[str | float]
    encoded_ND: np.ndarray
    is_numeric: bool
    is_logarithmic: bool
    low: float
    span: float

    @classmethod
    def of(cls, axis: str, spelled: Sequence[str | None]) -> "_Column":
        numbers = [_number(text) for text in spelled if text is not None]
        known = [number for number in numbers if number is not None]
        distinct = sorted(set(known))
        if len(known) < len(numbers) or len(distinct) < 2:
            names = list(dict.fromkeys(text for text in spelled if text is not None))
            columns: list[str | None] = [*names, *([None] if None in spelled else [])]
            encoded = np.array([[float(text == name) for name in columns] for text in spelled])
            return cls(
                axis=axis,
                levels=list(names),
                encoded_ND=encoded,
                is_numeric=False,
                is_logarithmic=False,
                low=0.0,
                span=1.0,
            )
        by_ratio = distinct[0] > 0 and distinct[-1] >= 4 * distinct[0]
        ends = [math.log(n) if by_ratio else n for n in (distinct[0], distinct[-1])]
        low, span = ends[0], ends[1] - ends[0]
        inside = [
            None if text is None else _scaled(_number(text), by_ratio, low, span)
            for text in spelled
        ]
        absent = [float(value is None) for value in inside]
        filled = [0.5 if value is None else value for value in inside]
        lists = [filled, absent] if any(absent) else [filled]
        levels: list[str | float] = list(distinct)
        if len(distinct) > MAX_LEVELS:
            steps = np.linspace(ends[0], ends[1], PLACES)
            levels = (np.exp(steps) if by_ratio else steps).tolist()
        return cls(
            axis=axis,
            levels=levels,
            encoded_ND=np.array(lists).T,
            is_numeric=True,
            is_logarithmic=by_ratio,
            low=low,
            span=span,
        )

    def at(self, level: str | float) -> np.ndarray:
        """Return the encoding [N, D] of all points moved to a level; where the axis is absent it stays so."""
        moved_ND = self.encoded_ND.copy()
        if self.is_numeric:
            here = moved_ND[:, 1] == 0 if moved_ND.shape[1] > 1 else np.full(len(moved_ND), True)
            moved_ND[here, 0] = _scaled(float(level), self.is_logarithmic, self.low, self.span)
            return moved_ND
        place = self.levels.index(level)
        absent = moved_ND[:, -1] == 1 if moved_ND.shape[1] > len(self.levels) else None
        here = np.full(len(moved_ND), True) if absent is None else ~absent
        moved_ND[here] = 0.0
        moved_ND[here, place] = 1.0
        return moved_ND


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _scaled(number: float | None, by_ratio: bool, low: float, span: float) -> float:
    assert number is not None, "an axis of numbers has numbers"
    return ((math.log(number) if by_ratio else number) - low) / span


def _with(columns: Sequence[_Column], column: _Column, level: str | float) -> np.ndarray:
    """Return all points [N, D] with one axis at a level."""
    return np.hstack([c.at(level) if c is column else c.encoded_ND for c in columns])


# The process --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """A Gaussian process with a Matern 5/2 kernel, a length for each column (Rasmussen and Williams 2006)."""

    x_ND: np.ndarray
    lengths_D: np.ndarray
    signal: float
    """Variance of the function."""
    lower_NN: np.ndarray
    weights_N: np.ndarray

    @classmethod
    def fitted(cls, x_ND: np.ndarray, y_N: np.ndarray) -> "_Process":
        """Fit lengths, signal and noise by marginal likelihood with weak priors, from several starts."""
        from scipy.optimize import minimize

        columns = x_ND.shape[1]
        generator = np.random.default_rng(0)
        starts = [np.concatenate([np.zeros(columns), [0.0, math.log(0.1)]])]
        starts += [starts[0] + generator.normal(0, 0.7, columns + 2) for _ in range(STARTS - 1)]
        bounds = [(math.log(0.05), math.log(20.0))] * columns + [
            (math.log(0.05), math.log(20.0)),
            (math.log(1e-4), math.log(2.0)),
        ]
        results = [
            minimize(_loss_and_gradient, s, (x_ND, y_N), jac=True, method="L-BFGS-B", bounds=bounds)
            for s in starts
        ]
        best = min(results, key=lambda result: float(result.fun)).x
        lengths_D, signal, noise = np.exp(best[:columns]), math.exp(best[-2]), math.exp(best[-1])
        kernel_NN = signal * _matern(x_ND, x_ND, lengths_D)
        lower_NN = np.linalg.cholesky(kernel_NN + (noise + _JITTER) * np.eye(len(x_ND)))
        weights_N = np.linalg.solve(lower_NN.T, np.linalg.solve(lower_NN, y_N))
        return cls(
            x_ND=x_ND, lengths_D=lengths_D, signal=signal, lower_NN=lower_NN, weights_N=weights_N
        )

    def averaged(self, at_ND: np.ndarray) -> tuple[float, float]:
        """Return the mean over places of the posterior mean, and the posterior deviation of that mean."""
        to_N = self.signal * _matern(at_ND, self.x_ND, self.lengths_D).mean(0)
        prior = self.signal * float(_matern(at_ND, at_ND, self.lengths_D).mean())
        explained_N = np.linalg.solve(self.lower_NN, to_N)
        variance = prior - float(explained_N @ explained_N)
        return float(to_N @ self.weights_N), math.sqrt(max(0.0, variance))


def _matern(a_ND: np.ndarray, b_MD: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
    distance = math.sqrt(5) * _distances(a_ND / lengths_D, b_MD / lengths_D)
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _distances(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    squares = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1) - 2 * a_ND @ b_MD.T
    return np.sqrt(np.maximum(squares, 0.0))


def _loss_and_gradient(
    logs: np.ndarray, x_ND: np.ndarray, y_N: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return minus the log marginal likelihood with priors on the logarithms, and its gradient.

    d/dl of Matern 5/2 with r^2 = sum (dx/l)^2: 5/3 (1 + sqrt(5) r) exp(-sqrt(5) r) dx^2 / l^3.
    """
    columns = x_ND.shape[1]
    lengths_D, signal, noise = np.exp(logs[:columns]), math.exp(logs[-2]), math.exp(logs[-1])
    scaled_ND = x_ND / lengths_D
    root_NN = math.sqrt(5) * _distances(scaled_ND, scaled_ND)
    decay_NN = np.exp(-root_NN)
    shape_NN = (1 + root_NN + root_NN**2 / 3) * decay_NN
    kernel_NN = signal * shape_NN + (noise + _JITTER) * np.eye(len(y_N))
    lower_NN = np.linalg.cholesky(kernel_NN)
    inverse_NN = np.linalg.inv(kernel_NN)
    weights_N = inverse_NN @ y_N
    loss = 0.5 * float(y_N @ weights_N) + float(np.log(np.diag(lower_NN)).sum())
    inner_NN = inverse_NN - np.outer(weights_N, weights_N)  # dloss = trace(inner dK) / 2
    slope_NN = inner_NN * signal * (5 / 3) * (1 + root_NN) * decay_NN
    gradient = np.empty_like(logs)
    for d in range(columns):
        gaps_NN = (scaled_ND[:, d, None] - scaled_ND[None, :, d]) ** 2
        gradient[d] = 0.5 * float((slope_NN * gaps_NN).sum())
    gradient[-2] = 0.5 * signal * float((inner_NN * shape_NN).sum())
    gradient[-1] = 0.5 * noise * float(np.trace(inner_NN))
    # Weak: lengths around the axis' own (0 to 1), a signal of the data's variance, noise about a tenth.
    middle = np.concatenate([np.zeros(columns), [0.0, math.log(0.1)]])
    wide = np.concatenate([np.full(columns, 1.5), [1.0, 2.0]])
    off = (logs - middle) / wide
    return loss + 0.5 * float(off @ off), gradient + off / wide
