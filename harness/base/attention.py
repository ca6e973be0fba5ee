"""How a model attends, layer by layer, read from its configuration. Imports no torch.

A backend that lays rows end to end in one buffer needs no more than this to attend as the model does, or the
reason why it must leave the model alone. `harness.base.twin` holds the description to what the model does.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAttention:
    """Which earlier positions of its own example a position of one layer sees."""

    window: int | None = None
    """Positions that it sees, itself included; None: all before it."""
    chunk: int | None = None
    """Length of the chunks into which an example is cut; a position sees its own chunk. None: uncut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKind:
    """The attention of a model that is computed by transformers' interface for attention functions."""

    causal: bool
    layers: tuple[LayerAttention, ...]
    soft_cap: float | None
    """Scores s become cap · tanh(s / cap) before the softmax."""
    sinks: bool
    """Whether each head has a learned logit that takes its share of the softmax and no value."""


@dataclass(frozen=True, slots=True)
class UnknownAttention:
    """A model whose attention its configuration does not tell."""

    reason: str
    """Ends the sentence "it cannot be told how the model attends: …"."""


_ALIBI = ("bloom", "mpt")
_SINKS = (
    "flint",
    "gpt_oss",
    "granite_swa",
    "granitemoe_swa",
    "mimo_v2_flash",
)


def attention_of(config: Any) -> AttentionKind | UnknownAttention:
    """Return how the causal LM of a transformers configuration attends."""
    text = config.get_text_config()
    if has_alibi(text):
        return UnknownAttention("its positions are a bias on the scores (ALiBi)")
    if not _uses_the_interface(config):
        return UnknownAttention(
            f"models of type {text.model_type} compute attention in code of their own"
        )
    layers = layers_of(text)
    if isinstance(layers, UnknownAttention):
        return layers
    return AttentionKind(
        causal=not attends_both_ways(config),
        layers=layers,
        soft_cap=getattr(text, "attn_logit_softcapping", None),
        sinks=text.model_type in _SINKS,
    )


def has_alibi(config: Any) -> bool:
    """Say whether a model knows where a token stands by a bias on the scores that grows with the distance."""
    return config.model_type in _ALIBI or bool(getattr(config, "alibi", False))


def most_positions(config: Any) -> tuple[int | None, str]:
    """Return the length up to which a row is the same in any company, and what is beyond.

    None where the configuration does not say. The text ends the sentence "rows of N tokens, and the model …".
    """
    text = config.get_text_config()
    most: int | None = getattr(text, "max_position_embeddings", None)
    longrope = _longrope_positions(getattr(text, "rope_parameters", None))
    if longrope is not None and (most is None or longrope < most):
        return longrope, (
            "turns all rows of a batch by other frequencies (longrope) as soon as one is longer than "
            f"{longrope}, so that a run's numbers would depend on its company"
        )
    return most, f"has {most} positions"


def _longrope_positions(rope: Any) -> int | None:
    """Return the length beyond which longrope has other frequencies; None for other rotations."""
    if not isinstance(rope, dict):
        return None
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    found = [
        each.get("original_max_position_embeddings")
        for each in kinds
        if each.get("rope_type") == "longrope"
    ]
    return min((each for each in found if isinstance(each, int)), default=None)


def attends_both_ways(config: Any) -> bool:
    """Say whether a configuration names a model whose positions see those after them.

    Encoders can be loaded as causal LMs; without `is_decoder` they see the tokens that they are to predict.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    text = config.get_text_config()
    if not getattr(text, "is_causal", True):
        return True
    if getattr(text, "use_bidirectional_attention", None) in (
        True,
        "all",
    ):  # "vision": of images only
        return True
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    return is_encoder and not getattr(text, "is_decoder", True)


def implementation_of(config: Any, wanted: str) -> str:
    """Return the attention implementation that a model runs: eager where transformers has no sdpa for it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if wanted == "sdpa" and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return "sdpa" if model._supports_sdpa else "eager"
    return wanted


def _uses_the_interface(config: Any) -> bool:
    """Say whether the model takes its attention function from transformers' registry."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False  # code that came with the checkpoint
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return bool(model._supports_attention_backend)


def layers_of(config: Any) -> tuple[LayerAttention, ...] | UnknownAttention:
    """Return what each layer of a text model sees, as transformers' masks for it are chosen."""
    kinds = kinds_of(config)
    types = getattr(config, "layer_types", None)
    if types is None:
        count = getattr(config, "num_hidden_layers", None)
        if count is None:
            return UnknownAttention("its configuration does not say how many layers it has")
        return (kinds[None],) * count
    for number, name in enumerate(types):
        if name not in kinds:
            return UnknownAttention(
                f"its layer {number} is of the type {name}, which is no plain attention"
            )
    return tuple(kinds[name] for name in types)


def kinds_of(config: Any) -> dict[str | None, LayerAttention]:
    """Return what layers see by their type in `layer_types`; None: where a model has no such list."""
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    return {
        None: LayerAttention(window=window) if window else LayerAttention(chunk=chunk),
        "full_attention": LayerAttention(),
        "sliding_attention": LayerAttention(window=window),
        "chunked_attention": LayerAttention(chunk=chunk),
    }
