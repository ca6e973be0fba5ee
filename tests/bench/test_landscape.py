"""A modelled landscape gives recorded runs back, knows points between them, and can be searched."""

import math
import random

import pytest
import torch
import yaml

from bench.landscape import ROUGHNESS, Curves
from bench.replay import Cell, Grid, cell_of, replay
from harness.question.points import Point
from harness.question.question import Question, load_question

STEPS = (20, 40, 60)


def loss(point: Point, step: int) -> float:
    """Return a valley along rank times rate, deeper for one target set, that opens with the steps."""
    product = math.log(float(point["lora.rank"])) + math.log(float(point["optim.lr"]) / 1e-2)
    return (3 if point["lora"] == "qv" else 1) * math.exp(0.5 * (product - 1) ** 2) / step


@pytest.fixture(scope="module")
def question(tmp_path_factory) -> Question:
    file = tmp_path_factory.mktemp("landscape") / "valley.yaml"
    tree = {
        "question": "Where is it lowest?",
        "base": ["eval=loss", "optim.steps=60", "eval.every_steps=20"],
        "space": {
            "lora": "choice(qv, all_linear)",
            "lora.rank": "tag(log, int(interval(1, 32)))",
            "optim.lr": "tag(log, interval(1e-3, 3e-2))",
        },
        "search": {"method": "tpe", "trials": 24, "pruner": "asha"},
        "objective": {"eval/loss": "minimize"},
    }
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_question(str(file), [])


def drawn(count: int, seed: int) -> list[Point]:
    chance = random.Random(seed)
    return [
        {
            "lora": chance.choice(["qv", "all_linear"]),
            "lora.rank": str(round(math.exp(chance.uniform(0, math.log(32))))),
            "optim.lr": f"{math.exp(chance.uniform(math.log(1e-3), math.log(3e-2))):.4g}",
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def curves(question) -> Curves:
    known: dict[Cell, dict[int, float]] = {
        cell_of(point): {step: loss(point, step) for step in STEPS} for point in drawn(80, seed=0)
    }
    with torch.random.fork_rng():
        return Curves(question.space.axes, known)


def test_points_that_were_not_recorded_are_known_within_a_tenth(curves):
    errors = [
        math.log(curves.expected(cell_of(point)) / loss(point, STEPS[-1]))
        for point in drawn(60, seed=1)
    ]
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.1


def test_a_curve_is_rough_by_a_recorded_residual_and_the_same_every_time(curves):
    cell = cell_of(drawn(1, seed=2)[0])
    first = dict(curves[cell])
    del curves[cell]
    assert curves[cell] == first
    assert list(first) == list(STEPS)
    roughness = math.log(first[STEPS[-1]] / curves.expected(cell)) / ROUGHNESS
    assert (curves.residuals[:, -1] - roughness).abs().min() < 1e-9


def test_a_search_on_it_finds_the_valley(question, curves):
    done = replay(question, Grid(curves, {}, STEPS[-1]), 20, 6)
    best = min(loss(point, STEPS[-1]) for point in drawn(300, seed=3))
    assert loss(dict(done.best[0]), STEPS[-1]) < 1.5 * best
    assert done.steps < 24 * STEPS[-1]
