"""AF4, the AbnormalFloat of Yoshida 2023 (arXiv 2306.06965): NF4's idea for the values that blocks have.

A weight divided by its block's absmax is not normal: the larger the block, the larger its maximum and the
nearer to 0 the others. AF4 has for each block size 7 values below 0 with -1 and 8 above it with 1, of least
expected absolute error under that distribution: each of the others is the median of what is rounded to it.
Zero joins them afterwards, as published, so that the cells beside it reach to 0 itself.
"""

import math
from functools import lru_cache

import torch

_NEGATIVE, _POSITIVE = 6, 7
"""Values strictly between -1 and 0, and between 0 and 1."""
_MAXIMA = 801
"""Points at which the largest of a block is integrated over, from 0 to 12 deviations."""


@lru_cache(maxsize=16)
def abnormal_float(block_size: int) -> tuple[float, ...]:
    """Return the 16 values for blocks of so many weights, ascending."""
    below, above = (_half(block_size, count) for count in (_NEGATIVE, _POSITIVE))
    return (-1.0, *(-value for value in reversed(below)), 0.0, *above, 1.0)


class _Scaled:
    """|x| / max |x| of a block of independent normal x, for those that are not the largest.

    Given the largest, m, they are normal and cut off at m; m has the density B P(m)^(B - 1) p(m), where P and
    p are the distribution and the density of one |x|.
    """

    def __init__(self, block_size: int) -> None:
        self.m = torch.linspace(0, 12, _MAXIMA, dtype=torch.float64)[1:]
        inside = torch.erf(self.m / math.sqrt(2))
        density = block_size * inside ** (block_size - 1) * self._density(self.m)
        weight = density * (self.m[1] - self.m[0])
        self._over_inside = weight / weight.sum() / inside

    @staticmethod
    def _density(x: torch.Tensor) -> torch.Tensor:
        return math.sqrt(2 / math.pi) * torch.exp(-x.square() / 2)

    def distribution(self, y: torch.Tensor) -> torch.Tensor:
        """Return the share of values below each y in [0, 1]."""
        return torch.erf(y.unsqueeze(1) * self.m / math.sqrt(2)) @ self._over_inside

    def density(self, y: torch.Tensor) -> torch.Tensor:
        """Return its derivative."""
        return self._density(y.unsqueeze(1) * self.m) @ (self._over_inside * self.m)


def _half(block_size: int, count: int) -> list[float]:
    """Return `count` values between 0 and 1, each the median of its cell; the last borders on that of 1.

    Cells meet midway between values, the first begins at 0. By Newton's method on D(q) = (D(left edge) +
    D(right edge)) / 2, from values that take medians in turn (Lloyd).
    """
    scaled = _Scaled(block_size)
    grid = torch.linspace(0, 1, 1025, dtype=torch.float64)
    shares = scaled.distribution(grid)
    q = torch.linspace(0, 1, count + 2, dtype=torch.float64)[1:]

    def edges() -> torch.Tensor:
        return torch.cat([q.new_zeros(1), (q[1:] + q[:-1]) / 2])

    for _ in range(50):
        at_edges = scaled.distribution(edges())
        wanted = (at_edges[1:] + at_edges[:-1]) / 2
        q[:-1] = grid[torch.searchsorted(shares, wanted)]
    for _ in range(20):
        at_edges = scaled.distribution(edges())
        slopes = scaled.density(edges()) / 4
        slopes[0] = 0  # that edge stays at 0
        miss = scaled.distribution(q[:-1]) - (at_edges[1:] + at_edges[:-1]) / 2
        slope = torch.diag(scaled.density(q[:-1]) - slopes[1:] - slopes[:-1])
        slope -= torch.diag(slopes[1:-1], 1) + torch.diag(slopes[1:-1], -1)
        step = torch.linalg.solve(slope, miss)
        q[:-1] -= step
        if bool(step.abs().max() < 1e-14):
            break
    return q[:-1].tolist()
