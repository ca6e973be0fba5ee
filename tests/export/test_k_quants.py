"""K types against those who read them, llama.cpp's own packing where it is there, and published files."""

import ctypes
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from harness.export.gguf_file import GgufType, _storage, write_gguf
from harness.export.k_quants import KType, packed
from tests.random_models import LLAMA, save_random_model

IDS = torch.arange(3, 35).view(1, -1)
SEEDED = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
GGML_ERRORS = {KType.Q4_K: 5.101673e-3, KType.Q5_K: 1.315348e-3, KType.Q6_K: 3.156538e-4}
"""Mean squared errors of ggml_quantize_chunk (llama-cpp-python 0.3.36) on these weights."""


def decoded(data: np.ndarray, kind: KType) -> np.ndarray:
    return gguf.dequantize(data, gguf.GGMLQuantizationType[kind.value])


def squared_error(weights: np.ndarray, kind: KType) -> float:
    back = decoded(packed(torch.from_numpy(weights), kind), kind)
    return float(np.square(weights - back).mean())


@pytest.mark.parametrize(("kind", "top"), [(KType.Q4_K, 15), (KType.Q5_K, 31)])
def test_values_on_the_grid_of_a_super_block_come_back_as_they_were(kind: KType, top: int) -> None:
    """Groups with scales and minima of up to 6 bits, the largest 63: d and dmin are 1."""
    random = np.random.default_rng(1)
    scales, minima = random.integers(1, 64, (5, 8, 1)), random.integers(0, 64, (5, 8, 1))
    scales[:, 5], minima[:, 6] = 63, 63
    codes = random.integers(0, top + 1, (5, 8, 32))
    codes[:, :, 3], codes[:, :, 17] = 0, top
    weights = (scales * codes - minima).reshape(5, 256).astype(np.float32)
    assert np.array_equal(decoded(packed(torch.from_numpy(weights), kind), kind), weights)


def test_values_on_the_grid_of_q6_k_come_back_as_they_were() -> None:
    random = np.random.default_rng(2)
    scales = random.integers(1, 128, (5, 16, 1)) * random.choice([-1, 1], (5, 16, 1))
    scales[:, 11] = -128  # the largest becomes -128 whole units, so that the unit is 1
    codes = random.integers(-31, 32, (5, 16, 16))
    codes[:, :, 4] = -32
    weights = (scales * codes).reshape(5, 256).astype(np.float32)
    back = decoded(packed(torch.from_numpy(weights), KType.Q6_K), KType.Q6_K)
    assert np.array_equal(back, weights)


@pytest.mark.parametrize("kind", KType)
def test_the_error_is_that_of_ggmls_own_packing_and_below_q4_0s(kind: KType) -> None:
    error = squared_error(SEEDED, kind)
    assert error == pytest.approx(GGML_ERRORS[kind], rel=2e-3)
    plain = gguf.GGMLQuantizationType.Q4_0
    back = gguf.dequantize(gguf.quantize(SEEDED, plain), plain)
    assert error < 0.75 * np.square(SEEDED - back).mean()


@pytest.mark.parametrize("kind", KType)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1e-30])
def test_super_blocks_of_one_value_are_finite_and_near_it(kind: KType, value: float) -> None:
    weights = np.full((2, 512), value, dtype=np.float32)
    back = decoded(packed(torch.from_numpy(weights), kind), kind)
    assert np.abs(back - weights).max() <= 1e-3 * abs(value) + 1e-8


@pytest.mark.data
@pytest.mark.parametrize("kind", KType)
def test_the_bytes_are_ggmls_own_but_for_near_ties(kind: KType) -> None:
    """Sums in another order choose otherwise where two divisions of a range are as good."""
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    ours = packed(torch.from_numpy(SEEDED), kind)
    theirs = np.zeros_like(ours)
    type_ = gguf.GGMLQuantizationType[kind.value]
    quantize(type_, SEEDED.ctypes.data, theirs.ctypes.data, 0, *SEEDED.shape, None)
    assert (ours == theirs).mean() > 0.98


