"""Parts of a question that go together and those that do not: at the last value that may be given."""

import pytest

from harness.errors import RequestError
from harness.question.coherence import with_evaluations
from harness.question.points import Space
from harness.question.settings import PrunerName, SearchSettings
from tests.question.asking import QUICK, ask, refusal

RANDOM = {"method": "random", "trials": 5}
STEPS = "tag(log, interval(1e-4, 1e-2))"


def numbers(count: int, start: int = 1) -> str:
    return f"range({start}, {start + count})"


def test_a_grid_and_the_pairs_of_a_search_have_so_many_points_at_most(tmp_path):
    grid = {"lora.rank": numbers(200), "optim.batch_size": numbers(100)}
    assert ask(tmp_path, space=grid).space.num_points == 20_000
    more = {"lora.rank": numbers(201), "optim.batch_size": numbers(100)}
    text = refusal(tmp_path, space=more)
    assert "a grid of up to 20,100 points (lora.rank 201 x optim.batch_size 100)" in text
    assert ask(tmp_path, space={"lora.rank": numbers(10_000)}).space.num_points == 10_000
    # A long range stands for its two ends, and a choice for each of its values.
    pairs = {
        "lora.rank": f"choice({', '.join(map(str, range(1, 201)))})",
        "optim.batch_size": f"choice({', '.join(map(str, range(1, 101)))})",
    }
    assert ask(tmp_path, space=pairs, search=RANDOM).space.num_points == 20_000
    text = refusal(tmp_path, space=pairs | {"lora.dropout": "choice(0.0)"}, search=RANDOM)
    assert "20,300 pairs of values of two axes would be checked" in text  # and 200 + 100
    assert ask(tmp_path, space=more | {"optim.lr": STEPS}, search=RANDOM)


def test_runs_are_trials_times_seeds(tmp_path):
    search = {"method": "random", "trials": 500_000, "seeds": [0, 1]}
    assert ask(tmp_path, search=search).search.trials == 500_000
    text = refusal(tmp_path, search=search | {"trials": 500_001})
    assert "1,000,002 runs of search.trials and search.seeds are more than 1,000,000" in text


@pytest.mark.parametrize(
    ("steps", "every"), [(100, 10), (109, 10), (110, 11), (10, 1), (9, 1), (1, 1)]
)
def test_a_pruner_judges_ten_times_in_a_run(steps: int, every: int) -> None:
    base = ["data=rule", f"optim.steps={steps}"]
    search = SearchSettings(pruner=PrunerName.asha)
    assert with_evaluations(base, Space(()), search, "") == [*base, f"eval.every_steps={every}"]
    assert with_evaluations(base, Space(()), SearchSettings(), "") == base
    given = [*base, "eval.every_steps=3"]
    assert with_evaluations(given, Space(()), search, "") == given


def test_without_a_number_of_steps_evaluations_have_to_be_given() -> None:
    search = SearchSettings(pruner=PrunerName.median)
    with pytest.raises(RequestError, match=r"with optim\.epochs it is not known here"):
        with_evaluations(["data=rule", "optim.epochs=2", "optim.steps=null"], Space(()), search, "")
    with pytest.raises(RequestError, match=r"eval\.every_epochs counts epochs"):
        with_evaluations(["data=rule", "eval.every_epochs=1"], Space(()), search, "")


def test_steps_that_are_an_axis_are_not_known_beforehand(tmp_path):
    search = {"method": "grid", "pruner": "asha"}
    text = refusal(
        tmp_path, base=["data=rule"], space={"optim.steps": "choice(8, 16)"}, search=search
    )
    assert "an axis over optim.steps it is not known here" in text
    every = ["data=rule", "eval.every_steps=4"]
    assert ask(tmp_path, base=every, space={"optim.steps": "choice(8, 16)"}, search=search)


@pytest.mark.parametrize(
    ("space", "works"),
    [
        ({"optim.lr": STEPS}, True),
        ({"lora.rank": "int(interval(2, 8))", "quant": "nf4,int4"}, True),
        ({"quant": "nf4,int4", "optim.lr": {"values": STEPS, "when": {"quant": "nf4"}}}, False),
    ],
)
def test_cma_es_needs_a_number_that_is_at_every_point(tmp_path, space, works):
    search = {"method": "cmaes", "trials": 5}
    if works:
        assert ask(tmp_path, space=space, search=search)
    else:
        assert "no interval or range that is there at every point" in refusal(
            tmp_path, space=space, search=search
        )


def test_rates_are_transferred_from_two_ranks_to_more_and_of_more_than_three_rates(tmp_path):
    search = {"transfer": "lr"}
    space = {"lora.rank": "choice(2, 4, 8)", "optim.lr": "choice(1e-3, 2e-3, 4e-3, 8e-3)"}
    assert ask(tmp_path, space=space, search=search)
    text = refusal(tmp_path, space=space | {"optim.lr": "choice(1e-3, 2e-3, 4e-3)"}, search=search)
    assert "an axis optim.lr=choice(…) of 4 or more values, and there are 3" in text
    text = refusal(tmp_path, space=space | {"lora.rank": "choice(2, 4)"}, search=search)
    assert "an axis lora.rank=choice(…) of 3 or more values, and there are 2" in text


def test_seeds_that_confirm_are_none_of_the_searchs_and_such_are_suggested(tmp_path):
    text = refusal(tmp_path, search={"seeds": [3, 40]}, confirm={"seeds": [40, 5, 3]})
    assert "has 3, 40 of search.seeds=[3, 40]" in text
    assert text.endswith("take fresh ones, such as [41, 42, 43]")
    assert ask(tmp_path, search={"seeds": [3, 40]}, confirm={"seeds": [4, 39]}).confirm


def test_a_key_in_the_base_holds_where_an_axis_with_a_condition_gives_none(tmp_path):
    conditional = {"quant": "nf4,int4", "lora.rank": {"values": "2,8", "when": {"quant": "nf4"}}}
    assert ask(tmp_path, base=[*QUICK, "lora.rank=4"], space=conditional)
    group = {
        "quant.format": "nf4,none",
        "lora": {"values": "qv,mlp", "when": {"quant.format": "nf4"}},
    }
    text = refusal(tmp_path, base=[*QUICK, "lora=attention"], space=group)
    assert "base and the axis lora both give lora; leave it out of one" in text
