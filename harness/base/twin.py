"""A tiny random twin of a model: the same architecture, with other sizes, on which properties are tried out.

What follows from an architecture (that examples in one row stay apart, that a position sees nothing after
it) is found on the twin in milliseconds, before any weight is read, and never depends on data. Windows and
chunks are cut to a few positions, so that a row of the twin is longer than any of them.
"""

import copy
from typing import Any

import torch

WINDOW = 5
"""Positions that a layer of the twin sees where the model's sees a window or a chunk."""
VOCABULARY = 64
_MOST_PARAMETERS = 2_000_000
_HIDDEN, _HEADS, _FEED_FORWARD, _EXPERTS = 32, 4, 48, 4
_SIZES = {
    "hidden_size": _HIDDEN,
    "n_embd": _HIDDEN,
    "d_model": _HIDDEN,
    "word_embed_proj_dim": _HIDDEN,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_attention_heads": _HEADS,
    "n_head": _HEADS,
    "n_heads": _HEADS,
    "rotary_dim": _HIDDEN // _HEADS,
    "global_head_dim": _HIDDEN // _HEADS,
    "query_pre_attn_scalar": _HIDDEN // _HEADS,
    "intermediate_size": _FEED_FORWARD,
    "intermediate_size_mlp": _FEED_FORWARD,
    "moe_intermediate_size": _FEED_FORWARD,
    "shared_expert_intermediate_size": _FEED_FORWARD,
    "ffn_dim": _FEED_FORWARD,
    "ffn_hidden_size": _FEED_FORWARD,
    "n_inner": _FEED_FORWARD,
    "num_local_experts": _EXPERTS,
    "num_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "top_k_experts": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": _HIDDEN // _HEADS,
    "qk_rope_head_dim": _HIDDEN // _HEADS,
    "v_head_dim": _HIDDEN // _HEADS,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,
    "keep_window_size": WINDOW,
    "vocab_size": VOCABULARY,
}
"""Fields of transformers' configurations that say how large a model is, where they are set."""


def twin_of(config: Any, implementation: str) -> Any:
    """Return the twin of the causal LM of a transformers configuration, in float32 on the CPU.

    Raises whatever transformers raises where an architecture does not come in these sizes.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    own_code = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING  # allowed when it was read
    small = copy.deepcopy(config)
    parts = (getattr(small, name, None) for name in small.sub_configs)
    for each in (small, small.get_text_config(), *(part for part in parts if part is not None)):
        _shrink(each)
    small._attn_implementation = implementation
    with torch.device("meta"):
        size = sum(
            each.numel()
            for each in AutoModelForCausalLM.from_config(
                small, trust_remote_code=own_code
            ).parameters()
        )
    if size > _MOST_PARAMETERS:
        raise ValueError(f"its smallest form known here has {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, trust_remote_code=own_code
        )
        for parameter in model.parameters():
            if (
                parameter.ndim >= 2
            ):  # louder than an initialization: what is seen shows in the logits
                parameter.data.normal_(0, 0.2)
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def _shrink(config: Any) -> None:
    """Give a configuration the twin's sizes, one layer of each kind that it has, and no dropout."""
    fields = config.to_dict()
    grouped = (fields.get("num_key_value_heads") or 1) < (fields.get("num_attention_heads") or 1)
    for name, size in _SIZES.items():
        given = fields.get(name) or (name in config.attribute_map and getattr(config, name))
        if given:  # some models have a size for each layer
            setattr(config, name, [size] * len(given) if isinstance(given, list) else size)
    if "head_dim" in fields:
        config.head_dim = _HIDDEN // _HEADS
    if "num_key_value_heads" in fields:
        config.num_key_value_heads = (_HEADS // 2) if grouped else _HEADS
    for name, value in fields.items():
        if "token_id" in name and isinstance(value, int | list):
            setattr(config, name, 0)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    _keep_few_layers(config)
    _use_plain_rotations(config)
    sparsity = getattr(config, "activation_sparsity_pattern", None)
    if sparsity:  # of few channels: it makes a rounding a difference
        config.activation_sparsity_pattern = [0.0] * len(sparsity)


def _keep_few_layers(config: Any) -> None:
    """Keep the first layer of every kind: kinds are told by the lists that have an entry for each layer."""
    count = getattr(config, "num_hidden_layers", None)
    if count is None:
        return
    lists = {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == count and not _is_a_numbering(value)
    }
    kinds: dict[tuple[str, ...], int] = {}
    for layer in range(count):
        kinds.setdefault(tuple(str(each[layer]) for each in lists.values()), layer)
    kept = sorted({*kinds.values(), *range(min(2, count))})
    for name, value in lists.items():
        setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    if getattr(config, "num_kv_shared_layers", None):
        config.num_kv_shared_layers = 0


def _is_a_numbering(values: Any) -> bool:
    """Say whether a list holds the numbers of layers, and not something about each."""
    return list(values) == sorted(set(values)) if all(type(v) is int for v in values) else False


def _use_plain_rotations(config: Any) -> None:
    """Leave out what scales rotations by factors of the model's own head size: it separates no examples."""
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if each.get("rope_type") == "longrope":
            for name in ("short_factor", "long_factor", "factor"):
                each.pop(name, None)
            each["rope_type"] = "default"
