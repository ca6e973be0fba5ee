"""Masks and positions of rows that hold several examples, against loops over every pair of positions."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.base.attention import most_positions
from harness.base.packed_rows import attention_arguments, restarting_positions

SEGMENTS = torch.tensor([[1, 1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 2, 3], [4] * 8])


def test_positions_start_again_with_every_example() -> None:
    assert restarting_positions(SEGMENTS).tolist() == [
        [0, 1, 2, 3, 0, 1, 0, 1],
        [0, 0, 1, 2, 3, 4, 5, 0],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]


def model_of(model_type: str, **fields: Any) -> Any:
    """Return what is asked of a model: its configuration, how it attends, its embeddings' type."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, num_hidden_layers=3, **fields)
    config._attn_implementation = "sdpa"
    embeddings = SimpleNamespace(weight=torch.empty(0))
    return SimpleNamespace(config=config, get_input_embeddings=lambda: embeddings)


def sees(row: torch.Tensor, query: int, key: int, window: int | None, chunk: int | None) -> bool:
    """Say by the definition whether a position sees another of its row."""
    if row[query] != row[key] or key > query:
        return False
    first = next(place for place in range(8) if row[place] == row[query])
    if window is not None and query - key >= window:
        return False
    return chunk is None or (query - first) // chunk == (key - first) // chunk


def expected(window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    rows = [
        [[sees(row, query, key, window, chunk) for key in range(8)] for query in range(8)]
        for row in SEGMENTS
    ]
    return torch.tensor(rows).unsqueeze(1)


def test_a_position_sees_its_own_example_up_to_itself() -> None:
    found = attention_arguments(model_of("llama"), SEGMENTS)
    assert torch.equal(found["attention_mask"], expected())
    assert torch.equal(found["position_ids"], restarting_positions(SEGMENTS))


def test_a_window_is_counted_within_the_example() -> None:
    found = attention_arguments(model_of("mistral", sliding_window=3), SEGMENTS)
    assert torch.equal(found["attention_mask"], expected(window=3))


def test_each_type_of_layer_has_its_own_mask() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = model_of("gemma3_text", sliding_window=2, layer_types=kinds)
    masks = attention_arguments(model, SEGMENTS)["attention_mask"]
    assert masks.keys() == set(kinds)
    assert torch.equal(masks["sliding_attention"], expected(window=2))
    assert torch.equal(masks["full_attention"], expected())
    kinds = ["chunked_attention", "full_attention", "chunked_attention"]
    model = model_of("llama4_text", attention_chunk_size=3, layer_types=kinds)
    masks = attention_arguments(model, SEGMENTS)["attention_mask"]
    assert torch.equal(masks["chunked_attention"], expected(chunk=3))


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 40}


@pytest.mark.parametrize(
    ("fields", "most", "told"),
    [
        ({"max_position_embeddings": 50}, 50, "has 50 positions"),
        ({"max_position_embeddings": 50, "rope_parameters": LONGROPE}, 40, r"\(longrope\) .* 40"),
        ({"max_position_embeddings": 40, "rope_parameters": LONGROPE}, 40, "has 40 positions"),
        ({"rope_parameters": LONGROPE}, 40, "longrope"),
        ({"rope_parameters": {"full_attention": LONGROPE, "other": {}}}, 40, "longrope"),
        ({"max_position_embeddings": 50, "rope_parameters": {"rope_type": "yarn"}}, 50, "has 50"),
        ({}, None, "has None"),
    ],
)
def test_the_longest_row_that_is_the_same_in_any_company(
    fields: dict[str, Any], most: int | None, told: str
) -> None:
    config: Any = SimpleNamespace(**fields)
    config.get_text_config = lambda: config
    found, beyond = most_positions(config)
    assert found == most
    assert re.search(told, beyond)
