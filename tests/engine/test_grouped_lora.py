"""The packed forward against PEFT's own, one adapter or several, stacked or not, and what surrounds it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from harness.base.build import Base, freeze
from harness.base.targets import AdapterShape
from harness.config.resources import BackendName
from harness.config.schema import FloatType, LoraConfig, QuantConfig, QuantFormat
from harness.engine.adapter import Adapter, ParameterLayout
from harness.engine.rows import AdapterRows
from harness.engine.shared_base import SharedBase
from tests.engine.products import closeness
from tests.random_models import LLAMA

CPU = torch.device("cpu")
ROWS, LENGTH = 3, 16


def random_base(quant: QuantConfig | None = None) -> Base:
    """Return a packed and frozen random Llama; the same one every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    quant = quant or QuantConfig(format=QuantFormat.nf4)
    torch.manual_seed(0)
    shape: dict[str, Any] = {**LLAMA, "vocab_size": 300}
    model = LlamaForCausalLM(LlamaConfig(**shape))
    return freeze(model, quant, CPU)


def ids(rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 100, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def trained(shared: SharedBase, lora: LoraConfig, seed: int) -> Adapter:
    """Attach an adapter whose B is not zero."""
    adapter = shared.attach(lora, seed)
    noise = torch.randn(adapter.flat_P.shape, generator=torch.Generator().manual_seed(seed))
    adapter.flat_P.add_(noise, alpha=0.05)
    return adapter


def backward(shared: SharedBase, adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """Return each adapter's gradient of the sum of its own rows' squared logits."""
    joint = torch.cat([ids(seed=index) for index in range(len(adapters))])
    adapter_rows = [
        AdapterRows(adapter=a.name, start=i * ROWS, stop=(i + 1) * ROWS, dropout_key=None)
        for i, a in enumerate(adapters)
    ]
    with shared.plan.rows(adapter_rows):
        shared.model(joint, use_cache=False).logits.square().sum().backward()
        return {name: g.flat_P.clone() for name, g in shared.plan.gradients().items()}


def plain_peft_gradient(
    adapter: Adapter, lora: LoraConfig, seed: int, index: int, rows: int = ROWS
) -> torch.Tensor:
    """The same gradient by PEFT's own forward and autograd, in the adapter's layout."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(seed)
    config = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")  # pyright: ignore[reportArgumentType]
    model = get_peft_model(random_base().model, config)
    weights = [p for name, p in model.named_parameters() if ".lora_" in name]
    with torch.no_grad():
        for weight, ours in zip(weights, adapter.parameters.values(), strict=True):
            weight.copy_(ours)
    model(ids(rows, seed=index), use_cache=False).logits.square().sum().backward()
    gradient = torch.empty_like(adapter.flat_P)
    for view, weight in zip(adapter.of_parameters(gradient), weights, strict=True):
        assert weight.grad is not None
        view.copy_(weight.grad)
    return gradient


@pytest.mark.parametrize("alpha", [16.0, 12.0], ids=["exact scaling", "other scaling"])
def test_gradients_of_one_adapter_are_pefts_bit_for_bit(alpha: float) -> None:
    shared, lora = SharedBase(random_base()), LoraConfig(rank=8, alpha=alpha)
    adapter = trained(shared, lora, seed=3)
    (gradient,) = backward(shared, [adapter]).values()
    assert torch.equal(gradient, plain_peft_gradient(adapter, lora, seed=3, index=0))


@pytest.mark.parametrize("stacks", [True, False])
def test_gradients_of_adapters_side_by_side_are_pefts_for_each_alone(stacks: bool) -> None:
    shared = SharedBase(random_base())
    shared.plan.stacks = stacks
    settings = [(4, 8.0), (4, 4.0), (8, 12.0), (8, 20.0), (8, 8.0)]
    loras = [LoraConfig(rank=rank, alpha=alpha) for rank, alpha in settings]
    adapters = [trained(shared, lora, seed) for seed, lora in enumerate(loras)]
    gradients = backward(shared, adapters)
    for index, (adapter, lora) in enumerate(zip(adapters, loras, strict=True)):
        alone = plain_peft_gradient(adapter, lora, seed=index, index=index)
        torch.testing.assert_close(gradients[adapter.name], alone, rtol=1e-5, atol=1e-5)


def test_only_adapters_of_one_layout_and_as_many_rows_are_stacked() -> None:
    shared = SharedBase(random_base())
    qv = ["q_proj", "v_proj"]
    loras = [
        LoraConfig(rank=4, alpha=8.0),
        LoraConfig(rank=4, alpha=16.0),
        LoraConfig(rank=4, alpha=12.0),  # its scaling is no power of two
        LoraConfig(rank=4, alpha=8.0, dropout=0.1),
        LoraConfig(rank=4, alpha=8.0, target_modules=qv),
        LoraConfig(rank=4, alpha=4.0, target_modules=qv),
    ]
    names = [shared.attach(lora, seed=0).name for lora in loras]
    rows = [2, 2, 2, 2, 2, 1]
    starts = [sum(rows[:i]) for i in range(len(rows))]
    adapter_rows = [
        AdapterRows(adapter=name, start=start, stop=start + count, dropout_key=None)
        for name, start, count in zip(names, starts, rows, strict=True)
    ]
    with shared.plan.rows(adapter_rows):
        q_proj = next(i for i, spec in enumerate(shared.base.linears) if "q_proj" in spec.name)
        up_proj = next(i for i, spec in enumerate(shared.base.linears) if "up_proj" in spec.name)
        assert [b.count for b in shared.plan.groups(q_proj)] == [2, 1, 1, 1, 1]
        assert [b.count for b in shared.plan.groups(up_proj)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([2, 2, 2], [3]),
        ([2, 2, 3], [2, 1]),
        ([3, 2, 2], [1, 2]),
        ([1, 2, 1], [1, 1, 1]),
        ([1, 1, 2, 2, 2, 1], [2, 3, 1]),
    ],
)
def test_adapters_are_stacked_with_neighbours_of_as_many_rows(
    rows: list[int], groups: list[int]
) -> None:
    shared = SharedBase(random_base())
    lora = LoraConfig(rank=4, alpha=8.0)
    names = [shared.attach(lora, seed=0).name for _ in rows]
    starts = [sum(rows[:index]) for index in range(len(rows))]
    adapter_rows = [
        AdapterRows(adapter=name, start=start, stop=start + count, dropout_key=None)
        for name, start, count in zip(names, starts, rows, strict=True)
    ]
    with shared.plan.rows(adapter_rows):
        assert [group.count for group in shared.plan.groups(0)] == groups


@pytest.mark.parametrize("alphas", [(9.0, 8.0), (8.0, 9.0)])
def test_a_scaling_that_rounds_is_not_stacked_with_one_that_does_not(
    alphas: tuple[float, float],
) -> None:
    """PEFT multiplies by the scaling last; where it is a power of two it may go first, to the same bits."""
    shared = SharedBase(random_base())
    names = [shared.attach(LoraConfig(rank=4, alpha=alpha), seed=0).name for alpha in alphas]
    adapter_rows = [
        AdapterRows(adapter=name, start=2 * index, stop=2 * index + 2, dropout_key=None)
        for index, name in enumerate(names)
    ]
    with shared.plan.rows(adapter_rows):
        assert [group.count for group in shared.plan.groups(0)] == [1, 1]


def test_layers_are_in_training_mode_where_activations_are_recomputed_and_else_not() -> None:
    """transformers' layers recompute in training mode only."""
    shared = SharedBase(random_base())
    assert not shared.model.training
    for wanted in (True, True, False, False):
        shared.recompute_activations(wanted)
        assert shared.model.training is wanted


def test_gradients_of_adapters_with_unlike_rows_are_pefts_for_each_alone() -> None:
    shared, lora = SharedBase(random_base()), LoraConfig(rank=4, alpha=8.0)
    adapters = [trained(shared, lora, seed) for seed in range(3)]
    alone = [
        plain_peft_gradient(adapter, lora, seed=index, index=index, rows=1 + index)
        for index, adapter in enumerate(adapters)
    ]
    joint = torch.cat([ids(rows=1 + index, seed=index) for index in range(3)])
    adapter_rows = [
        AdapterRows(adapter=adapters[0].name, start=0, stop=1, dropout_key=None),
        AdapterRows(adapter=adapters[1].name, start=1, stop=3, dropout_key=None),
        AdapterRows(adapter=adapters[2].name, start=3, stop=6, dropout_key=None),
    ]
    with shared.plan.rows(adapter_rows):
        shared.model(joint, use_cache=False).logits.square().sum().backward()
        gradients = {name: g.flat_P.clone() for name, g in shared.plan.gradients().items()}
    for adapter, expected in zip(adapters, alone, strict=True):
        torch.testing.assert_close(gradients[adapter.name], expected, rtol=1e-5, atol=1e-5)


def test_rows_without_an_adapter_in_a_layer_see_the_base_and_pass_its_gradient_on() -> None:
    shared = SharedBase(random_base())
    wide = trained(shared, LoraConfig(rank=4, alpha=8.0), seed=0)
    narrow = trained(shared, LoraConfig(rank=4, alpha=8.0, target_modules=["q_proj"]), seed=1)
    together = backward(shared, [narrow, wide])
    alone = backward(shared, [narrow])
    torch.testing.assert_close(together[narrow.name], alone[narrow.name], rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_called_twice_gets_both_gradients() -> None:
    shared = SharedBase(random_base())
    adapter = trained(shared, LoraConfig(rank=4, alpha=8.0, target_modules=["q_proj"]), seed=0)
    layer = shared.model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))

    def gradient(*inputs: torch.Tensor) -> torch.Tensor:
        one = AdapterRows(adapter=adapter.name, start=0, stop=0, dropout_key=None)
        with shared.plan.rows([one]):
            torch.stack([layer(part).square().sum() for part in inputs]).sum().backward()
            return shared.plan.gradients()[adapter.name].flat_P.clone()

    torch.testing.assert_close(gradient(x[:2], x[2:]), gradient(x))


def test_a_layer_that_is_not_reached_has_no_gradient() -> None:
    shared = SharedBase(random_base())
    adapter = trained(shared, LoraConfig(rank=4, alpha=8.0, target_modules=["q_proj"]), seed=0)
    first, second = (layer.self_attn.q_proj for layer in shared.model.model.layers[:2])
    x = torch.randn(2, first.in_features)
    for reached, other in ((first, second), (second, first)):
        one = AdapterRows(adapter=adapter.name, start=0, stop=0, dropout_key=None)
        with shared.plan.rows([one]):
            reached(x).sum().backward()
            gradients = shared.plan.gradients()[adapter.name].of_parameters
        by_name = dict(zip(adapter.parameters, gradients, strict=True))
        index = {layer: i for i, layer in enumerate((first, second))}
        for name, gradient in by_name.items():
            assert bool(gradient.any()) == (f"layers.{index[reached]}." in name), (name, other)


def test_detaching_one_adapter_leaves_the_others_and_their_numbers() -> None:
    shared = SharedBase(random_base())
    adapters = [trained(shared, LoraConfig(rank=4, alpha=8.0), seed) for seed in range(3)]
    before = backward(shared, adapters)
    shared.detach(adapters[1])
    rest = backward(shared, [adapters[0]])
    one, other = rest[adapters[0].name], before[adapters[0].name]
    assert (one - other).norm() <= closeness() * other.norm()
    assert not any(adapters[1].name in name for name, _ in shared.model.named_parameters())
    with pytest.raises(KeyError):
        backward(shared, [adapters[1]])


def test_the_flat_tensor_holds_the_parameters_that_peft_saves() -> None:
    shared = SharedBase(random_base())
    adapter = trained(shared, LoraConfig(rank=4, alpha=8.0), seed=0)
    saved = shared.state(adapter)
    assert sum(tensor.numel() for tensor in saved.values()) == adapter.num_parameters
    views = adapter.of_parameters(adapter.flat_P)
    for tensor, view in zip(saved.values(), views, strict=True):
        assert tensor.data_ptr() == view.data_ptr()
    assert isinstance(next(iter(adapter.parameters.values())), nn.Parameter)


def test_a_layout_has_every_a_before_every_b() -> None:
    layout = ParameterLayout({3: AdapterShape(2, 4, 5), 7: AdapterShape(2, 6, 8)})
    assert layout.num_a == 2 * (4 + 6)
    assert layout.size == 2 * (4 + 6 + 5 + 8)
    flat = torch.arange(2 * layout.size).view(2, -1)
    assert layout.a(flat, 7)[1].flatten().tolist() == list(range(46 + 8, 46 + 20))
    assert layout.b(flat, 3)[0].flatten().tolist() == list(range(20, 30))
    assert 7 in layout
    assert 4 not in layout


@pytest.mark.parametrize(
    "quant",
    [
        QuantConfig(format=QuantFormat.nf4, double_quant=True),
        QuantConfig(format=QuantFormat.fp4),
        QuantConfig(format=QuantFormat.int4),
        QuantConfig(format=QuantFormat.int8),
        QuantConfig(format=QuantFormat.none),
    ],
    ids=lambda quant: quant.format.value,
)
def test_decoded_layers_give_the_packed_layers_numbers(quant: QuantConfig) -> None:
    logits = []
    for backend in (BackendName.reference, BackendName.cpu):
        shared = SharedBase(random_base(quant), backend=backend)
        adapter = trained(shared, LoraConfig(rank=4, alpha=8.0, target_modules=["q_proj"]), seed=0)
        with torch.no_grad(), shared.only(adapter):
            logits.append(shared.model(ids()).logits)
            with shared.backend.decoded():
                logits.append(shared.model(ids()).logits)
            logits.append(shared.model(ids()).logits)
    assert all(torch.equal(each, logits[0]) for each in logits)


def test_other_compute_types_are_not_decoded_in_advance() -> None:
    shared = SharedBase(random_base(QuantConfig(compute_dtype=FloatType.bfloat16)))
    assert shared.backend.name is BackendName.reference
