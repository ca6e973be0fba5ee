"""Objectives, limits and bounds of a question: what each word means, and the last value that may be given."""

from typing import Any

import pytest

from harness.errors import RequestError
from harness.question.goals import BYTE_UNITS, read_constraints, read_objectives
from harness.question.reading import (
    finite_number,
    is_integer,
    read_confirmation,
    read_margin,
    read_resources,
    read_search,
)
from harness.question.settings import Constraint, Objective, SearchSettings
from harness.records.metrics import Direction

IEC, SI = ("KiB", "MiB", "GiB", "TiB"), ("KB", "MB", "GB", "TB")


def test_units_of_bytes_are_the_powers_that_their_names_say() -> None:
    expected = {"B": 1}
    expected |= {unit: 1024 ** (power + 1) for power, unit in enumerate(IEC)}
    expected |= {unit: 1000 ** (power + 1) for power, unit in enumerate(SI)}
    assert expected == BYTE_UNITS


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        ("24GiB", 24 * 2**30),
        (" 1.5e1 MB ", 15e6),
        ("80 B", 80),
        (7, 7),
        ("1e3", 1000),
        ("-2", -2),
        ("2.", 2),
    ],
)
def test_a_limit_is_a_number_or_a_number_of_bytes(given: Any, amount: float) -> None:
    (found,) = read_constraints({"memory/peak_bytes": {"at_most": given}}, "")
    assert found == Constraint(metric="memory/peak_bytes", at_most=amount, at_least=None)


@pytest.mark.parametrize("given", [True, "x", "GiB", "inf", "1e400", "24 gigs", [1]])
def test_anything_else_is_no_limit(given: Any) -> None:
    with pytest.raises(
        RequestError, match=r"at_most=.*must be a finite number, or one with B, KiB"
    ):
        read_constraints({"memory/peak_bytes": {"at_most": given}}, "")
    with pytest.raises(RequestError, match=r"must be a finite number$"):
        read_constraints({"eval/loss": {"at_most": given}}, "")


def test_two_limits_may_meet_and_not_cross() -> None:
    read = read_constraints({"eval/loss": {"at_most": 2, "at_least": 2}}, "")
    assert read == (Constraint(metric="eval/loss", at_most=2, at_least=2),)
    with pytest.raises(RequestError, match=r"nothing is at most 2 and at least 2\.5"):
        read_constraints({"eval/loss": {"at_most": 2, "at_least": 2.5}}, "")
    only = read_constraints({"eval/loss": {"at_least": 0}}, "")
    assert only == (Constraint(metric="eval/loss", at_most=None, at_least=0),)
    assert read_constraints(None, "") == ()


def test_an_objective_has_its_metrics_direction_or_the_one_it_is_given() -> None:
    low = Objective(metric="eval/loss", direction=Direction.minimize)
    high = Objective(metric="eval/exact_match", direction=Direction.maximize)
    assert read_objectives(None, "") == read_objectives("eval/loss", "") == (low,)
    assert read_objectives(["eval/exact_match", "eval/loss"], "") == (high, low)
    assert read_objectives({"eval/loss": "minimize"}, "") == (low,)
    params = {"adapter/trainable_params": "maximize"}
    assert read_objectives(params, "")[0].direction is Direction.maximize
    with pytest.raises(RequestError, match=r"must be a mapping"):
        read_objectives({}, "")
    with pytest.raises(RequestError, match=r"must be a mapping"):
        read_objectives([], "")


@pytest.mark.parametrize("value", [0, 3, -1])
def test_true_is_no_number(value: int) -> None:
    assert is_integer(value)
    assert finite_number(value) == finite_number(str(value)) == value
    assert not is_integer(value + 0.5)
    assert not is_integer(True)
    assert finite_number(True) is None
    assert finite_number("nan") is finite_number("inf") is finite_number(10**400) is None


def test_a_margin_is_above_nothing() -> None:
    assert read_margin("1e-3", "") == 0.001
    assert read_margin(None, "") is None
    for given in (0, -1, "nan", True):
        with pytest.raises(RequestError, match=r"must be a positive number"):
            read_margin(given, "")


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        (
            "devices",
            ["auto", "cpu", "cpu:1", "cpu:999", 0, [0, 7]],
            ["cpu:0", "cpu:1000", [], -1, [-1], True],
        ),
        ("cohort", [1, 2], [0, -1, 1.5, True]),
        ("hang_seconds", [0.001, "1e3", 1_000_000], [0, -1, 1_000_001, "inf"]),
    ],
)
def test_resources_end_where_they_say(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        found = getattr(read_resources({key: value}, ""), key)
        expected: Any = (value,) if key == "devices" and isinstance(value, int) else value
        expected = tuple(expected) if isinstance(expected, list) else expected
        assert found == (float(expected) if key == "hang_seconds" else expected)
    for value in bad:
        with pytest.raises(RequestError, match=rf"resources\.{key}="):
            read_resources({key: value}, "")


def test_seeds_lie_between_0_and_the_largest_and_are_at_most_ten_thousand() -> None:
    largest = 2**53 - 1  # what JSON and every database keep exactly
    for seeds in ([0], [largest], list(range(10_000))):
        assert read_search({"seeds": seeds}, "").seeds == tuple(seeds)
    assert read_search({"seeds": 3}, "").seeds == (3,)
    for seeds in ([-1], [largest + 1], [1, 1], [], [0.5], list(range(10_001))):
        with pytest.raises(RequestError, match=r"search\.seeds"):
            read_search({"seeds": seeds}, "")


def test_a_reduction_factor_belongs_to_the_pruners_that_halve() -> None:
    for pruner in ("asha", "hyperband"):
        assert read_search({"pruner": pruner, "reduction_factor": 2}, "").reduction_factor == 2
    for pruner in ("median", "none"):
        with pytest.raises(RequestError, match="would be ignored by"):
            read_search({"pruner": pruner, "reduction_factor": 2}, "")


def test_fresh_seeds_begin_after_those_of_the_search_and_at_10_at_least() -> None:
    def fresh(seeds: tuple[int, ...], **given: Any) -> tuple[int, ...]:
        search = SearchSettings(seeds=seeds)
        found = read_confirmation({"seeds": "auto", **given}, search, 0.1, "")
        assert found is not None
        return found.seeds

    assert fresh((0, 1)) == tuple(range(10, 22))
    assert fresh((3, 40)) == tuple(range(41, 53))
    assert fresh((0, 1), at_most=3) == (10, 11, 12)
    assert len(fresh((0, 1), at_most=1000)) == 1000
    for most in (2, 1001):
        with pytest.raises(RequestError, match=r"at least 3, at most 1,000"):
            fresh((0, 1), at_most=most)
    with pytest.raises(RequestError, match="two or more"):
        fresh((0,))
