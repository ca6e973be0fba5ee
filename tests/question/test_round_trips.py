"""What is spelled reads as it was; a space has the points that its conditions allow; files read back."""

from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.question.axes import ChoiceAxis, Condition
from harness.question.load import question_of, question_text
from harness.question.points import Space
from harness.question.question import comparable
from harness.question.values import from_text, spelled
from tests.question import asking

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
)
plain_texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12)


@given(value=scalars | st.lists(scalars, max_size=4))
def test_a_value_is_read_as_it_was_spelled(value: Any) -> None:
    assert from_text(spelled(value)) == value


@given(text=plain_texts)
def test_a_text_is_read_as_itself_or_as_the_value_that_it_spells(text: str) -> None:
    read = from_text(spelled(text))
    assert read == text or read == from_text(text)  # `8` reads as a number without its quotes


def by_hand(space: Space) -> list[dict[str, str]]:
    """Return the points of a space: of all combinations those values that some condition allows, once."""
    found: list[dict[str, str]] = []
    for values in product(*(axis.choices or () for axis in space.axes)):
        point: dict[str, str] = {}
        for axis, value in zip(space.axes, values, strict=True):
            condition = axis.condition
            if condition is None or point.get(condition.key) in condition.values:
                point[axis.key] = value
        if point not in found:
            found.append(point)
    return found


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Choices of up to three values; a later axis may depend on an earlier one, which may depend, too."""
    axes: list[ChoiceAxis] = []
    for index in range(draw(st.integers(1, 4))):
        values = tuple(f"v{n}" for n in range(draw(st.integers(1, 3))))
        condition = None
        if axes and draw(st.booleans()):
            on = draw(st.sampled_from(axes))
            some = draw(st.sets(st.sampled_from(on.values), min_size=1))
            condition = Condition(key=on.key, values=frozenset(some))
        axes.append(ChoiceAxis(key=f"a.k{index}", values=values, condition=condition))
    return Space(tuple(axes))


@given(space=spaces())
def test_the_points_of_a_space_are_those_that_its_conditions_allow(space: Space) -> None:
    points = list(space.points())
    assert points == by_hand(space)
    assert space.num_points == len(points)
    for point in points:
        space.check_point(point)
        assert space.overrides(point) == [f"{key}={value}" for key, value in point.items()]


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    """Parts of a question's file: two axes, one of them under a condition, a search, and words."""
    ranks = draw(st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True))
    quants = draw(
        st.lists(
            st.sampled_from(["nf4", "fp4", "int4", "none"]), min_size=1, max_size=3, unique=True
        )
    )
    rates = (
        f"interval({draw(st.sampled_from(['1e-5', '0.0001']))}, {draw(st.floats(1e-3, 1e-1))!r})"
    )
    space: dict[str, Any] = {
        "quant": f"choice({', '.join(quants)})",
        "lora.rank": f"choice({', '.join(map(str, ranks))})",
    }
    if draw(st.booleans()):
        space["lora.dropout"] = {"values": "choice(0.0, 0.1)", "when": {"quant": quants[:1]}}
    search: dict[str, Any] = {"method": "grid"}
    if draw(st.booleans()):
        space["optim.lr"] = f"tag(log, {rates})"
        search = {"method": "random", "trials": draw(st.integers(1, 50))}
    words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
    return {"space": space, "search": search, "expect": draw(words), "question": draw(words)}


@given(given_parts=parts())
def test_a_question_comes_back_from_its_own_file(
    tmp_path_factory: Any, given_parts: dict[str, Any]
) -> None:
    question = asking.ask(Path(tmp_path_factory.getbasetemp()), **given_parts)
    again = question_of(yaml.safe_load(question_text(question)), question.name, [])
    assert again == question
    assert comparable(again) == comparable(question)
    assert question.expect == given_parts["expect"]
    assert question.space.num_points == again.space.num_points
