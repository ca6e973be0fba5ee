"""What a configuration says of each block: the lists that have an entry for every one of them."""

from types import SimpleNamespace

import pytest

from harness.plan.outline import per_block_fields


@pytest.mark.parametrize(
    ("blocks", "found"),
    [(3, {"layer_types", "sizes"}), (4, {"longer"}), (2, {"shorter"}), (5, set())],
)
def test_lists_of_as_many_entries_as_there_are_blocks_are_of_the_blocks(blocks, found) -> None:
    fields = {
        "layer_types": ["full", "sliding", "full"],
        "sizes": [8, 8, 4],
        "longer": [1, 2, 3, 4],
        "shorter": ["a", "b"],
        "word": "abc",
        "pair": (1, 2, 3),
    }
    expected = {name: fields[name] for name in found}
    assert per_block_fields(SimpleNamespace(**fields), blocks) == expected
