"""A search that compares levels: as many trials for each, which learn of their own alone."""

import math
from collections import Counter

import pytest

from harness.question.question import Question
from harness.study.samplers import startup_trials
from harness.study.study import Study
from harness.sweeping.outcome import chosen_for_confirmation, confirmation_seeds
from tests.question.asking import ask

SPACE = {
    "lora.rank": "choice(2, 8)",
    "quant": "choice(nf4, int4)",
    "optim.lr": "tag(log, interval(1e-4, 1e-1))",
}
BEST_RATE = {"2": 5e-2, "8": 5e-4}


def asked(directory, method: str = "tpe", **parts) -> Question:
    parts = {
        "space": SPACE,
        "search": {"method": method, "trials": 48, "seeds": [0, 1]},
        "compare": {"lora.rank": "steps", "per": "quant"},
        "margin": 0.1,
        "confirm": {"top": 1, "seeds": "auto", "at_most": 9},
    } | parts
    return ask(directory, **parts)


def loss(point: dict[str, str]) -> float:
    """Return a loss whose best rate depends on the rank; rank 8 is better at any rate."""
    away = math.log10(float(point["optim.lr"]) / BEST_RATE[point["lora.rank"]])
    return away**2 + (10.0 if point["lora.rank"] == "2" else 0.0)


def searched(question: Question, directory, trials: int) -> Study:
    study = Study.open(
        question, f"sqlite:///{directory / 's.db'}", eval_every_steps=1, total_steps=4
    )
    for number in range(trials):
        trial = study.ask()
        study.note(number, "cell", str(sorted(trial.point.items())))
        study.note(number, "deviation", 0.1)
        study.complete(number, [loss(trial.point)], [])
    return study


@pytest.mark.parametrize("method", ["random", "tpe", "gp", "nsga2"])
def test_every_combination_of_levels_gets_as_many_trials(tmp_path, method):
    study = searched(asked(tmp_path, method), tmp_path, 22)
    counts = Counter((t.point["lora.rank"], t.point["quant"]) for t in study.trials)
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 1
    study.close()


@pytest.mark.parametrize(
    ("trials", "parts", "expected"),
    [
        (48, {}, 4),  # 12 of each level, a third of them
        (24, {}, 3),  # no fewer than three
        (8, {}, 3),
        (119, {}, 9),  # 29 of each
        (400, {}, 10),  # no more than without levels
        (48, {"compare": None}, 10),
    ],
)
def test_a_third_of_a_levels_trials_is_drawn_at_random(tmp_path, trials, parts, expected):
    search = {"method": "tpe", "trials": trials, "seeds": [0]}
    parts = {"confirm": {"top": 1, "seeds": [7]}} | parts
    assert startup_trials(asked(tmp_path, search=search, **parts)) == expected


def test_each_level_is_tuned_for_itself_though_another_is_better(tmp_path):
    search = {"method": "tpe", "trials": 120, "seeds": [0, 1]}
    study = searched(asked(tmp_path, search=search), tmp_path, 120)
    late = study.trials[60:]
    for rank, rate in BEST_RATE.items():
        near = [t for t in late if t.point["lora.rank"] == rank and loss(t.point) % 10 < 0.25]
        of_rank = [t for t in late if t.point["lora.rank"] == rank]
        assert len(near) / len(of_rank) > 0.5, f"rates of rank {rank} do not come near {rate}"
    study.close()


def test_the_best_of_each_level_is_confirmed_and_stands_for_it(tmp_path):
    question = asked(tmp_path)
    study = searched(question, tmp_path, 24)
    chosen = chosen_for_confirmation(study, question)
    assert [each.compared for each in chosen] == [
        [{"lora.rank": rank, "quant": quant}] for rank in ("2", "8") for quant in ("nf4", "int4")
    ]
    for each in chosen:
        (levels,) = each.compared
        rivals = [t for t in study.trials if levels.items() <= t.point.items()]
        assert loss(each.trial.point) == min(loss(t.point) for t in rivals)
    assert confirmation_seeds(question, chosen) == tuple(range(10, 19)), (
        "the margin is one deviation"
    )
    wide = asked(tmp_path, margin=0.5)
    assert len(confirmation_seeds(wide, chosen)) == 3
    study.close()


def test_a_pruner_compares_within_a_level(tmp_path):
    question = asked(
        tmp_path, search={"method": "random", "trials": 24, "pruner": "median", "seeds": [0, 1]}
    )
    url = f"sqlite:///{tmp_path / 's.db'}"
    study = Study.open(question, url, eval_every_steps=1, total_steps=4)
    for number in range(24):
        rank = study.ask().point["lora.rank"]
        assert not study.report(number, 1, 10.0 if rank == "2" else 1.0), "equal to its own level"
        study.complete(number, [10.0 if rank == "2" else 1.0], [])
    study.close()
