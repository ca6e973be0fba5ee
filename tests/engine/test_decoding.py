"""Answers of adapters in seats against the reference's most likely tokens, one by one and without a cache."""

from typing import Any

import pytest
import torch

from harness.config.resources import BackendName
from harness.config.schema import LoraConfig
from harness.engine.adapter import Adapter
from harness.engine.cuda.backend import CudaBackend
from harness.engine.cuda.decoding import DecodingSize
from harness.engine.shared_base import SharedBase
from tests.engine.test_backends import FAMILIES
from tests.engine.test_cpu import base_of, trained

NEW = 12
LENGTHS = (3, 17, 30, 1)
"""Of the prompts: on both sides of the window of those models that have one."""


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (n,), generator=generator).tolist() for n in LENGTHS]


def alone(shared: SharedBase, adapter: Adapter, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad(), shared.only(adapter):
        for _ in range(NEW):
            logits_1TV = shared.model(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits_1TV[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("model", FAMILIES)
def test_answers_are_those_of_generate(model: str, count: int) -> None:
    shared = base_of(model, backend=BackendName.reference)
    shared.model.eval()
    backend = CudaBackend(shared)
    adapters = [
        trained(shared, LoraConfig(rank=4 + seed, alpha=16.0, dropout=0.2 * seed), seed)
        for seed in range(count)
    ]
    for adapter in reversed(adapters):  # seats are in another order than who asks
        backend.sit(adapter, None)
    size = DecodingSize(rows=3, length=max(LENGTHS) + NEW, new_tokens=NEW)
    found: list[list[list[int]]] = [[] for _ in adapters]
    for batch in (prompts()[:3], prompts()[3:]):  # the second is smaller
        answers = backend.answers(adapters, batch, size, [])
        for of_adapter, new in zip(found, answers, strict=True):
            of_adapter += new
    expected = [[alone(shared, each, prompt) for prompt in prompts()] for each in adapters]
    assert found == expected


def test_decoding_stops_where_every_answer_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = base_of("llama", backend=BackendName.reference)
    shared.model.eval()
    backend = CudaBackend(shared)
    adapter = trained(shared, LoraConfig(rank=4, alpha=16.0), 0)
    backend.sit(adapter, None)
    (free,) = backend.answers(
        [adapter], prompts()[:2], DecodingSize(rows=2, length=90, new_tokens=60), []
    )
    stops = sorted({answer[2] for answer in free})
    steps = 0
    counted = backend._pass.logits

    def counting(*given: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return counted(*given)

    monkeypatch.setattr(backend._pass, "logits", counting)
    backend.end_decoding()
    size = DecodingSize(rows=2, length=90, new_tokens=60)
    (ended,) = backend.answers([adapter], prompts()[:2], size, stops)
    assert steps < 10
    assert [answer[:3] for answer in ended] == [answer[:3] for answer in free]
