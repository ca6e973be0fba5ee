"""Checkpoints that came quantized: their own library's values, or one sentence of refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.base.build import Base, build_base, load_dense
from harness.base.prequantized import BitsAndBytesWeights, GroupedWeights, stored_weights
from harness.base.quick_imports import quiet_libraries
from harness.base.source import find_model
from harness.base.stored_layers import _Mismatch, _words
from harness.config.compose import compose_run
from harness.config.schema import FloatType, ModelConfig, QuantConfig, QuantFormat
from harness.config.validate import validate
from harness.errors import RequestError
from harness.measure.memory import base_size
from tests.random_models import LLAMA, save_random_model

AS_STORED = QuantConfig(format=QuantFormat.as_stored)
CPU = torch.device("cpu")


def dense(directory: Path) -> Path:
    quiet_libraries()
    return save_random_model(directory, "llama", **LLAMA)


def base_of(directory: Path, quant: QuantConfig = AS_STORED) -> Base:
    config = ModelConfig(name=str(directory))
    source = find_model(config)
    return build_base(
        source, config, quant, fingerprint="here", device=CPU, cache=directory / "cache"
    )


def rewritten(directory: Path, quantization: Any, tensors: dict[str, torch.Tensor]) -> Path:
    """Put quantized layers and their configuration in the place of a checkpoint's own."""
    fields = json.loads((directory / "config.json").read_text())
    fields["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(fields))
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, directory / "model.safetensors"
    )
    return directory


def is_block_matrix(key: str, tensor: torch.Tensor) -> bool:
    return ".layers." in key and tensor.ndim == 2


# bitsandbytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kept_in", ["uint8", "bfloat16"])
def test_bitsandbytes_4_bit_uploads_have_its_own_values(
    tmp_path: Path, kind: str, nested: bool, kept_in: str
):
    from bitsandbytes.functional import QuantState, dequantize_4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = dense(tmp_path / "plain")
    asked = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=getattr(torch, kept_in),
    )
    upload = AutoModelForCausalLM.from_pretrained(plain, quantization_config=asked)
    upload.save_pretrained(tmp_path / "upload")
    for file in plain.glob("tokenizer*"):
        (tmp_path / "upload" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "upload" / "model.safetensors")
    base = base_of(tmp_path / "upload")
    assert len(base.linears) == 14
    for spec in base.linears:
        start = f"{spec.name}.weight"
        own = {k: v.clone() for k, v in tensors.items() if k.startswith(f"{start}.")}
        state = QuantState.from_dict(own, CPU)
        state.dtype = torch.float32
        bytes_ = tensors[start].view(torch.uint8)
        ours = base.model.get_submodule(spec.name).dense_weight(torch.float32)
        assert torch.equal(ours, looked_up(bytes_, state)), spec.name
        # Of rows that are no whole number of blocks bitsandbytes 0.50.2 decodes something else on a CPU.
        if spec.in_features % 64 == 0:
            assert torch.equal(ours, dequantize_4bit(bytes_, state)), spec.name
    assert torch.equal(
        base.model.get_input_embeddings().weight, tensors["model.embed_tokens.weight"].float()
    )
    assert base_size(base).bits_per_param < 4.6


