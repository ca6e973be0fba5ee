"""What so many seeds can show, and how many a margin needs. Pure; SciPy is imported where it is needed.

Seeds pair the runs of two cells, but are not taken to help: the deviation of a difference is sqrt(2) times
that of a cell over its seeds, as if they were independent.
"""

import math

ALPHA = 0.05
POWER = 0.8
FEWEST_SEEDS = 3


def power_of_paired_t(pairs: int, difference: float, alpha: float = ALPHA) -> float:
    """Return how often a two-sided paired t-test finds a difference, given in deviations of a cell's seeds.

    By the noncentral t distribution; 0 for a single pair.
    """
    from scipy.special import nctdtr, stdtrit

    if pairs < 2:
        return 0.0
    freedom = pairs - 1
    critical = stdtrit(freedom, 1 - alpha / 2)
    noncentrality = abs(difference) / math.sqrt(2) * math.sqrt(pairs)
    above = 1 - nctdtr(freedom, noncentrality, critical)
    below = nctdtr(freedom, noncentrality, -critical)
    return float(above + below)


def seeds_for_margin(deviation: float, margin: float, most: int, alpha: float = ALPHA) -> int:
    """Return the fewest seeds with which two equal cells are shown to be equivalent in 8 cases of 10.

    `deviation` is that of a cell over its seeds, `margin` in the same unit. n >= 2 (s/m)^2 (t(1-a) +
    t(1-b/2))^2 with n - 1 degrees of freedom (Julious 2004, Statistics in Medicine 23, eq. 24). At least 3,
    at most `most`.
    """
    from scipy.special import stdtrit

    for seeds in range(FEWEST_SEEDS, most):
        freedom = seeds - 1
        reach = stdtrit(freedom, 1 - alpha) + stdtrit(freedom, 1 - (1 - POWER) / 2)
        if seeds >= 2 * (deviation / margin) ** 2 * reach**2:
            return seeds
    return most


def described_power(pairs: int) -> str:
    """Say what a number of seeds can show, before anything is trained."""
    if pairs < 2:
        return "with 1 seed nothing can be tested: no interval, no p"
    shown = ", ".join(
        f"{size} in {100 * power_of_paired_t(pairs, size):.0f} %" for size in (1, 2, 3)
    )
    return (
        f"with {pairs} seeds a paired t-test finds a difference of so many seed deviations: {shown} (5 % "
        "level, one comparison)"
    )
