"""Random-weight models of common sizes and random rows: time and memory do not ask what is learnt."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.base.build import Base, freeze
from harness.config.schema import FloatType, LoraConfig, OptimConfig, QuantConfig, RunConfig
from harness.data.rows import NO_LOSS, TokenRows

RANK, ALPHA, LEARNING_RATE, MAX_GRAD_NORM = 16, 32.0, 1e-4, 0.3
ROW_LENGTH = 512
ROWS = 256
"""Rows that there are; batches are drawn from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's dimensions."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_size: int | None = None
    """None: hidden / heads."""
    model_type: str = "llama"


SHAPES = {
    "toy": Shape(
        hidden=64, intermediate=192, layers=2, heads=4, kv_heads=2, vocabulary=1024
    ),  # to try the code
    "0.5B": Shape(
        hidden=1280, intermediate=3456, layers=22, heads=20, kv_heads=4, vocabulary=32000
    ),
    "1.5B": Shape(
        hidden=2048, intermediate=5632, layers=28, heads=32, kv_heads=8, vocabulary=32000
    ),
    "qwen3_0.6b": Shape(
        hidden=1024,
        intermediate=3072,
        layers=28,
        heads=16,
        kv_heads=8,
        vocabulary=151936,
        head_size=128,
        model_type="qwen3",
    ),
    "qwen3_1.7b": Shape(
        hidden=2048,
        intermediate=6144,
        layers=28,
        heads=16,
        kv_heads=8,
        vocabulary=151936,
        head_size=128,
        model_type="qwen3",
    ),
    "qwen3_8b": Shape(
        hidden=4096,
        intermediate=12288,
        layers=36,
        heads=32,
        kv_heads=8,
        vocabulary=151936,
        head_size=128,
        model_type="qwen3",
    ),
    "gemma3_1b": Shape(
        hidden=1152,
        intermediate=6912,
        layers=26,
        heads=4,
        kv_heads=1,
        vocabulary=262144,
        head_size=256,
        model_type="gemma3_text",
    ),
    "phi3_mini": Shape(
        hidden=3072,
        intermediate=8192,
        layers=32,
        heads=32,
        kv_heads=32,
        vocabulary=32064,
        model_type="phi3",
    ),
    "7B": Shape(
        hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000
    ),
}


def compute_type(device: torch.device) -> FloatType:
    """Return what activations are computed in: bfloat16 on a GPU, float32 on a CPU."""
    return FloatType.bfloat16 if device.type == "cuda" else FloatType.float32


def shape_config(shape: Shape) -> Any:
    """Return transformers' configuration of a shape."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        shape.model_type,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        head_dim=shape.head_size or shape.hidden // shape.heads,
    )
    config._attn_implementation = "sdpa"
    return config


def random_base(
    shape: Shape, quant: QuantConfig, device: torch.device, compute: FloatType | None = None
) -> Base:
    """Return a frozen base with weights drawn on its device; `compute`: none for what the device likes."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    quant = replace(quant, compute_dtype=compute or compute_type(device))
    config = shape_config(shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return freeze(model, quant, device)


def random_rows(shape: Shape, tokens: int, most: int = ROW_LENGTH) -> TokenRows:
    """Return random rows without padding, of which the second half carries loss."""
    length = min(tokens, most)
    generator = torch.Generator().manual_seed(0)
    ids_NT = torch.randint(3, shape.vocabulary, (ROWS, length), generator=generator)
    targets_NT = torch.full_like(ids_NT, NO_LOSS)
    targets_NT[:, length // 2 : -1] = ids_NT[:, length // 2 + 1 :]
    return TokenRows(
        input_ids_NT=ids_NT.int(),
        targets_NT=targets_NT.int(),
        segments_NT=None,
        lengths_N=torch.full((ROWS,), length),
        source_N=torch.arange(ROWS),
    )


def run_config(quant: QuantConfig, tokens: int, seed: int) -> RunConfig:
    """Return one run: `tokens` positions a step, in one micro-batch."""
    return RunConfig(
        quant=quant,
        lora=LoraConfig(rank=RANK, alpha=ALPHA),
        optim=OptimConfig(
            lr=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            batch_size=tokens // min(tokens, ROW_LENGTH),
            steps=10_000,
        ),
        seed=seed,
    )
