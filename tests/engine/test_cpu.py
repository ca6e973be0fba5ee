"""Quick passes against the usual ones: the same losses and gradients, whatever takes the short way."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.base.build import freeze
from harness.config.resources import BackendName
from harness.config.schema import FloatType, LoraConfig, QuantConfig, QuantFormat
from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter
from harness.engine.cpu import matmul as products
from harness.engine.cpu.backend import DECODED_BYTES
from harness.engine.cpu.decoder_layer import QuickBlock
from harness.engine.cpu.matmul import FrozenWeight, Operand
from harness.engine.micro_step import Gradient, Work
from harness.engine.shared_base import SharedBase
from harness.errors import RequestError

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
CPU_BACKEND = BackendName.cpu
ALL, ATTENTION, QV, MLP = ["all_linear"], ["attention"], ["q_proj", "v_proj"], ["mlp"]
RANDOM = torch.Generator()


def base_of(
    model_type: str,
    quant: QuantFormat = QuantFormat.nf4,
    backend: BackendName = BackendName.auto,
    *,
    double_quant: bool = False,
    compute: FloatType = FloatType.float32,
    device: torch.device = CPU,
    **fields: Any,
) -> SharedBase:
    """Return a packed random model; the same one every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = SHAPE | ({"sliding_window": None} if model_type == "mistral" else {})
    model_type = model_type.removesuffix("_windowed")
    if model_type == "gpt_neox":
        shape = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
    shape |= {"phi3": {"pad_token_id": 0}, "gemma": {"head_dim": 16}}.get(model_type, {})
    if model_type == "gemma3_text":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        shape |= {"head_dim": 16, "sliding_window": 5, "layer_types": kinds}
    config = AutoConfig.for_model(model_type, **shape | fields)
    config._attn_implementation = "sdpa"
    model: Any = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    stored = QuantConfig(format=quant, double_quant=double_quant, compute_dtype=compute)
    return SharedBase(freeze(model, stored, device), backend=backend)


def trained(shared: SharedBase, lora: LoraConfig, seed: int) -> Adapter:
    """Attach an adapter whose B is not zero."""
    adapter = shared.attach(lora, seed)
    noise = torch.randn(adapter.flat_P.shape, generator=RANDOM.manual_seed(seed)) / 20
    adapter.flat_P.add_(noise.to(adapter.flat_P.device))
    return adapter


def work_of(
    adapter: Adapter,
    seed: int,
    *,
    packed: bool,
    rows: int = 3,
    length: int = 24,
    recompute: bool = False,
) -> Work:
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
        recompute=recompute,
    )


def outcome(gradients: Sequence[Gradient]) -> list[tuple[float, torch.Tensor]]:
    return [(g.loss.item(), g.of_adapter.flat_P.clone()) for g in gradients]


def three_ways(
    model_type: str,
    loras: Sequence[LoraConfig],
    *,
    packed: bool,
    quant: QuantFormat = QuantFormat.nf4,
    recompute: bool = False,
) -> list[list[tuple[float, torch.Tensor]]]:
    """Return losses and gradients of a pass: the reference's, with quick products, with blocks."""
    found = []
    for backend, keeps in (
        (BackendName.reference, False),
        (CPU_BACKEND, False),
        (CPU_BACKEND, True),
    ):
        shared = base_of(model_type, quant, backend)
        shared.backend.keep_decoded(keeps)
        work = [
            work_of(trained(shared, lora, seed), seed, packed=packed, recompute=recompute)
            for seed, lora in enumerate(loras)
        ]
        found.append(outcome(shared.backend.gradients(work)))
    return found


def assert_same_bits(ways: list[list[tuple[float, torch.Tensor]]]) -> None:
    for (loss, gradient), *others in zip(*ways, strict=True):
        for other_loss, other in others:
            assert other_loss == loss
            assert torch.equal(other, gradient)


def blocks_of(shared: SharedBase) -> list[QuickBlock]:
    found = (vars(module).get("forward") for module in shared.model.modules())
    return [forward for forward in found if isinstance(forward, QuickBlock)]


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed rows"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_adapters_that_are_not_stacked_get_the_same_bits(model_type: str, packed: bool) -> None:
    loras = [
        LoraConfig(rank=2, alpha=3.0, target_modules=ALL),
        LoraConfig(rank=8, alpha=16.0, target_modules=QV),
        LoraConfig(rank=4, alpha=4.0, target_modules=MLP),
        LoraConfig(rank=16, alpha=16.0, target_modules=ATTENTION, rslora=True),
    ]
    assert_same_bits(three_ways(model_type, loras, packed=packed))


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed rows"])
def test_stacked_adapters_get_the_same_bits_as_ever(packed: bool) -> None:
    loras = [
        LoraConfig(rank=2 if seed < 3 else 8, alpha=float(8 * (1 + seed % 2))) for seed in range(6)
    ]
    usual, _, blocks = three_ways("llama", loras, packed=packed, quant=QuantFormat.none)
    assert_same_bits([usual, blocks])


def test_a_pass_with_dropout_goes_its_usual_way() -> None:
    loras = [LoraConfig(rank=4, alpha=8.0, dropout=0.2), LoraConfig(rank=8, alpha=8.0)]
    assert_same_bits(three_ways("llama", loras, packed=False))


def test_recomputed_activations_change_nothing() -> None:
    lora = LoraConfig(rank=4, alpha=8.0)
    kept = three_ways("llama", [lora], packed=True)
    assert_same_bits([*kept, *three_ways("llama", [lora], packed=True, recompute=True)])


@torch.no_grad()
def test_generation_with_a_cache_is_the_same() -> None:
    prompt = torch.randint(3, 300, (2, 9), generator=RANDOM.manual_seed(0))
    answers = []
    for backend in (BackendName.reference, CPU_BACKEND):
        shared = base_of("llama", backend=backend)
        adapter = trained(shared, LoraConfig(rank=4, alpha=8.0), 0)
        with shared.backend.decoded(), shared.only(adapter):
            answers.append(
                shared.model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=True)
            )
    assert torch.equal(*answers)


def test_another_family_has_quick_products_and_its_own_blocks() -> None:
    assert blocks_of(base_of("llama"))
    assert not blocks_of(base_of("gpt_neox"))
    assert_same_bits(three_ways("gpt_neox", [LoraConfig(rank=4, alpha=8.0)], packed=False))


def test_nothing_stays_decoded_behind_an_evaluation() -> None:
    shared = base_of("llama")
    forwards = (vars(module).get("forward") for module in shared.model.modules())
    weights = [forward for forward in forwards if isinstance(forward, FrozenWeight)]
    assert len(weights) == 3 * 7 + 1
    with shared.backend.decoded():
        assert all(weight.forward is weight.forward for weight in weights)
        assert all(block.is_used for block in blocks_of(shared))
    assert not any(weight.forward is weight.forward for weight in weights)
    assert not any(block.is_used for block in blocks_of(shared))


def test_a_base_of_some_size_or_another_type_is_left_to_the_reference() -> None:
    large = DECODED_BYTES // 4 // 64
    shared = base_of("llama", vocab_size=large)
    assert shared.backend.name is BackendName.reference
    assert not any("forward" in vars(module) for module in shared.model.modules())
    with pytest.raises(RequestError, match=r"resources\.backend=cpu: decoded, the base has"):
        base_of("llama", backend=CPU_BACKEND, vocab_size=large)


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
