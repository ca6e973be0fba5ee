"""Several examples in one row: masks by the model's own rules, and which architectures keep them apart.

A mask of ours never takes the place of a model's: transformers builds one for each type of layer (windows,
chunks, everything), and only adds that examples see themselves alone. Whether a model obeys is a property of
its architecture, tried on constructed rows with its twin. Shape suffixes: B rows, T positions.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from harness.base.attention import (
    AttentionKind,
    LayerAttention,
    UnknownAttention,
    attention_of,
    has_alibi,
    kinds_of,
    layers_of,
)
from harness.base.twin import VOCABULARY, WINDOW, twin_of
from harness.config.keyed import Keyed
from harness.errors import first_line

_LENGTHS = (3 * WINDOW, WINDOW - 1, 2 * WINDOW, 1)
"""Examples of the constructed rows, on both sides of the twin's window."""
_DEAF, _EQUAL = 1e-3, 1e-4
"""Difference of logits that shows what a position sees; one that is rounding, of logits of about 1."""


def attention_arguments(model: Any, segments_BT: torch.Tensor) -> dict[str, Any]:
    """Return mask and positions for rows in which `segments_BT` numbers the examples, 0 the padding.

    A model with several types of layers takes a mask for each, by the type's name. Nothing here looks at
    what a tensor holds: the planner has none of it, and a captured pass must not wait for it.
    """
    config = model.config.get_text_config()
    positions_BT = restarting_positions(segments_BT)
    kinds, types = kinds_of(config), getattr(config, "layer_types", None)
    masks = {
        name: _mask(model, kinds[name], segments_BT, positions_BT) for name in set(types or [None])
    }
    return {
        "attention_mask": masks[None] if types is None else masks,
        "position_ids": positions_BT,
    }


def _mask(
    model: Any, layer: LayerAttention, segments_BT: torch.Tensor, positions_BT: torch.Tensor
) -> torch.Tensor:
    """Return transformers' mask for a kind of layer, and between examples nothing."""
    from transformers import masking_utils

    rows, length = segments_BT.shape
    if layer.window is not None:
        sees = masking_utils.sliding_window_causal_mask_function(layer.window)
    elif layer.chunk is not None:
        no_padding_B = torch.zeros(rows, dtype=torch.int64, device=segments_BT.device)
        sees = masking_utils.chunked_causal_mask_function(layer.chunk, no_padding_B)
    else:
        sees = masking_utils.causal_mask_function
    return masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[model.config._attn_implementation](
        batch_size=rows,
        q_length=length,
        kv_length=length,
        mask_function=_within_examples(sees, positions_BT, segments_BT),
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=model.get_input_embeddings().weight.dtype,
        config=model.config,
        use_vmap=False,
        device=segments_BT.device,
    )


