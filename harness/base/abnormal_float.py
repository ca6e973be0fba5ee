"""AF4, the AbnormalFloat of Yoshida 2023 (arXiv 2306.06965): NF4's idea for the values that blocks have.

A weight divided by its block's absmax is not normal: the larger the block, the larger its maximum and the
nearer to 0 the others. AF4 has for each block size 7 values below 0 with -1 and 8 above it with 1, of least
expected absolute error under that distribution: each of the others is the median of what is rounded to it.
Zero joins them afterwards, as published, so that the cells beside it reach to 0 itself.
"""

import math
from functools import lru_cache
from typing import Any

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

    Given the largest, m, they are normal and cut off at m; m has a density like P(m)^(B - 1) exp(-m²/2),
    where P is the distribution of one |x|.
    """

    def __init__(self, block_size: int) -> None:
        self._m = torch.linspace(0, 12, _MAXIMA, dtype=torch.float64)[1:]
        inside = torch.erf(self._m / math.sqrt(2))
        weight = inside ** (block_size - 1) * torch.exp(-self._m.square() / 2)
        self._over_inside = weight / weight.sum() / inside

    def distribution(self, y: torch.Tensor) -> torch.Tensor:
        """Return the share of values below each y in [0, 1]."""
        return torch.erf(y.unsqueeze(1) * self._m / math.sqrt(2)) @ self._over_inside


def _half(block_size: int, count: int) -> list[float]:
    """Return `count` values between 0 and 1, each the median of its cell; the last borders on that of 1.

    Cells meet midway between values, the first begins at 0. Solves D(q) = (D(left edge) + D(right edge)) / 2,
    from values that take medians in turn (Lloyd).
    """
    from scipy.optimize import root

    scaled = _Scaled(block_size)
    grid = torch.linspace(0, 1, 1025, dtype=torch.float64)
    shares = scaled.distribution(grid)
    ends = grid[[0, -1]]

    def middles(q: torch.Tensor) -> torch.Tensor:
        edges = torch.cat([ends[:1], (q + torch.cat([q[1:], ends[1:]])) / 2])
        at_edges = scaled.distribution(edges)
        return (at_edges[1:] + at_edges[:-1]) / 2

    def miss(values: Any) -> Any:
        q = torch.from_numpy(values)
        return (scaled.distribution(q) - middles(q)).numpy()

    q = torch.linspace(0, 1, count + 2, dtype=torch.float64)[1:-1]
    for _ in range(50):
        q = grid[torch.searchsorted(shares, middles(q))]
    return root(miss, q.numpy(), tol=1e-14).x.tolist()
