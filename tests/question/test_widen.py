"""A sweep that is asked for more: trials, a value on an axis, an end further out; and what holds what."""

from dataclasses import replace

import pytest

from harness.errors import RequestError
from harness.question.axes import CaseAxis, ChoiceAxis, Condition, NumberAxis
from harness.question.points import Space
from harness.question.question import Question
from harness.question.settings import Transfer
from harness.question.widen import can_grow_to, contains, with_trials, with_value
from tests.question.asking import ask


@pytest.mark.parametrize(
    ("axis", "before", "value", "after"),
    [
        ("lora.rank", "choice(2, 8)", "4", "choice(2, 4, 8)"),
        ("lora.rank", "choice(8, 2)", "4", "choice(8, 2, 4)"),
        ("quant", "choice(nf4, int4)", "fp4", "choice(nf4, int4, fp4)"),
        ("optim.lr", "choice(1e-3, 1e-2)", "3e-2", "choice(0.001, 0.01, 0.03)"),
        ("optim.lr", "tag(log, interval(1e-3, 1e-2))", "0.1", "tag(log, interval(0.001, 0.1))"),
        ("lora.rank", "range(2, 9, 2)", "12", "range(2, 14, 2)"),
        ("lora.rank", "range(4, 9, 2)", "2", "range(2, 10, 2)"),
        ("lora.dropout", "range(0.0, 0.3, 0.1)", "0.3", "range(0.0, 0.4, 0.1)"),
        ("lora.rank", "int(interval(4, 8))", "16", "int(interval(4, 16))"),
        ("optim.lr", "interval(1e-3, 1e-2)", "1e-4", "interval(0.0001, 0.01)"),
    ],
)
def test_a_value_more_has_its_place_on_the_axis(tmp_path, axis, before, value, after):
    search = {"method": "random", "trials": 4}
    question = ask(tmp_path, space={axis: before}, search=search)
    wider = with_value(question, axis, value)
    assert wider.space.axes[0].described == f"{axis}: {after}"
    assert contains(wider.space, question.space)
    assert not contains(question.space, wider.space)
    assert with_value(wider, axis, value) == wider


@pytest.mark.parametrize(
    ("axis", "value", "words"),
    [
        ("lora.rnk", "4", "no axis of this sweep; near names: lora.rank"),
        ("quant", "nf5", "quant=nf5 is no option of quant; near names: nf4"),
        ("lora.rank", "four", "must be a whole number"),
        ("layers", "mlp", "layers has cases, which name several keys each"),
        ("optim.lr", "-1", "a logarithm needs numbers above 0"),
        ("optim.lr", "0", "a logarithm needs numbers above 0"),
        ("optim.lr", "high", "optim.lr=high is not a number"),
        ("optim.steps", "11.5", "is no whole number"),
        ("optim.batch_size", "5", "is on no step of it"),
        ("optim.batch_size", "7", "is on no step of it"),
    ],
)
def test_what_an_axis_cannot_have_is_refused_in_words(tmp_path, axis, value, words):
    space = {
        "lora.rank": "choice(2, 8)",
        "quant": "choice(nf4, int4)",
        "layers": {"cases": {"qv": ["lora=qv"], "all": ["lora=all_linear"]}},
        "optim.lr": "tag(log, interval(1e-3, 1e-2))",
        "optim.steps": "int(interval(5, 9))",
        "optim.batch_size": "range(4, 9, 2)",
    }
    question = ask(
        tmp_path, base=["data=rule"], space=space, search={"method": "random", "trials": 4}
    )
    with pytest.raises(RequestError) as refused:
        with_value(question, axis, value)
    assert words in str(refused.value)


def test_a_grid_whose_rates_are_transferred_does_not_grow(tmp_path):
    space = {"lora.rank": "choice(1, 2, 4)", "optim.lr": "choice(1e-3, 2e-3, 4e-3, 8e-3, 16e-3)"}
    question = ask(tmp_path, space=space, search={"transfer": "lr"})
    with pytest.raises(RequestError, match="the space cannot grow"):
        with_value(question, "lora.rank", "8")
    wider = replace(question, space=with_value(replace_transfer(question), "lora.rank", "8").space)
    assert not can_grow_to(wider, question.space)
    assert can_grow_to(replace_transfer(wider), question.space)


def replace_transfer(question: Question) -> Question:
    return replace(question, search=replace(question.search, transfer=Transfer.none))


def test_a_grid_has_all_trials_and_a_search_gets_more(tmp_path):
    with pytest.raises(RequestError, match="every point of its space already"):
        with_trials(ask(tmp_path), 9)
    search = {"method": "random", "trials": 4}
    question = ask(tmp_path, search=search)
    assert with_trials(question, 9).search.trials == 9
    assert with_trials(question, 2).search.trials == 4


def test_what_a_sweep_can_have_of_trials_ends_where_it_says(tmp_path):
    question = ask(tmp_path, search={"method": "random", "trials": 1})
    assert with_trials(question, 1_000_000).search.trials == 1_000_000
    for trials in (0, -1, 1_000_001):
        with pytest.raises(RequestError, match="must be from 1 to 1,000,000"):
            with_trials(question, trials)


@pytest.mark.parametrize("value", ["2", "8", "4"])
def test_a_value_that_an_axis_has_changes_nothing(tmp_path, value):
    search = {"method": "random", "trials": 4}
    for values in ("choice(2, 4, 8)", "range(2, 9, 2)", "int(interval(2, 8))"):
        question = ask(tmp_path, space={"lora.rank": values}, search=search)
        assert with_value(question, "lora.rank", f" {value} ") is question


NUMBERS = NumberAxis("x", 2.0, 8.0, step=2.0, integer=True)
CASES = CaseAxis("x", {"a": ("lora=qv",), "b": ("lora=mlp",)})


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (NUMBERS, NUMBERS, True),
        (replace(NUMBERS, low=0.0), NUMBERS, True),
        (replace(NUMBERS, high=10.0), NUMBERS, True),
        (replace(NUMBERS, low=4.0), NUMBERS, False),
        (replace(NUMBERS, high=6.0), NUMBERS, False),
        (replace(NUMBERS, low=1.0, high=9.0), NUMBERS, False),  # 2, 4, 6 are not among 1, 3, 5
        (replace(NUMBERS, step=1.0), NUMBERS, False),
        (replace(NUMBERS, step=None), replace(NUMBERS, step=None), True),
        (replace(NUMBERS, step=None, low=1.0), replace(NUMBERS, step=None, log=True), False),
        (replace(NUMBERS, integer=False), NUMBERS, False),
        (replace(NUMBERS, key="y"), NUMBERS, False),
        (replace(NUMBERS, condition=Condition("y", frozenset("a"))), NUMBERS, False),
        (ChoiceAxis("x", ("2", "8")), NUMBERS, False),
        (ChoiceAxis("x", ("2", "8")), ChoiceAxis("x", ("8",)), True),
        (ChoiceAxis("x", ("2",)), ChoiceAxis("x", ("8", "2")), False),
        (CASES, CaseAxis("x", {"b": ("lora=mlp",)}), True),
        (CASES, CaseAxis("x", {"b": ("lora=qv",)}), False),
    ],
)
def test_a_wider_space_has_every_point_of_the_earlier(now, before, expected):
    other = ChoiceAxis("z", ("1",))
    assert contains(Space((now, other)), Space((before, other))) is expected
    assert not contains(Space((now, other)), Space((before,)))
    assert not contains(Space((now,)), Space((before, other)))