@pytest.mark.parametrize(
    ("blocks", "heads", "kv_heads", "counted"),
    [
        (32, 32, 32, {"Q4_K": 193, "Q6_K": 33}),  # Llama-2-7B
        (80, 64, 8, {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81}),  # Llama-2-70B
    ],
)
def test_the_mixture_is_that_of_published_files(blocks, heads, kv_heads, counted) -> None:
    """Counts that llama.cpp prints on loading Q4_K_M files of these models."""
    config = AutoConfig.for_model(
        "llama",
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=False,
    )
    assert mixture(config, 4096) == counted


def mixture(config: Any, row: int) -> dict[str, int]:
    parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    names = ["token_embd.weight", "output.weight"]
    names += [f"blk.{n}.{part}.weight" for n in range(config.num_hidden_layers) for part in parts]
    return dict(Counter(_storage(name, row, GgufType.q4_k_m, config) for name in names))


@pytest.mark.parametrize(
    ("row", "storages"), [(576, {"Q5_0", "Q8_0"}), (4096, {"Q4_K", "Q6_K"}), (40, {"F16"})]
)
def test_rows_without_whole_super_blocks_fall_back(row: int, storages: set[str]) -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=8, tie_word_embeddings=True)
    assert set(mixture(config, row)) == storages


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> tuple[Any, Any]:
    """A model whose rows are super-blocks, but for those of its FFN's outputs; llama.cpp wants merges."""
    shape = LLAMA | {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 9}
    tokenizer: Any = AutoTokenizer.from_pretrained(pretrained)
    directory = tmp_path_factory.mktemp("model")
    save_random_model(directory, "llama", vocabulary=len(tokenizer), **shape)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), tokenizer


def types_in(file: Path) -> dict[str, str]:
    return {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}


def test_a_file_is_read_as_what_was_packed(model, tmp_path) -> None:
    dense, tokenizer = model
    matrices = write_gguf(dense, tokenizer, tmp_path / "it.gguf", GgufType.q4_k_m, name="it")
    assert set(matrices) == {"Q4_K", "Q6_K", "Q5_0", "Q8_0"}
    read: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="it.gguf", dtype=torch.float32
    )
    weight = dense.model.layers[0].self_attn.v_proj.weight
    expected = decoded(packed(weight, KType.Q6_K), KType.Q6_K)
    assert np.array_equal(read.model.layers[0].self_attn.v_proj.weight.detach().numpy(), expected)


@pytest.mark.data
def test_llama_cpp_computes_what_was_packed(model, tmp_path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    dense, tokenizer = model
    write_gguf(dense, tokenizer, tmp_path / "it.gguf", GgufType.q4_k_m, name="it")
    read: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="it.gguf", dtype=torch.float32
    )
    llama = llama_cpp.Llama(str(tmp_path / "it.gguf"), n_ctx=64, logits_all=True, verbose=False)
    llama.eval(IDS[0].tolist())
    theirs = torch.tensor(llama.scores[: IDS.shape[1]])
    llama.close()
    ours = read(IDS).logits[0].detach()
    assert (ours - theirs).abs().max() < 0.05 * ours.abs().max()  # products of 8-bit activations


@pytest.mark.data
@pytest.mark.parametrize("tied", [False, True])
def test_each_tensor_has_the_type_that_llama_cpp_gives_it(model, tied, tmp_path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    dense, tokenizer = model
    if tied:
        config = AutoConfig.for_model(**{**dense.config.to_dict(), "tie_word_embeddings": True})
        dense = AutoModelForCausalLM.from_config(config)
    plain, theirs, ours = (tmp_path / f"{name}.gguf" for name in ("f16", "theirs", "ours"))
    write_gguf(dense, tokenizer, plain, GgufType.f16, name="it")
    write_gguf(dense, tokenizer, ours, GgufType.q4_k_m, name="it")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    paths = [str(path).encode() for path in (plain, theirs)]
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)) == 0
    assert types_in(ours) == types_in(theirs)
