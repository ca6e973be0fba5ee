"""`python -m bench.inference [--tables 4000]`: the report's tests on simulated sweeps whose truth is known.

A sweep's values are truth + a part common to all cells of a seed + a part common to a level and a seed (30 %
of the variance) + noise of the run; 1 is the deviation of a cell over its seeds. The functions are those
behind the report's tables. Prints, for null effects and for effects of 1 and 2 deviations:

- false positives: tables in which some true null is called better or worse (at most 5 % are allowed);
- coverage: intervals that hold the truth (95 % is stated; where Holm's first step is .05/m, more);
- found: effects that are called by their right side; wrong side: by the other;
- equivalent: contrasts called equivalent, where the truth lies on the margin (at most 5 % are allowed) or is
  0.

"Unlike" cells: the best one's deviation is three times, or a third of, the others'. "Seeds x rows": a mean
over answers and a share of right ones, with seeds and test rows both drawn anew; the last column is what an
interval over seeds alone would cover.

Writes bench/results/inference.json.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.crossed import crossed
from analysis.inference import Verdict, compare_with_best, family_of, interaction_p
from analysis.statistics import marginal_effects, mean_interval
from harness.records.run_directory import write_text
from harness.records.scores import RowScores

RESULTS = Path(__file__).parent / "results" / "inference.json"
SHARED = 0.3
"""Share of a cell's variance over seeds that all runs of a level and seed have in common."""
BLOCKS = 6
MARGIN = 1.0
Draw = Callable[..., np.ndarray]


def draw_cells(generator: np.random.Generator, truth: np.ndarray, seeds: int) -> np.ndarray:
    """Return values [levels, seeds]; what a seed has in common moves all levels alike."""
    common_S = generator.normal(0, 1, seeds)
    return truth[:, None] + common_S + generator.normal(0, 1, (len(truth), seeds))


def contrasts(
    generator: np.random.Generator, levels: int, seeds: int, effect: float
) -> dict[str, Any]:
    """Compare every level with the first; the last has the effect, the others none."""
    truth = np.zeros(levels)
    truth[-1] = effect
    values = draw_cells(generator, truth, seeds)
    family = family_of([list(values[i] - values[0]) for i in range(1, levels)], MARGIN)
    tested = [each for each in family.tested if each is not None]
    decided = (Verdict.above, Verdict.below)
    nulls = tested if effect == 0 else tested[:-1]
    inside = [
        each.low is not None and each.high is not None and each.low <= true <= each.high
        for each, true in zip(tested, truth[1:], strict=True)
    ]
    return {
        "false positive": any(each.verdict in decided for each in nulls) if nulls else None,
        "coverage": sum(inside) / len(inside),
        "all covered": all(inside),
        "found": None if effect == 0 else tested[-1].verdict is Verdict.above,
        "wrong side": None if effect == 0 else tested[-1].verdict is Verdict.below,
        "equivalent": tested[-1].within_margin,
    }


def effects(generator: np.random.Generator, seeds: int, effect: float) -> dict[str, Any]:
    """Take the effects table's line of one factor of two levels, over blocks that share their seeds."""
    level_seed = generator.normal(0, math.sqrt(SHARED), (2, seeds))
    rows = [
        {
            "seed": seed,
            "factor": level,
            "block": block,
            "loss": effect * level
            + level_seed[level, seed]
            + generator.normal(0, math.sqrt(1 - SHARED)),
        }
        for level in range(2)
        for block in range(BLOCKS)
        for seed in range(seeds)
    ]
    (found,) = marginal_effects(rows, "factor", "loss", ["block"])
    (tested,) = family_of([list(found.by_seed.values())], None).tested
    assert tested is not None, "both levels have every seed"
    assert tested.low is not None, "there are several seeds"
    assert tested.high is not None, "there are several seeds"
    decided = tested.verdict in (Verdict.above, Verdict.below)
    return {
        "false positive": decided if effect == 0 else None,
        "coverage": float(tested.low <= effect <= tested.high),
        "found": None if effect == 0 else tested.verdict is Verdict.above,
    }


def best_of(
    generator: np.random.Generator, levels: int, seeds: int, effect: float
) -> dict[str, Any]:
    """Ask which of several may be the best; the first is, the others are worse by the effect."""
    truth = np.full(levels, effect)
    truth[0] = 0.0
    values = draw_cells(generator, truth, seeds)
    found = compare_with_best([dict(enumerate(row)) for row in values], smaller_is_better=True)
    assert found is not None, "there are several cells and seeds"
    first, *others = (each.may_be_best for each in found[0])
    apart = sum(not each for each in others) / len(others)
    return {"false positive": not first, "found": None if effect == 0 else apart}


def best_of_unlike(
    generator: np.random.Generator, levels: int, seeds: int, ratio: float
) -> dict[str, Any]:
    """Ask the same of cells that are all equal, of which the first varies more or less than the others."""
    deviations = np.ones(levels)
    deviations[0] = ratio
    noise = generator.normal(0, 1, (levels, seeds)) * deviations[:, None]
    values = generator.normal(0, 1, seeds) + noise
    found = compare_with_best([dict(enumerate(row)) for row in values], smaller_is_better=True)
    assert found is not None, "there are several cells and seeds"
    return {"false positive": not found[0][0].may_be_best}


def interactions(
    generator: np.random.Generator, levels: int, seeds: int, effect: float
) -> dict[str, Any]:
    """Ask whether a contrast is the same at every level of another factor; at the last it is larger."""
    truth = np.zeros(levels)
    truth[-1] = effect
    differences = draw_cells(generator, truth, seeds) - draw_cells(
        generator, np.zeros(levels), seeds
    )
    p = interaction_p(differences.T.tolist())
    found = p is not None and p < 0.05
    return {
        "false positive": found if effect == 0 else None,
        "found": None if effect == 0 else found,
    }


