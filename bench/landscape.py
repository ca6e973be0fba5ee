"""Searches replayed on a modelled landscape: how good is what a search would find, and for how many steps?

    harness sweep RANDOM.yaml       # QUESTION's space, search.method=random, eval.every_steps=10 in its base
    python -m bench.landscape QUESTION RANDOM … --bar LOSS --search search.pruner=asha eval.every_steps=40

A Gaussian process, fitted to the curves of some hundred recorded runs, gives every point of the space a
curve of losses; a recorded neighbour's residual makes it rough. Study, sampler and pruner are the real ones.
Nothing is trained, so a search takes seconds, and a hundred sampler seeds tell settings apart that three
cannot. What it says of the best points is extrapolated, mostly for the better: choose settings here, and
measure them on real runs with other seeds.
"""

import argparse
import hashlib
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.replay import Cell, Grid, recorded, replay
from harness.question.axes import Axis, NumberAxis
from harness.question.points import Point
from harness.question.question import load_question
from harness.study.parameters import exists
from harness.sweeping.driver import most_in_flight
from harness.sweeping.state import SweepDirectory, read_state

COMPONENTS = 4
"""Principal components of the logarithms of the curves, each with a process of its own."""
NEIGHBOURS = 12
ROUGHNESS = 0.6
"""Share of a neighbour's leave-one-out residual; the rest is the model's error, not the runs' noise."""
CONFIRMED = 3
"""Best cells of a search that would be confirmed; the best of them counts."""


class Curves(dict[Cell, dict[int, float]]):
    """Steps -> loss of any cell, computed when it is first asked for."""

    def __init__(self, axes: Sequence[Axis], known: dict[Cell, dict[int, float]]) -> None:
        super().__init__()
        self._axes = axes
        self.steps = sorted(set.intersection(*(set(curve) for curve in known.values())))
        inputs = [self._features(dict(cell)) for cell in known]
        curves = [[math.log(curve[step]) for step in self.steps] for curve in known.values()]
        self._inputs = torch.tensor(inputs, dtype=torch.float64)
        targets = torch.tensor(curves, dtype=torch.float64)
        self._mean, self._std = targets.mean(0), targets.std(0)
        standard = (targets - self._mean) / self._std
        self._basis = torch.linalg.svd(standard, full_matrices=False)[2][:COMPONENTS]
        parts = (standard @ self._basis.T).T
        fits = [_fit(self._inputs, part) for part in parts]
        self._processes = [(scales, weights) for scales, weights, _ in fits]
        left_out = torch.stack([predicted for _, _, predicted in fits], dim=1)
        self.residuals = targets - self._curve_of(left_out)

    def __missing__(self, cell: Cell) -> dict[int, float]:
        features = torch.tensor(self._features(dict(cell)), dtype=torch.float64)
        near = (self._inputs - features).abs().sum(1).argsort()[:NEIGHBOURS]
        chosen = int(hashlib.sha256(repr(cell).encode()).hexdigest(), 16) % len(near)
        rough = self._smooth(features) + ROUGHNESS * self.residuals[near[chosen]]
        self[cell] = dict(zip(self.steps, rough.exp().tolist(), strict=True))
        return self[cell]

    def expected(self, cell: Cell) -> float:
        """Return the loss at the end as the model has it, without roughness."""
        features = torch.tensor(self._features(dict(cell)), dtype=torch.float64)
        return float(self._smooth(features)[-1].exp())

    def _smooth(self, features: torch.Tensor) -> torch.Tensor:
        parts = [
            (_kernel(features[None], self._inputs, scales) @ weights)[0]
            for scales, weights in self._processes
        ]
        return self._curve_of(torch.stack(parts))

    def _curve_of(self, parts: torch.Tensor) -> torch.Tensor:
        return parts @ self._basis * self._std + self._mean

    def _features(self, point: Point) -> list[float]:
        """Return choices one-hot, and every sum of numbers: rate, rank and alpha act through products."""
        one_hot: list[float] = []
        numbers: list[float] = []
        for axis in self._axes:
            here = exists(axis, point) and axis.key in point
            if isinstance(axis, NumberAxis):
                value = float(point[axis.key]) if here else axis.low
                low, high = axis.low, axis.high
                if axis.log:
                    value, low, high = math.log(value), math.log(low), math.log(high)
                numbers.append((value - low) / (high - low))
            else:
                one_hot += [float(here and point[axis.key] == each) for each in _labels(axis)]
        count = range(1, len(numbers) + 1)
        sums = [sum(some) for n in count for some in itertools.combinations(numbers, n)]
        return one_hot + sums