def _within_examples(
    sees: Callable[..., Any], positions_BT: torch.Tensor, segments_BT: torch.Tensor
) -> Callable[..., torch.Tensor]:
    """Return a mask function that sees within an example what `sees` does, and of other examples nothing.

    As newer versions of transformers have it by a name that older ones lack.
    """

    def mask(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        same = segments_BT[batch, query] == segments_BT[batch, key]
        return same & sees(batch, head, positions_BT[batch, query], positions_BT[batch, key])

    return mask


def restarting_positions(segments_BT: torch.Tensor) -> torch.Tensor:
    """Return positions [B, T] that start again from 0 with every segment of a row."""
    steps_BT = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    first_BT = torch.where(starts_BT, steps_BT, torch.zeros_like(steps_BT)).cummax(dim=1).values
    return steps_BT - first_BT


# Which architectures keep examples apart ----------------------------------------------------------


def why_apart(config: Any) -> str | None:
    """Return why examples need rows of their own in the model of a transformers configuration, or None.

    The reason ends the sentence "rows hold one example each: …".
    """
    text = config.get_text_config()
    if has_alibi(text):
        return "positions are a bias on the scores (ALiBi), which transformers counts from a row's start"
    layers = layers_of(text)
    if isinstance(layers, UnknownAttention):
        return layers.reason
    return _tried(_keyed(config), _by_masks)


def attends_as_described(config: Any) -> AttentionKind | UnknownAttention:
    """Return the attention that a configuration describes, if the twin attends so in one flat buffer."""
    kind = attention_of(config)
    if isinstance(kind, UnknownAttention):
        return kind
    reason = _tried(_keyed(config), _by_description)
    return kind if reason is None else UnknownAttention(reason)


def _keyed(config: Any) -> Keyed[Any]:
    """Return a configuration that counts as another where it reads the same: each is tried once."""
    read = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return Keyed(config, f"{type(config)} {config._attn_implementation} {read}")


_Attempt = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""(twin, ids [1, T], segments [1, T]) -> logits [T, V] with the examples in one row."""


@lru_cache(maxsize=32)
def _tried(asked: Keyed[Any], attempt: _Attempt) -> str | None:
    """Return why the twin does not give examples in one row what it gives them in rows of their own."""
    try:
        twin = twin_of(asked.value, asked.value._attn_implementation)
        examples = _examples()
        alone = torch.cat([twin(input_ids=each).logits[0] for each in examples])
        ids_1T = torch.cat(examples, dim=1)
        numbers = torch.arange(1, len(_LENGTHS) + 1).repeat_interleave(torch.tensor(_LENGTHS))
        unmasked = twin(input_ids=ids_1T).logits[0]
        together = attempt(twin, ids_1T, numbers.unsqueeze(0))
    except Exception as error:  # whatever an architecture does that nobody has foreseen
        return f"no small twin of its architecture could be tried ({first_line(error)[:120]})"
    scale = alone.abs().mean()
    if not (unmasked - alone).abs().max() > _DEAF * scale:
        return "its small twin does not show what a position sees"
    if not (together - alone).abs().max() <= _EQUAL * scale:
        return "examples in one row see each other in its architecture"
    return None


def _examples() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (1, length), generator=draw) for length in _LENGTHS]


@torch.no_grad()
def _by_masks(twin: Any, ids_1T: torch.Tensor, segments_1T: torch.Tensor) -> torch.Tensor:
    return twin(input_ids=ids_1T, **attention_arguments(twin, segments_1T)).logits[0]


@torch.no_grad()
def _by_description(twin: Any, ids_1T: torch.Tensor, segments_1T: torch.Tensor) -> torch.Tensor:
    """Attend by the description alone, as a backend does that knows where examples start, and no mask."""
    from transformers import AttentionInterface

    kind = attention_of(twin.config)
    if isinstance(kind, UnknownAttention):
        raise NotImplementedError(kind.reason)
    AttentionInterface.register("described", _described(kind, segments_1T[0]))
    twin.set_attn_implementation("described")
    return twin(input_ids=ids_1T, position_ids=restarting_positions(segments_1T)).logits[0]


def _described(kind: AttentionKind, segments_T: torch.Tensor) -> Callable[..., Any]:
    """Return an attention function of transformers' interface that knows the description, and no mask."""
    place_T = restarting_positions(segments_T.unsqueeze(0))[0]
    same_TT = segments_T[:, None] == segments_T[None, :]
    behind_TT = place_T[:, None] - place_T[None, :]

    def attend(
        module: Any,
        query_BHTD: torch.Tensor,
        key_BSTD: torch.Tensor,
        value_BSTD: torch.Tensor,
        attention_mask: None,
        scaling: float,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        layer, groups = kind.layers[module.layer_idx], query_BHTD.shape[1] // key_BSTD.shape[1]
        sees_TT = same_TT & (behind_TT >= 0) if kind.causal else same_TT
        if layer.window is not None:
            sees_TT = sees_TT & (behind_TT < layer.window)
        if layer.chunk is not None:
            chunk_T = place_T // layer.chunk
            sees_TT = sees_TT & (chunk_T[:, None] == chunk_T[None, :])
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key_BSTD, value_BSTD))
        scores = query_BHTD @ key.transpose(-1, -2) * scaling
        if kind.soft_cap is not None:
            scores = kind.soft_cap * torch.tanh(scores / kind.soft_cap)
        scores = scores.masked_fill(~sees_TT, -torch.inf)
        if kind.sinks:
            assert s_aux is not None, "some of its layers have attention sinks, others none"
            sink = s_aux.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = F.softmax(scores, dim=-1)[..., : place_T.shape[0]]
        return (weights @ value).transpose(1, 2).contiguous(), None

    return attend
