"""What short runs gave before, to the bit: every storage, several processes, a stopped run, a cohort."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.golden import GOLDEN, Numbers, differences, runs, tolerance

GOLDEN_RUNS = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", GOLDEN_RUNS["runs"])
def test_a_run_gives_the_numbers_that_it_gave(name: str, tmp_path: Path) -> None:
    run: Callable[[Path], Numbers] = runs()[name]
    within = tolerance(name, GOLDEN_RUNS["machine"])
    assert not differences(GOLDEN_RUNS["runs"][name], run(tmp_path), within)
