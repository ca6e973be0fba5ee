"""Replayed searches train what a search would have trained, and find what its curves say."""

import pytest
import yaml

from bench.replay import Grid, cell_of, replay
from harness.question.question import load_question

STEPS, EVERY, SLOTS = 60, 10, 8
RANKS, RATES = (2, 4, 8, 16), ("0.001", "0.002", "0.004", "0.008")
CURVES = {  # the larger the rank and the rate, the better, from the first step to the last
    cell_of({"lora.rank": str(rank), "optim.lr": rate}): {
        step: 1 / (rank * (1 + at)) / step for step in range(5, STEPS + 1, 5)
    }
    for rank in RANKS
    for at, rate in enumerate(RATES)
}
GRID = Grid(CURVES, {}, STEPS)
BEST = cell_of({"lora.rank": "16", "optim.lr": "0.008"})


@pytest.fixture
def search(tmp_path):
    def ask(**settings):
        file = tmp_path / "replayed.yaml"
        question = {
            "question": "Which is best?",
            "base": ["eval=loss", f"optim.steps={STEPS}", f"eval.every_steps={EVERY}"],
            "space": {"lora.rank": "choice(2,4,8,16)", "optim.lr": f"choice({','.join(RATES)})"},
            "search": settings,
            "objective": {"eval/loss": "minimize"},
        }
        file.write_text(yaml.safe_dump(question, sort_keys=False))
        return load_question(str(file), [])

    return ask


def test_a_grid_trains_every_step_of_every_cell_and_finds_the_best(search):
    done = replay(search(method="grid"), GRID, EVERY, SLOTS)
    assert done.steps == STEPS * len(CURVES)
    assert done.best[0] == BEST


def test_a_pruned_grid_finds_the_same_with_fewer_steps_and_ends_runs_at_reports(search):
    done = replay(search(method="grid", pruner="asha"), GRID, EVERY, SLOTS)
    assert done.best[0] == BEST
    assert done.steps < STEPS * len(CURVES)
    assert done.steps == sum(end for end, _ in done.ended.values())
    assert {end % EVERY for end, _ in done.ended.values()} == {0}
    assert any(pruned for _, pruned in done.ended.values())


def test_a_cell_that_is_asked_for_again_is_told_and_not_trained_again(search):
    done = replay(search(method="random", trials=40), GRID, EVERY, SLOTS)
    assert len(done.ended) <= len(CURVES)
    assert done.steps == STEPS * len(done.ended)
