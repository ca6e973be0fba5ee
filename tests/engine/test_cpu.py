"""Quick passes against the usual ones: the same losses and gradients, whatever takes the short way."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.base.build import freeze
from harness.config.schema import LoraConfig, QuantConfig, QuantFormat
from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter
from harness.engine.cpu import matmul as products
from harness.engine.cpu.backend import DECODED_BYTES, quick_passes
from harness.engine.cpu.decoder_layer import QuickBlock
from harness.engine.cpu.matmul import FrozenWeight, Operand
from harness.engine.micro_step import Gradient, Work, packed_gradients
from harness.engine.shared_base import SharedBase

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 172,  # no multiple of a vector: elementwise loops have rests
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 300,
}
ALL, ATTENTION, QV, MLP = ["all_linear"], ["attention"], ["q_proj", "v_proj"], ["mlp"]
RANDOM = torch.Generator()


def base_of(model_type: str, quant: QuantFormat = QuantFormat.nf4, **fields: Any) -> SharedBase:
    """Return a packed random model; the same one every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = SHAPE | {"sliding_window": None} if model_type == "mistral" else SHAPE
    if model_type == "gpt_neox":
        shape = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
    config = AutoConfig.for_model(model_type, **shape | fields)
    config._attn_implementation = "sdpa"
    model: Any = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return SharedBase(freeze(model, QuantConfig(format=quant), CPU))


def trained(shared: SharedBase, lora: LoraConfig, seed: int) -> Adapter:
    """Attach an adapter whose B is not zero."""
    adapter = shared.attach(lora, seed)
    adapter.flat_P.add_(torch.randn(adapter.flat_P.shape, generator=RANDOM.manual_seed(seed)) / 20)
    return adapter


def work_of(adapter: Adapter, seed: int, *, packed: bool, rows: int = 3, length: int = 24) -> Work:
    """Return one run's share of a pass: random rows, a third of whose positions carry loss."""
    RANDOM.manual_seed(seed)
    ids = torch.randint(3, 300, (rows, length), generator=RANDOM)
    targets = torch.where(torch.rand(ids.shape, generator=RANDOM) < 1 / 3, ids, NO_LOSS)
    segments = (1 + torch.arange(length) // 7).expand(rows, -1).contiguous()
    tokens = int((targets != NO_LOSS).sum())
    return Work(
        adapter=adapter,
        batch=Batch.of(ids, targets, segments if packed else None),
        loss_tokens=tokens,
        dropout_key=seed if adapter.dropout else None,
        recompute=False,
    )


def outcome(gradients: Sequence[Gradient]) -> list[tuple[float, torch.Tensor]]:
    return [(g.loss.item(), g.of_adapter.flat_P.clone()) for g in gradients]


def three_ways(shared: SharedBase, work: Sequence[Work]) -> list[list[tuple[float, torch.Tensor]]]:
    """Return losses and gradients of one pass as ever, with quick products, and with quick blocks."""
    usual = outcome(packed_gradients(shared, work))
    with quick_passes(shared, keeping=False):
        products_only = outcome(packed_gradients(shared, work))
    with quick_passes(shared, keeping=True):
        assert any(isinstance(vars(m).get("forward"), QuickBlock) for m in shared.model.modules())
        blocks = outcome(packed_gradients(shared, work))
    return [usual, products_only, blocks]


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed rows"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_adapters_that_are_not_stacked_get_the_same_bits(model_type: str, packed: bool) -> None:
    shared = base_of(model_type)
    loras = [
        LoraConfig(rank=2, alpha=3.0, target_modules=ALL),
        LoraConfig(rank=8, alpha=16.0, target_modules=QV),
        LoraConfig(rank=4, alpha=4.0, target_modules=MLP),
        LoraConfig(rank=16, alpha=16.0, target_modules=ATTENTION, rslora=True),
    ]
    work = [
        work_of(trained(shared, lora, seed), seed, packed=packed) for seed, lora in enumerate(loras)
    ]
    usual, products_only, blocks = three_ways(shared, work)
    for (loss, gradient), *others in zip(usual, products_only, blocks, strict=True):
        for other_loss, other in others:
            assert other_loss == loss
            assert torch.equal(other, gradient)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed rows"])
def test_stacked_adapters_get_the_same_bits_as_ever(packed: bool) -> None:
    shared = base_of("llama", QuantFormat.none)
    work = []
    for seed in range(6):
        lora = LoraConfig(rank=2 if seed < 3 else 8, alpha=float(8 * (1 + seed % 2)))
        work.append(work_of(trained(shared, lora, seed), seed, packed=packed))
    usual, _, blocks = three_ways(shared, work)
    for (loss, gradient), (other_loss, other) in zip(usual, blocks, strict=True):
        assert other_loss == loss
        assert torch.equal(other, gradient)


def test_a_pass_with_dropout_goes_its_usual_way() -> None:
    shared = base_of("llama")
    loras = [LoraConfig(rank=4, alpha=8.0, dropout=0.2), LoraConfig(rank=8, alpha=8.0)]
    work = [work_of(trained(shared, lora, i), i, packed=False) for i, lora in enumerate(loras)]
    usual, _, blocks = three_ways(shared, work)
    for (_, gradient), (_, other) in zip(usual, blocks, strict=True):
        assert torch.equal(other, gradient)


def test_recomputed_activations_change_nothing() -> None:
    shared = base_of("llama")
    work = work_of(trained(shared, LoraConfig(rank=4, alpha=8.0), 0), 0, packed=True)
    recomputed = Work(
        adapter=work.adapter,
        batch=work.batch,
        loss_tokens=work.loss_tokens,
        dropout_key=None,
        recompute=True,
    )
    with quick_passes(shared, keeping=True):
        ((_, kept),) = outcome(packed_gradients(shared, [work]))
        ((_, again),) = outcome(packed_gradients(shared, [recomputed]))
    assert torch.equal(again, kept)


@torch.no_grad()
def test_generation_with_a_cache_is_the_same() -> None:
    shared = base_of("llama")
    adapter = trained(shared, LoraConfig(rank=4, alpha=8.0), 0)
    prompt = torch.randint(3, 300, (2, 9), generator=RANDOM.manual_seed(0))

    def answers() -> torch.Tensor:
        with shared.only(adapter):
            return shared.model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=True)

    usual = answers()
    with quick_passes(shared, keeping=True):
        assert torch.equal(answers(), usual)