def _labels(axis: Axis) -> list[str]:
    choices = axis.choices
    assert choices is not None, axis.key
    return [str(each) for each in choices]


def _kernel(a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Matérn 5/2 with a length for every feature, as logarithms in `scales`; its amplitude comes last."""
    lengths = scales[:-2].exp()
    distance = math.sqrt(5) * torch.cdist(a / lengths, b / lengths)
    return scales[-2].exp() * (1 + distance + distance**2 / 3) * (-distance).exp()


def _fit(
    inputs: torch.Tensor, targets: torch.Tensor, rounds: int = 300
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logarithms of lengths, amplitude and noise; the inputs' weights; leave-one-out predictions."""
    size = targets.std()
    y = targets / size
    start = [0.0] * inputs.shape[1] + [0.0, -2.0]
    scales = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scales], lr=0.05)
    eye = torch.eye(len(y), dtype=torch.float64)
    for _ in range(rounds):
        matrix = _kernel(inputs, inputs, scales) + scales[-1].exp() * eye
        root = torch.linalg.cholesky(matrix)
        weights = torch.cholesky_solve(y[:, None], root)[:, 0]
        likelihood = -0.5 * y @ weights - root.diagonal().log().sum()
        prior = 0.05 * (scales[:-2] ** 2).sum()  # lengths near 1 unless the data say otherwise
        loss = prior - likelihood
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        inverse = torch.linalg.inv(_kernel(inputs, inputs, scales) + scales[-1].exp() * eye)
        weights = inverse @ y
        left_out = y - weights / inverse.diagonal()  # Rasmussen and Williams 2006, equation 5.12
    return scales.detach(), weights * size, left_out * size


def main() -> None:
    """Model the landscape, replay searches with sampler seeds 1000, 1001, … and print what they find."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("question", help="whose space is searched")
    parser.add_argument("sweeps", nargs="+", help="random sweeps of that space with one seed")
    parser.add_argument("--bar", type=float, required=True, help="loss that is to be reached")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument(
        "--search", nargs="+", default=[], help="overrides, eval.every_steps=N among them"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    overrides = ["objective={eval/loss: minimize}", "confirm=null", *given.search]
    question = load_question(given.question, overrides)
    known: dict[Cell, dict[int, float]] = {}
    for name in given.sweeps:
        known |= recorded(given.out, read_state(SweepDirectory(given.out, name))).curves
    curves = Curves(question.space.axes, known)
    good = [i for i, curve in enumerate(known.values()) if curve[curves.steps[-1]] < 3 * given.bar]
    print(
        f"{len(known)} runs; error of the loss at the end, left out, as a factor: "
        f"{math.exp(_rms(curves.residuals[:, -1].numpy())):.2f}, where it is below three bars "
        f"{math.exp(_rms(curves.residuals[good, -1].numpy())):.2f}"
    )
    grid = Grid(curves, {}, curves.steps[-1])
    every = next(int(o.partition("=")[2]) for o in overrides if o.startswith("eval.every_steps="))
    slots = most_in_flight(question.search)
    found, steps = [], []
    for seed in range(1000, 1000 + given.seeds):
        asked = replace(question, search=replace(question.search, sampler_seed=seed))
        done = replay(asked, grid, every, slots)
        found.append(min(curves.expected(cell) for cell in done.best[:CONFIRMED]))
        steps.append(done.steps)
    reached = sum(each <= given.bar for each in found)
    print(
        f"{' '.join(given.search)}, {slots} in flight: at the bar in {reached} of {len(found)}; "
        f"median {statistics.median(found):.5f}, worst tenth {np.quantile(found, 0.9):.5f}; steps "
        f"{statistics.fmean(steps):.0f} (at most {max(steps)})"
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


if __name__ == "__main__":
    main()
