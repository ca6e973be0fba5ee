"""One judge says whether two questions ask the same, whoever compares them."""

from dataclasses import fields

import pytest

from harness.errors import RequestError
from harness.question.load import load_question, question_text
from harness.question.question import Question, comparable, refuse_another
from tests.question.asking import ask

SEARCH = {"method": "tpe", "trials": 4, "starts": [{"lora.rank": 2}]}
SPACE = {"lora.rank": "choice(2, 8)", "quant": "choice(nf4, int4)"}
LIMIT = "constraints={memory/peak_bytes:{at_most:8GiB}}"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def compare(tmp_path, *overrides: str) -> None:
    before = ask(tmp_path, search=SEARCH, space=SPACE)
    now = ask(tmp_path, *overrides, search=SEARCH, space=SPACE)
    refuse_another("the sweep", comparable(before), comparable(now))


@pytest.mark.parametrize(
    "override",
    [
        *("question=Other words?", "expect=Nothing.", "search.trials=6", "search.in_flight=4"),
        *("confirm={top:1,seeds:[10]}", "resources.devices=cpu:2", "resources.cohort=1"),
        *("study.storage=sqlite:////tmp/elsewhere.db", "paths.out=elsewhere", "tracker=wandb"),
        *("resources.device=cpu", "checkpoint.every_seconds=5"),
    ],
)
def test_what_shapes_no_trial_may_change(tmp_path, override):
    compare(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.method=random", "search.method tpe, and now with random"),
        ("search.sampler_seed=1", "search.sampler_seed 0, and now with 1"),
        ("search.pruner=asha", "base nothing more, and now with eval.every_steps="),
        ("search.seeds=[0,1]", "search.seeds nothing more, and now with 1"),
        ("search.starts=[]", 'search.starts {"lora.rank": "2"}, and now with nothing more'),
        ("objective=eval/exact_match", "objective eval/loss: minimize"),
        (LIMIT, "constraints nothing more, and now with memory/peak_bytes: at_most=8589934592"),
        ("lora.rank=choice(2,4,8)", "space lora.rank: choice(2, 8)"),
        ("optim.lr=2e-3", "base nothing more, and now with optim.lr=2e-3"),
    ],
)
def test_what_shapes_a_trial_is_refused_by_its_name_with_both_values(tmp_path, override, words):
    with pytest.raises(RequestError, match="its trials would not be comparable") as refused:
        compare(tmp_path, override)
    assert f"the sweep was asked with {words}" in str(refused.value)


def test_a_question_asks_what_its_own_file_asks(tmp_path):
    asked = ask(tmp_path, LIMIT, "search.pruner=median", search=SEARCH, space=SPACE)
    file = tmp_path / "again.yaml"
    file.write_text(question_text(asked))
    assert comparable(load_question(str(file), [])) == comparable(asked)


def test_every_part_of_a_question_is_in_its_file(tmp_path):
    tree = ask(tmp_path, search=SEARCH, space=SPACE).tree()
    names = [{"objectives": "objective"}.get(each.name, each.name) for each in fields(Question)]
    assert list(tree) == names
