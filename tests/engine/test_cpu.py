"""Quick passes against the usual ones: the same losses and gradients, whatever takes the short way."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.base.build import freeze
from harness.config.resources import BackendName
from harness.config.schema import FloatType, LoraConfig, LoraMethod, QuantConfig, QuantFormat
from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter
from harness.engine.cpu import backend as cpu_backend
from harness.engine.cpu import matmul as products
from harness.engine.cpu.backend import DECODED_BYTES, why_not_cpu
from harness.engine.cpu.decoder_layer import QuickBlock, known_blocks
from harness.engine.cpu.llama_block import LlamaBlock
from harness.engine.cpu.matmul import FrozenWeight, Operand
from harness.engine.micro_step import Gradient, Work
from harness.engine.shared_base import SharedBase
from harness.errors import RequestError
from tests.engine.products import closeness

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
    """Compare to the bit, or where the order of sums is a matter of the number of rows, to rounding."""
    close = closeness()
    for (loss, gradient), *others in zip(*ways, strict=True):
        for other_loss, other in others:
            assert abs(other_loss - loss) <= close
            assert (other - gradient).norm() <= close * gradient.norm()


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


@pytest.mark.parametrize(
    ("lora", "keeps", "trains", "blocks"),
    [
        ({}, True, True, 3),
        ({}, True, False, 3),
        ({}, False, True, 0),  # there is no decoded weight at hand
        ({"dropout": 0.2}, True, True, 0),
        ({"dropout": 0.2}, True, False, 3),  # which drops nothing in an evaluation
        ({"method": LoraMethod.dora}, True, True, 0),
    ],
)
def test_blocks_compute_what_they_know(
    monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], keeps: bool, trains: bool, blocks: int
) -> None:
    shared = base_of("llama", backend=CPU_BACKEND)
    shared.backend.keep_decoded(keeps)
    computed: list[LlamaBlock] = []
    real = LlamaBlock.forward

    def forward(block: LlamaBlock, *given: Any) -> Any:
        computed.append(block)
        return real(block, *given)

    monkeypatch.setattr(LlamaBlock, "forward", forward)
    adapter = trained(shared, LoraConfig(rank=4, alpha=8.0, **lora), 0)
    if trains:
        shared.backend.gradients([work_of(adapter, 0, packed=True)])
    else:
        with torch.no_grad(), shared.only(adapter):
            shared.model(torch.ones(1, 5, dtype=torch.int64))
    assert len(computed) == blocks


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


@pytest.mark.parametrize("keeps", [False, True])
def test_weights_that_were_written_over_are_decoded_anew_where_they_are_kept(keeps: bool) -> None:
    shared = base_of("llama", backend=CPU_BACKEND)
    shared.backend.keep_decoded(keeps)
    layer: Any = shared.model.model.layers[1].mlp.up_proj
    storage = shared.base.storage
    storage.overwrite(layer, 2 * layer.dense_weight(torch.float32))
    shared.backend.base_was_rewritten()
    x = torch.randn(3, 64, generator=RANDOM.manual_seed(0))
    assert torch.equal(layer(x), F.linear(x, layer.dense_weight(torch.float32)))
    assert all(block.is_used is keeps for block in blocks_of(shared))


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


@pytest.mark.parametrize("inputs", [64, 192, 256])
def test_a_few_rows_have_the_bits_of_linear_too(
    inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that are generated come one by one, for a few prompts."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    operand = Operand(torch.randn(96, inputs, generator=RANDOM.manual_seed(0)))
    for rows in range(1, 9):
        x = torch.randn(rows, inputs, generator=RANDOM)
        assert torch.equal(operand.times(x), F.linear(x, operand.weight_OI)), rows


@pytest.mark.parametrize(
    ("capability", "maker", "expected"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),  # MKL withholds nothing from its own
        ("AVX512", None, False),
        ("AVX2", "AuthenticAMD", False),
    ],
)
def test_onednn_is_for_wide_vectors_of_other_makers(
    monkeypatch: pytest.MonkeyPatch, capability: str, maker: str | None, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_maker", lambda: maker)
    assert products.onednn_is_faster.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not products.onednn_is_faster.__wrapped__()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nvendor_id\t: other\n", "AuthenticAMD"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", None),
        (None, None),
    ],
)
def test_the_maker_is_what_the_processor_calls_itself(
    monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str | None
) -> None:
    def read_text(_: Any) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(products.Path, "read_text", read_text)
    assert products._maker() == expected


def test_a_small_base_is_one_whose_layers_and_head_have_few_bytes_when_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = base_of("llama").base
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 172  # q, o; k, v; gate, up, down
    decoded = 4 * (3 * block + 300 * 64)
    monkeypatch.setattr(cpu_backend, "DECODED_BYTES", decoded)
    assert why_not_cpu(base) is None
    monkeypatch.setattr(cpu_backend, "DECODED_BYTES", decoded - 1)
    assert f"decoded, the base has {decoded} bytes" in (why_not_cpu(base) or "")
    base.processes = 2
    assert "divided among 2 processes" in (why_not_cpu(base) or "")


def test_a_block_stands_in_only_where_all_layers_are_of_its_kind_and_nothing_is_peculiar() -> None:
    assert len(blocks_of(base_of("llama"))) == SHAPE["num_hidden_layers"]
    assert not blocks_of(base_of("llama", hidden_act="gelu"))
    shared = base_of("llama", backend=BackendName.reference)
    shared.model.config._attn_implementation = "eager"
    assert known_blocks(shared, {}) == []
    shared.model.config._attn_implementation = "sdpa"
    shared.base.linears = shared.base.linears[:-1]  # a layer of a block is not among them
    assert known_blocks(shared, {}) == []


@pytest.mark.parametrize("target", ["0.self_attn.o_proj", "0.mlp.up_proj", "0.mlp.down_proj"])
def test_one_adapted_layer_of_the_first_block_has_the_same_bits(target: str) -> None:
    """Nothing before it asks for gradients."""
    lora = LoraConfig(rank=4, alpha=8.0, target_modules=[target])
    assert_same_bits(three_ways("llama", [lora], packed=False))