def test_another_family_has_quick_products_and_its_own_blocks() -> None:
    shared = base_of("gpt_neox")
    work = [work_of(trained(shared, LoraConfig(rank=4, alpha=8.0), 0), 0, packed=False)]
    ((_, usual),) = outcome(packed_gradients(shared, work))
    with quick_passes(shared, keeping=True):
        assert not any(
            isinstance(vars(m).get("forward"), QuickBlock) for m in shared.model.modules()
        )
        ((_, quick),) = outcome(packed_gradients(shared, work))
    assert torch.equal(quick, usual)


def test_everything_is_put_back_and_nothing_stays_decoded() -> None:
    shared = base_of("llama")
    with quick_passes(shared, keeping=False):
        weights = [
            found
            for module in shared.model.modules()
            if isinstance(found := vars(module).get("forward"), FrozenWeight)
        ]
        assert len(weights) == 3 * 7 + 1
        with quick_passes(shared, keeping=True):  # an evaluation during a run alone
            assert all(weight.is_kept for weight in weights)
        assert not any(weight.is_kept for weight in weights)
    assert not any("forward" in vars(module) for module in shared.model.modules())


def test_a_base_of_some_size_is_left_alone() -> None:
    shared = base_of("llama", vocab_size=DECODED_BYTES // 4 // 64)
    with quick_passes(shared, keeping=True):
        assert not any("forward" in vars(module) for module in shared.model.modules())


@pytest.mark.parametrize("inputs", [64, 172, 192, 193, 256, 384, 1024])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_have_the_bits_of_linear(
    inputs: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where oneDNN would not be used."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    RANDOM.manual_seed(0)
    weight = torch.randn(96, inputs, generator=RANDOM)
    bias = torch.randn(96, generator=RANDOM) if with_bias else None
    added = torch.randn(5, 37, 96, generator=RANDOM)
    x = torch.randn(5, 37, inputs, generator=RANDOM)
    expected = F.linear(x, weight, bias)
    assert torch.equal(Operand(weight).times(x, bias), expected)
    assert torch.equal(Operand(weight).times(x, bias, added=added), expected + added)
