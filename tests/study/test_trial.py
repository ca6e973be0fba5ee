"""Axes as Optuna's parameters: which numbers can be drawn, and with how many digits they are kept."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from harness.question.axes import ChoiceAxis, NumberAxis
from harness.study.trial import distribution_of, point_of, rounded, spelled, value_of


def number(low: float, high: float, **what: Any) -> NumberAxis:
    return NumberAxis(key="optim.lr", low=low, high=high, **what)


@given(
    low=st.integers(-20, 20),
    step=st.integers(1, 7),
    count=st.integers(0, 9),
    rest=st.integers(0, 6),
)
def test_a_range_of_whole_numbers_ends_with_its_last_step(
    low: int, step: int, count: int, rest: int
) -> None:
    last = low + count * step
    axis = number(low, last + min(rest, step - 1), step=step, integer=True)
    assert distribution_of(axis) == IntDistribution(low, last, step=step)


def test_whole_numbers_without_a_step_may_be_drawn_by_their_logarithm() -> None:
    assert distribution_of(number(2, 64, integer=True, log=True)) == IntDistribution(
        2, 64, log=True
    )
    assert distribution_of(number(2, 64, integer=True)) == IntDistribution(2, 64)
    stepped = number(2, 64, step=2, integer=True, log=True)
    assert distribution_of(stepped) == IntDistribution(2, 64, step=2), "Optuna has no such range"


@pytest.mark.parametrize(
    ("low", "high", "step", "last"),
    [(0.0, 0.3, 0.1, 0.3), (0.1, 0.75, 0.2, 0.7), (1e-4, 1e-3, 3e-4, 1e-3), (0.0, 0.29, 0.1, 0.2)],
)
def test_a_range_of_numbers_ends_with_its_last_step(low, high, step, last) -> None:
    """0.3 is three steps of 0.1, though in binary it is a little less."""
    found = distribution_of(number(low, high, step=step))
    assert found == FloatDistribution(low, last, step=step)
    axis = number(low, high, step=step)
    for index in range(round((last - low) / step) + 1):
        exact = float(Decimal(repr(low)) + index * Decimal(repr(step)))
        drawn = low + index * step + step * 1e-9
        assert rounded(axis, drawn) == pytest.approx(exact, rel=1e-11)
    assert distribution_of(number(1e-4, 1.0, log=True)) == FloatDistribution(1e-4, 1.0, log=True)


@pytest.mark.parametrize(
    ("low", "high", "drawn", "kept"),
    [
        (0.0, 1.0, 0.123456, 0.1235),
        (1e-5, 1e-1, 0.000123456, 0.0001235),
        (100.0, 900.0, 123.456, 123.5),
        (0.9990, 0.9999, 0.9991234567, 0.9991235),  # the bounds have three digits in common
        (10.0, 11.0, 10.123456, 10.123),  # one digit in common
        (10.0, 20.5, 10.123456, 10.12),
        (-11.0, -10.0, -10.123456, -10.123),
        (0.12, 0.987654, 0.987653, 0.987654),  # never beyond the axis
        (0.12344, 0.12349, 0.123441234, 0.1234412),
        (1e-3, 1e-3, 1e-3, 1e-3),
    ],
)
def test_a_number_keeps_four_digits_and_those_that_its_bounds_have_in_common(
    low: float, high: float, drawn: float, kept: float
) -> None:
    assert rounded(number(low, high), drawn) == kept


def test_other_values_are_kept_as_they_are() -> None:
    assert rounded(number(1, 10**9, integer=True), 123_456_789) == 123_456_789
    assert rounded(ChoiceAxis(key="x", values=("0.123456",)), 0.123456) == 0.123456


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-9, 1e6), share=st.floats(0, 1))
def test_a_kept_number_lies_in_its_axis_and_near_what_was_drawn(
    low: float, width: float, share: float
) -> None:
    high = low + width
    if not low < high:
        return
    drawn = min(low + share * (high - low), high)
    kept = rounded(number(low, high), drawn)
    assert low <= kept <= high
    assert abs(kept - drawn) <= 5.01e-4 * max(abs(low), abs(high))
    assert abs(kept - drawn) <= 1e-2 * (high - low) or high - low > 1e-1 * max(abs(low), abs(high))


def test_choices_are_what_they_say_unless_two_would_be_equal() -> None:
    axis = ChoiceAxis(key="x", values=("8", "1e-3", "true", "false", "word", "inf", "nan"))
    values = [value_of(axis, text) for text in axis.values]
    assert values == [8, 0.001, True, False, "word", "inf", "nan"]
    assert [type(value) for value in values[:4]] == [int, float, bool, bool]
    assert [spelled(axis, value) for value in values] == list(axis.values)
    alike = ChoiceAxis(key="x", values=("1", "true"))
    assert [value_of(alike, text) for text in alike.values] == ["1", "true"]
    assert value_of(number(1, 9, integer=True), "3") == 3
    assert isinstance(value_of(number(1, 9), "3"), float)


def test_a_trial_that_lacks_an_axis_is_no_point() -> None:
    axes = (number(0.0, 1.0), ChoiceAxis(key="x", values=("2", "8")))
    assert point_of(axes, {"optim.lr": 0.5, "x": 8}) == {"optim.lr": "0.5", "x": "8"}
    assert point_of(axes, {"optim.lr": 0.5}) is None
