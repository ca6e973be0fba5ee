"""`plan.*` keys and amounts of memory: what is read, and what is refused in which words."""

import pytest

from harness.errors import RequestError
from harness.plan.settings import parse_bytes, split_settings


def test_settings_are_taken_out_of_the_overrides() -> None:
    settings, rest = split_settings(
        ["plan.shape=llama2_7b", "lora.rank=4", "plan.cohort=8", "plan.tokens_per_second=1.5e3"]
    )
    assert (settings.shape, settings.cohort, settings.tokens_per_second) == ("llama2_7b", 8, 1500)
    assert rest == ["lora.rank=4"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("plan.shap=llama2_7b", "plan.shape"),
        ("plan.cohort=0", "above 0"),
        ("plan.cohort=2.5", "whole number"),
        ("plan.length=long", "whole number"),
        ("plan.tokens_per_second=nan", "above 0"),
        ("plan.device=tpu", "cpu or cuda"),
        ("plan.cohort", "unknown key"),
    ],
)
def test_what_is_wrong_is_named(override: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        split_settings([override])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("24GiB", 24 * 2**30), ("80 GB", 80e9), ("1.5MiB", 1.5 * 2**20), ("512", 512)),
        ("999999999999999872", 999999999999999872),  # the last number below 10 to the 18
    ],
)
def test_amounts_of_memory(text: str, count: float) -> None:
    assert parse_bytes(text, "--budget") == count


@pytest.mark.parametrize("text", ["", "24 gigs", "0GiB", "-1GiB", "GiB", "1" + 18 * "0", "9" * 30])
def test_no_amount_of_memory_is_refused_with_one_that_works(text: str) -> None:
    with pytest.raises(RequestError, match="24GiB"):
        parse_bytes(text, "--budget")
