"""Bases built from directories: every architecture and format, the cache, what is counted."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from harness.base.build import Base, build_base, check_causal, inspect_model
from harness.base.source import find_model, model_fingerprint
from harness.base.targets import adapted_layers, is_attention, shortest_names
from harness.config.schema import FloatType, LoraConfig, ModelConfig, QuantConfig, QuantFormat
from harness.config.storage import ROUNDING
from harness.errors import RequestError
from harness.measure.memory import base_size
from tests.random_models import SHAPES, save_random_model

CPU = torch.device("cpu")


def build(directory: Path, cache: Path, quant: QuantConfig) -> Base:
    config = ModelConfig(name=str(directory))
    source = find_model(config)
    fingerprint = model_fingerprint(source, cache / "memo.json")
    return build_base(source, config, quant, fingerprint=fingerprint, device=CPU, cache=cache)


@pytest.fixture(scope="module", params=sorted(SHAPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    return save_random_model(directory, request.param, **SHAPES[request.param])


def test_unquantized_base_gives_the_logits_of_transformers(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.randint(3, 259, (2, 17))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model).eval()(ids).logits
        got = build(model, tmp_path, QuantConfig(format=QuantFormat.none)).model(ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quant_format", [QuantFormat.nf4, QuantFormat.int4, QuantFormat.int8])
def test_the_cache_gives_the_same_base_without_quantizing_again(
    model: Path, tmp_path: Path, quant_format: QuantFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    quant = QuantConfig(format=quant_format)
    ids = torch.randint(3, 259, (2, 17))
    first = build(model, tmp_path, quant)

    def never(*_: object) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr("harness.base.storage.Storage.quantize", never)
    second = build(model, tmp_path, quant)
    assert (first.from_cache, second.from_cache) == (False, True)
    with torch.no_grad():
        assert torch.equal(first.model(ids).logits, second.model(ids).logits)


def test_one_cache_entry_serves_both_compute_types(model: Path, tmp_path: Path) -> None:
    build(model, tmp_path, QuantConfig(format=QuantFormat.int4))
    base = build(
        model,
        tmp_path,
        QuantConfig(format=QuantFormat.int4, compute_dtype=FloatType.bfloat16),
    )
    assert base.from_cache
    assert base.model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16


def test_a_damaged_cache_entry_is_made_again(model: Path, tmp_path: Path) -> None:
    quant = QuantConfig(format=QuantFormat.nf4)
    build(model, tmp_path, quant)
    (packed,) = tmp_path.glob("bases/*/packed.safetensors")
    packed.write_bytes(packed.read_bytes()[:-100])
    assert not build(model, tmp_path, quant).from_cache
    assert build(model, tmp_path, quant).from_cache


def test_changed_weights_are_another_base(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    source = find_model(ModelConfig(name=str(copy)))
    before = model_fingerprint(source, tmp_path / "memo.json")
    assert before == model_fingerprint(find_model(ModelConfig(name=str(model))), tmp_path / "m2")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_fingerprint(source, tmp_path / "memo.json") != before


def test_base_is_the_same_whatever_is_adapted_and_head_stays_dense(
    model: Path, tmp_path: Path
) -> None:
    base = build(model, tmp_path, QuantConfig(format=QuantFormat.nf4))
    head = base.model.get_output_embeddings().weight
    embedding = base.model.get_input_embeddings().weight
    assert head.dtype == embedding.dtype == torch.float32
    assert all("layers." in spec.name or ".h." in spec.name for spec in base.linears)


def test_logical_parameters_are_those_of_the_unpacked_model(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(model).num_parameters()
    for quant_format in ROUNDING:
        base = build(model, tmp_path, QuantConfig(format=quant_format))
        assert base_size(base).logical_params == expected


def test_base_bytes_are_the_bytes_of_its_tensors(model: Path, tmp_path: Path) -> None:
    size = base_size(build(model, tmp_path, QuantConfig(format=QuantFormat.none)))
    assert size.bits_per_param == 32
    assert size.constant_bytes == 0
    outline = inspect_model(find_model(ModelConfig(name=str(model))), ModelConfig(name=str(model)))
    linear = sum(spec.in_features * spec.out_features for spec in outline.linears)
    packed = base_size(build(model, tmp_path, QuantConfig(format=QuantFormat.int4)))
    assert size.weight_bytes - packed.weight_bytes == 4 * linear - linear // 2
    assert packed.constant_bytes == linear // 64 * 4 + 16 * 4  # one scale a block, one table


def test_targets_are_resolved_by_set_and_name(model: Path) -> None:
    config = ModelConfig(name=str(model))
    linears = inspect_model(find_model(config), config).linears
    everything = adapted_layers(LoraConfig(target_modules=["all_linear"], alpha=1), linears)
    attention = adapted_layers(LoraConfig(target_modules=["attention"], alpha=1), linears)
    mlp = adapted_layers(LoraConfig(target_modules=["mlp"], alpha=1), linears)
    assert everything == list(linears)
    assert {*attention, *mlp} == set(linears)
    assert not {*attention} & {*mlp}
    assert mlp
    assert [spec for spec in linears if is_attention(spec.name)] == attention
    for adapted in (everything, attention, mlp):
        short = LoraConfig(target_modules=shortest_names(adapted, linears), alpha=1)
        assert adapted_layers(short, linears) == adapted


def test_a_target_that_matches_nothing_is_refused_with_near_names(model: Path) -> None:
    config = ModelConfig(name=str(model))
    linears = inspect_model(find_model(config), config).linears
    last = linears[0].name.rsplit(".", 1)[-1]
    with pytest.raises(RequestError, match=rf"matches no linear layer.*near names: .*{last}"):
        adapted_layers(LoraConfig(target_modules=["all_linear", last + "x"], alpha=1), linears)


def test_a_rank_above_the_smallest_dimension_is_refused(model: Path) -> None:
    config = ModelConfig(name=str(model))
    linears = inspect_model(find_model(config), config).linears
    limit = min(min(spec.in_features, spec.out_features) for spec in linears)
    adapted_layers(LoraConfig(rank=limit, alpha=1), linears)
    with pytest.raises(RequestError, match=f"smallest target dimension {limit} "):
        adapted_layers(LoraConfig(rank=limit + 1, alpha=1), linears)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_directory_is_refused(
    model: Path, tmp_path: Path, missing: str, said: str
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(RequestError, match=said):
        find_model(ModelConfig(name=str(copy)))


@pytest.mark.parametrize("quant_format", [QuantFormat.none, QuantFormat.nf4, QuantFormat.int8])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["mlp", "norm", "embed"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, quant_format: QuantFormat, value: float, part: str
) -> None:
    from safetensors.torch import load_file, save_file

    directory = save_random_model(tmp_path / "llama", "llama", **SHAPES["llama"])
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if part in name)
    tensors[name].view(-1)[1] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=rf"NaN or infinite weights: 1 of the \d+ in {name}"):
        build(directory, tmp_path, QuantConfig(format=quant_format))


def test_base_dropout_is_off(tmp_path: Path) -> None:
    directory = save_random_model(tmp_path / "gpt2", "gpt2", **SHAPES["gpt2"])
    assert json.loads((directory / "config.json").read_text())["resid_pdrop"] == 0.1
    model = build(directory, tmp_path, QuantConfig(format=QuantFormat.none)).model.train()
    ids = torch.randint(3, 259, (2, 17))
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_model_that_breaks_without_a_word_is_refused_by_the_name_of_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_random_model(tmp_path / "model", "llama", **SHAPES["llama"])
    base = build(directory, tmp_path, QuantConfig(format=QuantFormat.none))

    def forward(**_: object) -> None:
        raise AttributeError

    monkeypatch.setattr(base.model, "forward", forward)
    with pytest.raises(RequestError, match=r"does not run .*: AttributeError \("):
        check_causal(base)
