"""Patterns of layers: those that end soon are taken, those that may not are refused unmatched."""

import re

import pytest

from harness.config.compose import compose_run
from harness.config.lora import may_match_for_ever
from harness.config.validate import validate
from harness.errors import RequestError

NAMES = [f"model.layers.{n}.{part}_proj" for n in range(40) for part in ("self_attn.q", "mlp.up")]


@pytest.mark.parametrize(
    "pattern",
    [
        *("q_proj", r".*\.0\.mlp\.up_proj", r"layers\.[0-9]+\..*q_proj", r"(q_proj|v_proj)"),
        *(
            r"layers\.([0-4]|1[0-9])\.mlp.*",
            r"(mlp\.)?up_proj",
            r"(?<!self_)attn.*",
            r"\w{1,3}_proj",
        ),
    ],
)
def test_usual_patterns_are_taken(pattern: str) -> None:
    assert not may_match_for_ever(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"((\w+\.?)+)+X", r"(a+)+$", r"(a|a)*b", r"(\w*?\.)*X", r"(?:\w{1,30}){1,30}X"),
        *(r".*.*.*.*X", r"(?=(\w+)+X).*", r"(a?a?)*X", r"(?>(\w+)+)X"),
    ],
)
def test_patterns_that_may_not_end_are_refused(pattern: str) -> None:
    assert may_match_for_ever(pattern)
    config = compose_run([])
    config.lora.rank_pattern = {pattern: 2}
    with pytest.raises(RequestError, match="for ever"):
        validate(config)


@pytest.mark.parametrize("pattern", [r".*.*.*X", r"\w+\.\w+\..*X"])
def test_the_slowest_that_are_taken_end_in_peft_s_way_of_matching(pattern: str) -> None:
    """As PEFT matches a key of its patterns (`peft.utils.other.get_pattern_key`)."""
    assert not may_match_for_ever(pattern)
    compiled = re.compile(rf"(.*\.)?({pattern})$")
    assert not any(compiled.match(name) for name in NAMES)