def cells(generator: np.random.Generator, seeds: int) -> dict[str, Any]:
    """Take the interval of one cell's mean."""
    interval = mean_interval(list(generator.normal(0, 1, seeds)))
    return {"coverage": float(interval.contains(0.0))}


def over_seeds_and_rows(
    generator: np.random.Generator, seeds: int, rows: int, parts: tuple[float, float, float]
) -> dict[str, Any]:
    """Take the interval of a mean over rows of unlike weight, with deviations of seeds, rows and rest."""
    of_seed, of_row, rest = parts
    values = (
        generator.normal(0, of_seed, (seeds, 1))
        + generator.normal(0, of_row, rows)
        + generator.normal(0, rest, (seeds, rows))
    )
    weights = generator.integers(1, 6, rows)
    found = crossed(_scores(values * weights, weights))
    assert found is not None, "there are several seeds and rows"
    alone = mean_interval((values @ weights / weights.sum()).tolist())
    return {
        "coverage": float(found.interval().contains(0.0)),
        "coverage of seeds alone": float(alone.contains(0.0)),
    }


def share_over_seeds_and_rows(
    generator: np.random.Generator, seeds: int, rows: int, parts: tuple[float, float, float]
) -> dict[str, Any]:
    """Take the interval of a share of right answers; log-odds of a middle, and parts of seeds and rows."""
    middle, of_seed, of_row = parts
    chance = _logistic(
        middle + generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, of_row, rows)
    )
    right = (generator.random((seeds, rows)) < chance).astype(float)
    found = crossed(_scores(right, np.ones(rows, dtype=int)))
    assert found is not None, "there are several seeds and rows"
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    truth = _logistic(middle + math.hypot(of_seed, of_row) * nodes) @ weights / weights.sum()
    alone = mean_interval(right.mean(1).tolist())
    return {
        "coverage": float(found.share_interval().contains(float(truth))),
        "coverage of seeds alone": float(alone.contains(float(truth))),
    }


def _logistic(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def _scores(sums_SR: np.ndarray, weights_R: np.ndarray) -> list[RowScores]:
    rows, weights = tuple(range(len(weights_R))), tuple(weights_R.tolist())
    return [RowScores(rows=rows, sums=tuple(each), weights=weights) for each in sums_SR.tolist()]


Case = tuple[str, Callable[[np.random.Generator], dict[str, Any]]]


def all_cases() -> list[Case]:
    """Return every simulated design with its name."""
    found: list[Case] = []
    for seeds in (3, 5, 6, 8):
        found.append((f"mean of a cell, {seeds} seeds", lambda g, s=seeds: cells(g, s)))
        for effect in (0.0, 1.0, 2.0):
            of = f"{effect:g} sd, {seeds} seeds"
            found += [
                (f"1 contrast, {of}", lambda g, s=seeds, e=effect: contrasts(g, 2, s, e)),
                (f"4 contrasts, {of}", lambda g, s=seeds, e=effect: contrasts(g, 5, s, e)),
                (
                    f"effects table, {BLOCKS} blocks, {of}",
                    lambda g, s=seeds, e=effect: effects(g, s, e),
                ),
                (f"best of 8, {of}", lambda g, s=seeds, e=effect: best_of(g, 8, s, e)),
                (f"interaction of 4, {of}", lambda g, s=seeds, e=effect: interactions(g, 4, s, e)),
            ]
        for ratio in (1 / 3, 3.0):
            name = f"best of 8 unlike ({ratio:.2g}), {seeds} seeds"
            found.append((name, lambda g, s=seeds, r=ratio: best_of_unlike(g, 8, s, r)))
        for parts in ((0.1, 0.5, 1.0), (0.3, 1.0, 0.5), (0.0, 1.0, 0.3), (0.3, 0.0, 1.0)):
            name = f"mean, {seeds} seeds x 100 rows, {parts}"
            found.append((name, lambda g, s=seeds, p=parts: over_seeds_and_rows(g, s, 100, p)))
        for parts in ((0.0, 0.2, 2.0), (3.0, 0.3, 2.0), (5.0, 0.5, 2.0), (0.0, 0.5, 1.0)):
            name = f"share, {seeds} seeds x 100 rows, {parts}"
            found.append(
                (name, lambda g, s=seeds, p=parts: share_over_seeds_and_rows(g, s, 100, p))
            )
    return found


def shares_of(outcomes: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return each outcome's share over the tables with its standard error."""
    found = {}
    for key in outcomes[0]:
        values = [float(each[key]) for each in outcomes if each[key] is not None]
        if values:
            share = math.fsum(values) / len(values)
            found[key] = (share, float(np.std(values)) / math.sqrt(len(values)))
    return found


def main() -> None:
    """Simulate, print a line for each design, and write the results."""
    parser = argparse.ArgumentParser(
        description="The report's tests on sweeps whose truth is known."
    )
    parser.add_argument("--tables", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    results = {}
    for index, (name, simulate) in enumerate(all_cases()):
        generator = np.random.default_rng((given.seed, index))
        results[name] = shares_of([simulate(generator) for _ in range(given.tables)])
        told = ", ".join(
            f"{key} {100 * share:.1f} ± {100 * error:.1f} %"
            for key, (share, error) in results[name].items()
        )
        print(f"{name:42} {told}", flush=True)
    tree = {"tables": given.tables, "seed": given.seed, "margin": MARGIN, "results": results}
    write_text(RESULTS, json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
