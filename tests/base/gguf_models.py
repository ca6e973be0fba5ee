"""Tiny random Llamas written as GGUF files by the package gguf, as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.random_models import LLAMA

_HEADS, _KV_HEADS, _BLOCKS = 4, 2, 2
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def random_llama() -> Any:
    """Return the model that `save_gguf` writes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=300, bos_token_id=1, eos_token_id=2, **LLAMA, tie_word_embeddings=True
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.1)
    return model


def save_gguf(file: Path, storage: str = "Q4_1", tokenizer: bool = True) -> dict[str, torch.Tensor]:
    """Write the model; returns its block matrices as transformers has them, decoded by the package gguf."""
    import gguf

    kind = gguf.GGMLQuantizationType[storage]
    model = random_llama()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(_BLOCKS)
    writer.add_context_length(LLAMA["max_position_embeddings"])
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(LLAMA["hidden_size"] // _HEADS)
    writer.add_vocab_size(300)
    if tokenizer:
        _add_tokenizer(writer)
    decoded = {}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name == "lm_head.weight":
            continue
        if not name.startswith("model.layers."):
            known = {"model.embed_tokens.weight": "token_embd.weight"}
            writer.add_tensor(known.get(name, "output_norm.weight"), values)
            continue
        number, _, part = name.removeprefix("model.layers.").partition(".")
        part = part.removesuffix(".weight")
        target = f"blk.{number}.{_NAMES[part]}.weight"
        if values.ndim == 1:
            writer.add_tensor(target, values)
            continue
        heads = {"self_attn.q_proj": _HEADS, "self_attn.k_proj": _KV_HEADS}.get(part)
        stored = values if heads is None else _permuted(values, heads)
        packed = gguf.quantize(stored, kind)
        writer.add_tensor(target, packed, raw_dtype=kind)
        back = gguf.dequantize(packed, kind)
        back = back if heads is None else _unpermuted(back, heads)
        decoded[name] = torch.from_numpy(np.ascontiguousarray(back))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in the order that llama.cpp rotates them in (its convert_hf_to_gguf.py, `permute`)."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _unpermuted(weights: np.ndarray, heads: int) -> np.ndarray:
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _add_tokenizer(writer: Any) -> None:
    """Add a byte-level vocabulary, as GPT-2's with the bytes alone."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<s>", "</s>", *alphabet, "th"]
    tokens += [f"<unused{n}>" for n in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 257 + [5] * (len(tokens) - 260))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
