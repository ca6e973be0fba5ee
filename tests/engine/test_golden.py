"""What short runs gave before, to the bit: every storage, several processes, a stopped run, a cohort."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.golden import GOLDEN, Numbers, differences, runs, tolerance

GOLDEN_RUNS = json.loads(GOLDEN.read_text())


REPEATED = ("fp4_dq", "int4_dq", "int4_asym", "int4 sharded", "int4 cohort of eight")
"""Whose parts others have, too: `make test-slow` runs them."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in REPEATED else [])
        for name in GOLDEN_RUNS["runs"]
    ],
)
def test_a_run_gives_the_numbers_that_it_gave(name: str, tmp_path: Path) -> None:
    run: Callable[[Path], Numbers] = runs()[name]
    within = tolerance(name, GOLDEN_RUNS["machine"])
    assert not differences(GOLDEN_RUNS["runs"][name], run(tmp_path), within)
