"""A table that could not be built is refused when it is described."""

from typing import Any

import pytest

from analysis.spec import Spec
from harness.records.metrics import Direction

PLAIN: dict[str, Any] = {
    "name": "t",
    "title": "T",
    "rows": ("lora.rank", "quant"),
    "columns": ("eval/loss", "memory/peak_bytes"),
}
FRONT = {"eval/loss": Direction.minimize, "memory/peak_bytes": Direction.minimize}
COMPARISONS = {
    "against": {"against": {"lora.rank": 2}},
    "against nothing named": {"against": {}},
    "against_best": {"against_best": True},
    "choose": {"choose": ("optim.lr",)},
    "front": {"front": FRONT},
}


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=COMPARISONS)
def test_a_comparison_stands_alone_and_not_beside_levels_that_stand_side_by_side(
    comparison: dict[str, Any],
) -> None:
    Spec(**PLAIN, **comparison)
    with pytest.raises(ValueError, match="`across` compares by itself; drop the comparison"):
        Spec(**PLAIN, **comparison, across="seed")
    Spec(**PLAIN, across="seed")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rows": ()}, "needs rows and columns"),
        ({"columns": ()}, "needs rows and columns"),
        ({"against": {}, "against_best": True}, "give `against` or `against_best`, not both"),
        ({"front": {"eval/exact_match": Direction.maximize}}, r"front of \['eval/exact_match'\]"),
        ({"against": {"optim.lr": 1}}, r"against \['optim.lr'\], which are none of"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Spec(**{**PLAIN, **given})
    assert "table t" in str(refused.value)
