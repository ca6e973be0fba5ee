"""Which tokens each expert sees, counted one by one, and its products against torch's own."""

from collections import Counter

import pytest
import torch
from torch import nn

from harness.base.experts import Routing, _ExpertsMatmul, _spans

INDEX_NK = torch.tensor([[2, 0], [0, 3], [2, 3], [0, 2], [3, 2]])
"""Five tokens, two of four experts each; the second is chosen by none."""


def test_pairs_lie_by_expert_and_within_one_by_token() -> None:
    routing = Routing.of(INDEX_NK, 4)
    pairs = [(e, n) for e in range(4) for n in range(5) if e in INDEX_NK[n].tolist()]
    found = list(zip(routing.expert_S.tolist(), routing.token_S.tolist(), strict=True))
    assert found == pairs
    assert INDEX_NK.reshape(-1)[routing.order_S].tolist() == [expert for expert, _ in pairs]
    assert routing.counts() == [[3], [0], [4], [3]]
    assert list(_spans(routing)) == [(0, 0, 3), (2, 3, 7), (3, 7, 10)]


def test_pairs_are_counted_by_the_owner_of_their_token() -> None:
    owner_N = torch.tensor([0, 0, 1, 2, 2])
    counted = Counter(
        (int(expert), int(owner_N[token])) for token in range(5) for expert in INDEX_NK[token]
    )
    expected = [[counted[expert, owner] for owner in range(3)] for expert in range(4)]
    assert Routing.of(INDEX_NK, 4).counts(3, owner_N) == expected
    assert sum(map(sum, expected)) == 10


@pytest.mark.parametrize("owners", [1, 3])
def test_where_nobody_is_routed_all_have_as_many(owners: int) -> None:
    routing = Routing.of(INDEX_NK.to("meta"), 4)
    found = routing.counts(owners)
    flat = [count for of_expert in found for count in of_expert]
    assert [len(of_expert) for of_expert in found] == [owners] * 4
    assert sum(flat) == 10
    assert flat == sorted(flat, reverse=True)
    assert max(flat) - min(flat) <= 1


@pytest.mark.parametrize("transposed", [False, True])
def test_each_expert_multiplies_its_own_rows(transposed: bool) -> None:
    routing = Routing.of(INDEX_NK, 4)
    torch.manual_seed(0)
    inputs, outputs = 6, 5
    weight_EOI = torch.randn(4, outputs, inputs, dtype=torch.float64)
    stored = weight_EOI.transpose(1, 2) if transposed else weight_EOI
    layer = nn.Linear(stored.shape[2], stored.shape[0] * stored.shape[1], bias=False).double()
    layer.weight.data = stored.reshape(-1, stored.shape[2]).contiguous()
    x_SI = torch.randn(10, inputs, dtype=torch.float64, requires_grad=True)
    y_SO = _ExpertsMatmul.apply(x_SI, layer, routing, transposed)
    expected = torch.einsum("soi,si->so", weight_EOI[routing.expert_S], x_SI)
    torch.testing.assert_close(y_SO, expected)
    grad_SO = torch.randn_like(expected)
    (ours,) = torch.autograd.grad(y_SO, x_SI, grad_SO)  # pyright: ignore[reportArgumentType, reportCallIssue]
    (theirs,) = torch.autograd.grad(expected, x_SI, grad_SO)
    torch.testing.assert_close(ours, theirs)
