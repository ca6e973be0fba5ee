"""How a processor sums, which decides whether equal numbers have equal bits."""

import functools

import torch
import torch.nn.functional as F


@functools.cache
def rows_are_summed_alike() -> bool:
    """Say whether products of some rows are those of more rows: by MKL's AVX2 kernels on its maker's
    processors they are not."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(96, 64, generator=generator), torch.randn(128, 64, generator=generator)
    whole = F.linear(x, weight)
    return all(torch.equal(F.linear(x[:n].contiguous(), weight), whole[:n]) for n in (16, 24, 48))


def closeness() -> float:
    """Return how far numbers that other rows had no part in may lie apart, relative: 0 is to the bit."""
    return 0.0 if rows_are_summed_alike() else 1e-6
