"""How tokens are drawn: from the share that is kept, at the temperature, by seed and number alone."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from harness.evals.decoding import Sampling

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0])


def shares(temperature: float, kept: list[int]) -> np.ndarray:
    """Return the probabilities of the kept tokens, by hand."""
    found = np.exp(LOGITS.numpy().astype(float) / temperature)
    found[[n for n in range(len(found)) if n not in kept]] = 0
    return found / found.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    [
        (1.0, 1.0, [0, 1, 2, 3]),
        (2.5, 1.0, [0, 1, 2, 3]),
        (1.0, 0.5, [1]),  # 0.61 of the probability
        (1.0, 0.65, [1, 3]),  # 0.61 and 0.22
        (1.0, 0.85, [0, 1, 3]),
        (0.5, 0.9, [1, 3]),
        (1.0, 1e-9, [1]),
    ],
)
def test_draws_have_the_frequencies_of_what_is_kept(temperature, top_p, kept) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(1)
    drawn = np.bincount([sampling.draw(LOGITS, generator) for _ in range(800)], minlength=4)
    expected = shares(temperature, kept)
    assert set(np.flatnonzero(drawn)) == set(kept)
    if len(kept) > 1:
        found = stats.chisquare(drawn[kept], 800 * expected[kept])
        assert found.pvalue > 0.01  # pyright: ignore[reportAttributeAccessIssue]


def test_an_answer_depends_on_the_seed_and_its_number_alone() -> None:
    """Runs of a version draw what they drew: 63 bits of a hash of both."""
    for seed, number in ((0, 0), (7, 0), (0, 7), (2**40, 123)):
        digest = hashlib.sha256(f"answer/{seed}/{number}".encode()).hexdigest()
        expected = int(digest[:16], 16) // 2
        sampling = Sampling(temperature=1.0, seed=seed)
        assert sampling.generator(number).initial_seed() == expected
    assert Sampling(temperature=1.0) == Sampling(temperature=1.0, top_p=1.0, seed=0)
    assert Sampling(temperature=1.0, seed=7).generator(0).initial_seed() != (
        Sampling(temperature=1.0, seed=0).generator(7).initial_seed()
    )