def looked_up(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Return the weight as bitsandbytes defines it: its value for a code, times its block's constant."""
    from bitsandbytes.functional import dequantize_blockwise

    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    pairs = packed.reshape(-1)
    codes = torch.stack([pairs >> 4, pairs & 15], dim=1).reshape(-1, state.blocksize)
    return (state.code[codes.long()] * absmax.unsqueeze(1)).view(state.shape)


def test_bitsandbytes_8_bit_uploads_have_its_own_values(tmp_path: Path):
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    directory = dense(tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for key, value in load_file(directory / "model.safetensors").items():
        if not is_block_matrix(key, value):
            tensors[key] = value
            continue
        codes, largest, _ = int8_vectorwise_quant(value.half())
        tensors[key], tensors[key.replace(".weight", ".SCB")] = codes, largest
        tensors[key.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
    rewritten(directory, {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors)
    base = base_of(directory)
    for spec in base.linears:
        theirs = int8_vectorwise_dequant(
            tensors[f"{spec.name}.weight"], tensors[f"{spec.name}.SCB"]
        )
        assert torch.equal(base.model.get_submodule(spec.name).dense_weight(torch.float32), theirs)


# GPTQ and AWQ ------------------------------------------------------------------------------------


def made_by_hand(key: str, weight_OI: torch.Tensor, group_I: torch.Tensor, least_zero: int) -> Any:
    """Return codes [I, O], zero points and scales [G, O] of a layer, and the weight [O, I] they stand for."""
    draw = torch.Generator().manual_seed(sum(map(ord, key)))
    outputs, inputs = weight_OI.shape
    groups = int(group_I.max()) + 1
    codes = torch.randint(0, 16, (inputs, outputs), generator=draw)
    zeros = torch.randint(least_zero, 16, (groups, outputs), generator=draw)
    scales = (torch.rand(groups, outputs, generator=draw) / 50 + 1e-3).half()
    stands_for = torch.empty(outputs, inputs)
    for i in range(inputs):  # w = s (q - z), as their papers write it
        group = int(group_I[i])
        stands_for[:, i] = scales[group].float() * (codes[i] - zeros[group]).float()
    return codes, zeros, scales, stands_for


def packed(values: torch.Tensor, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> torch.Tensor:
    """Pack eight columns into an int32 word; nibble n holds column order[n]."""
    rows, columns = values.shape
    words = torch.zeros(rows, columns // 8, dtype=torch.int64)
    for word in range(columns // 8):
        for nibble, place in enumerate(order):
            words[:, word] |= values[:, 8 * word + place].long() << (4 * nibble)
    return words.where(words < 2**31, words - 2**32).to(torch.int32)


def gptq_checkpoint(
    directory: Path, layout: str, group_size: int, reordered: bool
) -> dict[str, torch.Tensor]:
    """Write every matrix of the blocks as GPTQ does; returns what they stand for."""
    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    less = 1 if layout == "gptq" else 0
    for key, value in load_file(directory / "model.safetensors").items():
        if not is_block_matrix(key, value):
            tensors[key] = value
            continue
        name, inputs = key.removesuffix(".weight"), value.shape[1]
        group_I = torch.arange(inputs) // (inputs if group_size == -1 else group_size)
        if reordered:
            group_I = group_I[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
        codes, zeros, scales, expected[name] = made_by_hand(key, value, group_I, less)
        tensors[f"{name}.qweight"] = packed(codes.T).T
        tensors[f"{name}.qzeros"] = packed(zeros - less)
        tensors[f"{name}.scales"] = scales
        tensors[f"{name}.g_idx"] = group_I.int()
    fields = {"quant_method": "gptq", "bits": 4, "group_size": group_size, "desc_act": reordered}
    rewritten(directory, fields | {"checkpoint_format": layout, "sym": False}, tensors)
    return expected


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("group_size", "reordered"), [(32, False), (16, True), (-1, False)])
def test_gptq_is_read_exactly(tmp_path: Path, layout: str, group_size: int, reordered: bool):
    expected = gptq_checkpoint(dense(tmp_path), layout, group_size, reordered)
    base = base_of(tmp_path)
    for name, weight in expected.items():
        layer: Any = base.model.get_submodule(name)
        assert torch.equal(layer.dense_weight(torch.float32), weight), name
        assert torch.equal(layer.dense_weight(torch.bfloat16), weight.bfloat16()), name
    assert len(expected) == len(base.linears) == 14


@pytest.mark.parametrize("absent", [False, True])
def test_groups_lie_as_inputs_do_where_nobody_says_otherwise(tmp_path: Path, absent: bool):
    """Writers leave the groups of inputs out, or empty, where they are in order."""
    directory = dense(tmp_path)
    expected = gptq_checkpoint(directory, "gptq", 32, False)
    tensors = load_file(directory / "model.safetensors")
    kept = {
        key: torch.empty(0, dtype=torch.int32) if key.endswith("g_idx") else value
        for key, value in tensors.items()
        if not absent or not key.endswith("g_idx")
    }
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    base = base_of(tmp_path)
    for name, weight in expected.items():
        layer: Any = base.model.get_submodule(name)
        assert torch.equal(layer.dense_weight(torch.float32), weight), name


@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_awq_is_read_exactly(tmp_path: Path, group_size: int):
    directory = dense(tmp_path)
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ, awq/modules/linear/gemm.py, order_map
    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    for key, value in load_file(directory / "model.safetensors").items():
        if not is_block_matrix(key, value):
            tensors[key] = value
            continue
        name, inputs = key.removesuffix(".weight"), value.shape[1]
        group_I = torch.arange(inputs) // (inputs if group_size == -1 else group_size)
        codes, zeros, scales, expected[name] = made_by_hand(key, value, group_I, 0)
        tensors[f"{name}.qweight"] = packed(codes, order)
        tensors[f"{name}.qzeros"] = packed(zeros, order)
        tensors[f"{name}.scales"] = scales
    fields = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm"}
    rewritten(directory, fields | {"zero_point": True}, tensors)
    base = base_of(directory)
    for name, weight in expected.items():
        assert torch.equal(base.model.get_submodule(name).dense_weight(torch.float32), weight), name


def test_gradients_pass_through_a_gptq_layer_as_through_the_dense_one(tmp_path: Path):
    expected = gptq_checkpoint(dense(tmp_path), "gptq", 32, True)
    name, weight = next(iter(expected.items()))
    layer: Any = base_of(tmp_path).model.get_submodule(name)
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    y = layer(x)
    assert torch.equal(y, x @ weight.T)
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * y.detach() @ weight, atol=1e-5)


def test_the_dense_model_of_an_upload_is_the_decoded_one(tmp_path: Path):
    expected = gptq_checkpoint(dense(tmp_path), "gptq_v2", 16, True)
    config = ModelConfig(name=str(tmp_path))
    model = load_dense(find_model(config), config)
    state = model.state_dict()
    assert all(torch.equal(state[f"{name}.weight"], weight) for name, weight in expected.items())
    base = base_of(tmp_path)
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        of_base, of_dense = (
            each(input_ids=ids).logits for each in (base.model, model.eval().float())
        )
    assert torch.allclose(of_base, of_dense, atol=1e-5)


def test_bits_are_those_of_the_codes_scales_and_zero_points(tmp_path: Path):
    gptq_checkpoint(dense(tmp_path), "gptq", 32, False)
    assert base_size(base_of(tmp_path)).bits_per_param == 4 + (16 + 8) / 32


def test_a_plan_of_an_upload_has_the_bytes_of_the_base(tmp_path: Path):
    from harness.plan.base_bytes import base_bytes
    from harness.plan.model import PlannedModel

    gptq_checkpoint(dense(tmp_path), "gptq", 16, True)
    config = ModelConfig(name=str(tmp_path))
    planned = PlannedModel.from_source(find_model(config), config)
    planned.use(AS_STORED)
    size, base = base_bytes(planned.outline, planned.storage), base_size(base_of(tmp_path))
    assert (size.weight_bytes, size.constant_bytes, size.bits_per_param) == (
        base.weight_bytes,
        base.constant_bytes,
        base.bits_per_param,
    )


def test_a_run_trains_on_an_upload_and_records_what_it_is(tmp_path: Path, capsys: Any):
    from harness.cli.main import dispatch

    gptq_checkpoint(dense(tmp_path / "m"), "gptq", 32, False)
    words = ["run", "--json", f"model={tmp_path / 'm'}", "quant=as_stored", "lora.rank=2"]
    words += ["data=rule", "data.train_rows=8", "data.validation_rows=4", "data.max_length=64"]
    words += ["optim.steps=2", "eval=loss", "tracker=none", f"paths.out={tmp_path / 'out'}"]
    assert dispatch(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["provenance"]["base_storage"] == "gptq int4, groups of 32"
    assert record["metrics"]["base/bits_per_param"] == 4.75
    assert dispatch([*words[:3], "quant=nf4", *words[4:]]) == 2
    assert "use quant=as_stored" in capsys.readouterr().err


# What is refused ---------------------------------------------------------------------------------


def test_each_storage_wants_its_own_kind_of_checkpoint(tmp_path: Path):
    directory = dense(tmp_path)
    with pytest.raises(RequestError, match=r"did not; use quant=none"):
        base_of(directory)
    gptq_checkpoint(directory, "gptq", 32, False)
    for quant_format in (QuantFormat.nf4, QuantFormat.none):
        with pytest.raises(RequestError, match=r"already quantized \(gptq int4, groups of 32"):
            base_of(directory, QuantConfig(format=quant_format))
    with pytest.raises(RequestError, match="starts from the dense weights"):
        validate(compose_run(["quant=as_stored", "lora.init=pissa"]))
    with pytest.raises(RequestError, match="block_size"):
        validate(compose_run(["quant=as_stored", "quant.block_size=128"]))


def without(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if not key.endswith(part)}


DAMAGES = {
    "a layer left dense": (lambda t: without(t, "1.mlp.up_proj.qweight"), "came without qweight"),
    "no zero points": (lambda t: without(t, "qzeros"), "came without qzeros"),
    "no norm": (lambda t: without(t, "model.norm.weight"), "no plain tensor for model.norm.weight"),
    "scales of another shape": (
        lambda t: {k: v[:, :8] if k.endswith("scales") else v for k, v in t.items()},
        "scale of .* came as",
    ),
    "groups that are not there": (
        lambda t: {k: v + 9 if k.endswith("g_idx") else v for k, v in t.items()},
        "groups beyond",
    ),
    "a scale that is no number": (
        lambda t: {k: v * float("nan") if k.endswith("scales") else v for k, v in t.items()},
        "NaN or infinite",
    ),
    "codes of 64 bits": (
        lambda t: {k: v.long() if k.endswith("qweight") else v for k, v in t.items()},
        "int32 is what is read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_as_it_says_is_refused_by_the_layer(tmp_path: Path, damage: str):
    gptq_checkpoint(dense(tmp_path), "gptq", 32, True)
    change, message = DAMAGES[damage]
    file = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)
    with pytest.raises(RequestError, match=message):
        base_of(tmp_path)


# What configurations on the hub say --------------------------------------------------------------

BNB = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0}
READ: dict[str, tuple[Any, str]] = {
    "unsloth nf4": (
        BNB
        | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "bitsandbytes nf4_dq",
    ),
    "old bitsandbytes without a method": (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes nf4",
    ),
    "transformers' default": (BNB | {"_load_in_4bit": True}, "bitsandbytes fp4"),
    "int8": (BNB | {"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes int8"),
    "TheBloke's GPTQ": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True},
        "gptq int4, groups of 128",
    ),
    "GPTQ, a group a row": (
        {"quant_method": "gptq", "bits": 4, "group_size": -1},
        "gptq int4, one group a row",
    ),
    "GPTQModel": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        "gptq_v2 int4, groups of 32",
    ),
    "AutoAWQ": (
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "version": "GEMM",
            "zero_point": True,
        },
        "awq int4, groups of 128",
    ),
}
REFUSED: dict[str, Any] = {
    "GPTQ in 3 bits": {"quant_method": "gptq", "bits": 3, "group_size": 128},
    "GPTQ in 8 bits": {"quant_method": "gptq", "bits": 8, "group_size": 128},
    "GPTQ for Marlin": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
    "GPTQ, layer by layer": {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*": {}}},
    "GPTQ without bits": {"quant_method": "gptq"},
    "GPTQ in odd groups": {"quant_method": "gptq", "bits": 4, "group_size": "128"},
    "AWQ for GEMV": {"quant_method": "awq", "bits": 4, "version": "gemv"},
    "AWQ without zero points": {"quant_method": "awq", "bits": 4, "zero_point": False},
    "HQQ": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
    "FP8": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
    "FBGEMM": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
    "MXFP4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4"}}},
    "AQLM": {"quant_method": "aqlm", "nbits_per_codebook": 16},
    "AutoRound": {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_gptq"},
    "bitsandbytes in no bits": BNB,
    "bitsandbytes in another type": BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"},
    "a method that nobody knows": {"quant_method": "w4a16_by_somebody"},
    "no method": {"bits": 4},
    "an empty one": {},
    "a name": "awq",
    "a list": [4],
}


@pytest.mark.parametrize("what", READ)
def test_what_an_upload_says_is_understood(what: str):
    fields, label = READ[what]
    stored = stored_weights("m", fields)
    assert isinstance(stored, BitsAndBytesWeights | GroupedWeights)
    assert stored.label == label


@pytest.mark.parametrize("backend", ["autoawq", None, "marlin", "qbits"])
def test_whoever_has_packed_awq_for_products_as_autoawq_does_is_read(backend: str | None):
    fields = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
    fields |= {} if backend is None else {"backend": backend}
    stored = stored_weights("m", fields)
    assert isinstance(stored, GroupedWeights)
    assert (stored.group_size, stored.reordered) == (64, False)
    with pytest.raises(RequestError, match=r"AWQ, laid out for llm-awq"):
        stored_weights("m", fields | {"backend": "llm-awq"})


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_anything_else_is_refused_in_a_sentence_before_weights_are_read(
    tmp_path: Path, what: str, command: str, capsys: Any
):
    from harness.cli.main import dispatch

    directory = save_random_model(tmp_path / "m", "llama", **LLAMA)
    fields = json.loads((directory / "config.json").read_text())
    fields["quantization_config"] = REFUSED[what]
    (directory / "config.json").write_text(json.dumps(fields))
    (directory / "model.safetensors").write_bytes(b"never read")
    words = [command, f"model={directory}", "quant=as_stored", f"paths.out={tmp_path / 'out'}"]
    assert dispatch([*words, "tracker=none"] if command == "run" else words) == 2
    error = capsys.readouterr().err
    assert "already quantized by" in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_the_compute_type_is_that_of_the_run(tmp_path: Path):
    gptq_checkpoint(dense(tmp_path), "gptq", 32, False)
    quant = QuantConfig(format=QuantFormat.as_stored, compute_dtype=FloatType.bfloat16)
    assert base_of(tmp_path, quant).model.get_input_embeddings().weight.dtype is torch.bfloat16


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(8, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int64)],
    ids=["a row", "64 bits"],
)
def test_words_that_are_no_table_of_int32_are_refused(packed: torch.Tensor) -> None:
    with pytest.raises(_Mismatch, match="int32 is what is read"):
        _words(packed)
