"""The architectures that people have, tiny and random, in every layout: losses equal, or a stated refusal.

python -m bench.models > docs/models.md
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from harness.base.attention import AttentionKind, implementation_of
from harness.base.build import Base, freeze
from harness.base.packed_rows import attends_as_described
from harness.config.schema import LoraConfig, QuantConfig, QuantFormat
from harness.data.compact import folded, trimmed
from harness.data.rows import NO_LOSS, Batch
from harness.engine.micro_step import Work, packed_gradients
from harness.engine.shared_base import SharedBase

WINDOW = 16
LENGTH = 64
LENGTHS = (60, 9, 40, 12, 5, 17, 23, 16, 8, 31)
"""Rows on both sides of the window."""
TOLERANCE = 1e-5

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_ALTERNATING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 8,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
_HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", _SIZES),
    "Qwen 2": ("qwen2", _SIZES),
    "Qwen 3": ("qwen3", {**_SIZES, "head_dim": 8}),
    "Mistral with window": ("mistral", {**_SIZES, "sliding_window": WINDOW}),
    "Gemma 2": ("gemma2", {**_SIZES, **_ALTERNATING}),
    "Gemma 3": ("gemma3_text", {**_SIZES, **_ALTERNATING}),
    "Phi-3 with window": ("phi3", {**_SIZES, "sliding_window": WINDOW}),
    "GPT-NeoX": ("gpt_neox", {k: v for k, v in _SIZES.items() if "key_value" not in k}),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "OPT": ("opt", {**_HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "Falcon": ("falcon", _HEADS),
    "Falcon with ALiBi": ("falcon", {**_HEADS, "alibi": True}),
    "BLOOM": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "OLMo 2": ("olmo2", _SIZES),
    "OLMo 3": ("olmo3", {**_SIZES, **{k: v for k, v in _ALTERNATING.items() if k != "head_dim"}}),
    "Granite": ("granite", _SIZES),
    "Cohere 2": ("cohere2", {**_SIZES, **_ALTERNATING}),
    "SmolLM3": ("smollm3", _SIZES),
    "gpt-oss": ("gpt_oss", {**_SIZES, **_ALTERNATING, "num_local_experts": 4}),
    "Llama 4 (chunks)": (
        "llama4_text",
        {
            **_SIZES,
            "head_dim": 8,
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"],
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
        },
    ),
    "Mixtral": ("mixtral", {**_SIZES, "num_local_experts": 4, "sliding_window": WINDOW}),
    "Qwen 3 MoE": ("qwen3_moe", {**_SIZES, "num_experts": 4, **_EXPERTS}),
}
LAYOUTS = ("padded", "side by side", "packed", "cohort of two")


def tiny_base(model_type: str, fields: dict[str, Any]) -> Base:
    """Return a random model of a type as an unquantized frozen base."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=64, **special, **fields)
    config._attn_implementation = implementation_of(config, "sdpa")
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.12)
    return freeze(model, QuantConfig(format=QuantFormat.none), torch.device("cpu"))


def padded_rows() -> Batch:
    """Return rows of `LENGTHS` random tokens, each padded to `LENGTH`, with loss on their second half."""
    draw = torch.Generator().manual_seed(1)
    ids_BT = torch.zeros(len(LENGTHS), LENGTH, dtype=torch.int64)
    targets_BT = torch.full_like(ids_BT, NO_LOSS)
    for row, length in enumerate(LENGTHS):
        ids_BT[row, :length] = torch.randint(3, 64, (length,), generator=draw)
        targets_BT[row, length // 2 : length - 1] = ids_BT[row, length // 2 + 1 : length]
    return Batch.of(input_ids_BT=ids_BT, targets_BT=targets_BT, segments_BT=None)


def losses(base: Base, layout: str) -> list[float]:
    """Return the loss of each run in a layout. Raises ValueError with the reason where it is refused."""
    shared, padded = SharedBase(base), padded_rows()
    joined = trimmed if shared.why_apart else folded
    match layout:
        case "padded":
            batches = [padded]
        case "side by side":
            batches = [joined(padded)]
        case "packed":
            if shared.why_apart is not None:
                raise ValueError(shared.why_apart)
            batches = [folded(_longer(padded))]
        case _:
            batches = [joined(padded), trimmed(padded)]
    work = []
    for batch in batches:
        adapter = shared.attach(LoraConfig(rank=2, alpha_over_rank=2.0), seed=0)
        noise = torch.randn(adapter.flat_P.shape, generator=torch.Generator().manual_seed(0))
        adapter.flat_P.add_(noise, alpha=0.1)
        tokens = batch.num_loss_tokens
        work.append(
            Work(
                adapter=adapter, batch=batch, loss_tokens=tokens, dropout_key=None, recompute=False
            )
        )
    return [float(each.loss) for each in packed_gradients(shared, work)]


def _longer(batch: Batch) -> Batch:
    """Return the same rows padded to twice their length, into which more examples fit."""
    return Batch.of(
        input_ids_BT=F.pad(batch.input_ids_BT, (0, LENGTH)),
        targets_BT=F.pad(batch.targets_BT, (0, LENGTH), value=NO_LOSS),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One model's line of the table."""

    name: str
    attention: str
    padded: float
    cells: dict[str, str]
    """By layout: the largest difference from the padded loss, or why it is refused."""
    differences: dict[str, float]
    described: str


def measure(name: str) -> Row:
    """Return what one model gives in each layout."""
    model_type, fields = MODELS[name]
    base = tiny_base(model_type, fields)
    (padded,) = losses(base, "padded")
    cells: dict[str, str] = {}
    differences: dict[str, float] = {}
    for layout in LAYOUTS[1:]:
        base = tiny_base(model_type, fields)
        try:
            found = losses(base, layout)
        except ValueError as error:
            cells[layout] = f"refused: {error}"
            continue
        differences[layout] = max(abs(each - padded) for each in found)
        cells[layout] = f"{differences[layout]:.0e}"
    if (reason := SharedBase(base).why_apart) is not None:
        cells["side by side"] += " (a row each)"
        assert reason
    kind = attends_as_described(base.model.config)
    described = "yes" if isinstance(kind, AttentionKind) else f"no: {kind.reason}"
    return Row(name, base.model.config._attn_implementation, padded, cells, differences, described)


def document() -> Iterator[str]:
    """Yield the lines of docs/models.md."""
    import transformers

    yield "# Models"
    yield ""
    yield "Printed by `python -m bench.models`: tiny random models, of the architectures of the real"
    yield f"ones, on {len(LENGTHS)} rows of {min(LENGTHS)} to {max(LENGTHS)} tokens, with windows and chunks"
    yield f"of {WINDOW}. A cell is the difference from the loss of the padded rows, in nats a token; what"
    yield "cannot be laid out so says why. Side by side is what every run does unasked, packed is"
    yield "`data.packing=true`, the cohort is two runs of one pass. Flat: whether a backend without masks"
    yield f"can attend as the model does. transformers {transformers.__version__}, CPU, float32."
    yield ""
    yield "| model | attention | loss | side by side | packed | cohort of two | flat |"
    yield "|---|---|--:|---|---|---|---|"
    for name in MODELS:
        row = measure(name)
        cells = " | ".join(row.cells[layout] for layout in LAYOUTS[1:])
        yield f"| {name} | {row.attention} | {row.padded:.5f} | {cells} | {row.described} |"


if __name__ == "__main__":
    for line in document():
        print(line, flush=True)
