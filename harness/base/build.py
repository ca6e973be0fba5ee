"""Build the frozen base: load dense weights once, store the blocks packed, keep the result in a cache."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.base.attention import most_positions
from harness.base.blocks import (
    block_linears,
    finish_base,
    linear_modules,
    pack_blocks,
    uncovered_weights,
    weight_and_bias,
)
from harness.base.cache import cache_entry, load_entry, save_entry
from harness.base.experts import expose_experts
from harness.base.layers import FrozenLinear
from harness.base.model_config import Described, read_config, refusing
from harness.base.prequantized import StoredWeights, check_stored
from harness.base.quick_imports import quiet_libraries, replaced
from harness.base.source import ModelSource
from harness.base.storage import Dense, Storage, storage_of
from harness.base.stored_layers import load_stored
from harness.base.targets import LinearSpec
from harness.config.schema import FloatType, ModelConfig, QuantConfig, QuantFormat
from harness.errors import RequestError, first_line, says_out_of_memory

_TRIED_POSITIONS = 8
_ROUNDING = {FloatType.float32: 1e-5, FloatType.bfloat16: 2e-2, FloatType.float16: 4e-3}
"""Share of the largest logit that another company in a batch may move one by."""


@dataclass(slots=True, kw_only=True)
class Base:
    """A frozen base on its device, with everything needed to adapt, feed and describe it."""

    model: Any
    """The transformers causal LM: blocks packed, everything else in the compute type, nothing trainable."""
    source: ModelSource
    storage: Storage
    linears: tuple[LinearSpec, ...]
    device: torch.device
    tokenizer: Any = None
    """None where nothing is to be fed to it."""
    fingerprint: str = ""
    """Of the model, where its files are known."""
    from_cache: bool = False
    config: ModelConfig | None = None
    """How the model was asked for, where it can be read again."""
    processes: int = 1
    """Among how many processes every tensor is divided (`harness.base.sharding`)."""

    @property
    def quant(self) -> QuantConfig:
        """The settings of its storage."""
        return self.storage.quant


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutline:
    """What a model is, known without its weights."""

    linears: tuple[LinearSpec, ...]
    uncovered: dict[str, int]
    """Matrices of the blocks that lie in no linear layer, with their sizes."""
    max_positions: int | None
    """Longest row that the model has positions for, or None if it does not say."""
    beyond: str
    """What is the matter with longer rows (`harness.base.attention.most_positions`)."""
    num_embeddings: int
    """Tokens that the model has embeddings for."""
    config: Any
    """Its transformers configuration, as the base will have it."""
    came_rounded: str | None
    """The storage that its weights came in, if that has rounded them already, such as `Q4_1`."""
    stored: StoredWeights | None
    """That storage, where `quant=as_stored` takes it over."""


def inspect_model(source: ModelSource, config: ModelConfig) -> ModelOutline:
    """Return the model's outline without loading any weight."""
    described = read_config(source, config)
    model = _empty_model(described, config, source)
    positions, beyond = most_positions(model.config)
    linears = tuple(block_linears(model))
    return ModelOutline(
        linears=linears,
        uncovered=uncovered_weights(model, linears),
        max_positions=positions,
        beyond=beyond,
        num_embeddings=model.get_input_embeddings().weight.shape[0],
        config=model.config,
        came_rounded=_came_rounded(source, described.stored),
        stored=described.stored,
    )


def outline_base(
    source: ModelSource, config: ModelConfig, quant: QuantConfig, device: torch.device
) -> Base:
    """Return what `build_base` would, without weights and tokenizer: for questions about the base alone.

    Raises RequestError for a storage that this model cannot have.
    """
    described = read_config(source, config)
    check_stored(source.name, quant, described.stored)
    model = _empty_model(described, config, source)
    return Base(
        model=model,
        source=source,
        storage=storage_of(quant, described.stored),
        linears=tuple(block_linears(model)),
        device=device,
        config=config,
    )


def _came_rounded(source: ModelSource, stored: StoredWeights | None) -> str | None:
    if stored is not None:
        return stored.label
    header = source.gguf_header()
    return header.storage if header is not None and header.is_rounded else None


def build_base(
    source: ModelSource,
    config: ModelConfig,
    quant: QuantConfig,
    *,
    fingerprint: str,
    device: torch.device,
    cache: Path,
    quantized_on: torch.device | None = None,
) -> Base:
    """Return the base in `quant`'s storage on `device`, from the cache if it is there.

    `quantized_on`: where the weights that no cache has are quantized, layer by layer; none: on `device`.
    """
    quiet_libraries()
    described = read_config(source, config)
    check_stored(source.name, quant, described.stored)
    storage = storage_of(quant, described.stored)
    model, from_cache = None, False
    if described.stored is not None:
        with refusing(source):
            empty = _empty_model(described, config, source)
            model = load_stored(source, empty, described.stored, storage, device)
        _refuse_not_finite(model, source)
    else:
        entry = cache_entry(cache, fingerprint, storage)
        empty_model = partial(_empty_model, described, config, source)
        model = load_entry(entry, empty_model, storage, device)
        from_cache = model is not None
        if model is None:
            model = load_dense(source, config)
            expose_experts(model)
            _refuse_not_finite(model, source)
            pack_blocks(model, storage, device, quantized_on)
            if not isinstance(storage, Dense):
                save_entry(entry, model, fingerprint, storage)
    finish_base(model, storage.dtype, device)
    return Base(
        model=model,
        tokenizer=load_tokenizer(source, config),
        source=source,
        fingerprint=fingerprint,
        storage=storage,
        linears=tuple(block_linears(model)),
        device=device,
        from_cache=from_cache,
        config=config,
    )


def freeze(model: Any, quant: QuantConfig, device: torch.device) -> Base:
    """Return a dense model that is at hand, packed and frozen as by `build_base`, without a tokenizer."""
    quiet_libraries()
    expose_experts(model)
    linears, storage = tuple(block_linears(model)), storage_of(quant)
    pack_blocks(model, storage, device)
    finish_base(model, storage.dtype, device)
    return Base(
        model=model,
        source=ModelSource(name=type(model).__name__, directory=None, revision=None),
        storage=storage,
        linears=linears,
        device=device,
    )


def dense_weights(base: Base) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights [O, I] of the blocks' linear layers as the model came, by name; it is read again."""
    assert base.config is not None, "a base of a model that was at hand has nothing to be read from"
    model = load_dense(base.source, base.config)
    expose_experts(model)
    for name, module in linear_modules(model):
        yield name, weight_and_bias(module)[0].detach()


@torch.no_grad()
def check_causal(base: Base) -> None:
    """Refuse a model in which the last token of a row changes what stands before it."""
    most = base.model.get_input_embeddings().weight.shape[0]
    ids_BT = torch.arange(2 * _TRIED_POSITIONS, device=base.device).view(2, -1) % most
    ids_BT[1, :-1] = ids_BT[0, :-1]
    try:
        logits_BTV = base.model(input_ids=ids_BT, use_cache=False).logits
    except (RuntimeError, AttributeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(str(error)):
            raise
        raise RequestError(
            f"model={base.source.name} does not run with its linear layers stored as {base.storage.label}: "
            f"{first_line(error)} (an architecture that reads weights around its layers, as "
            "Mamba does, cannot have them packed)"
        ) from error
    one_TV, other_TV = logits_BTV.float()
    moved = (one_TV - other_TV).abs().amax(dim=1)
    if not bool(moved[:-1].max() <= _ROUNDING[base.quant.compute_dtype] * one_TV.abs().max()):
        raise RequestError(
            f"model={base.source.name} is not causal: its logits change with the token that they are to "
            "predict; give a causal language model"
        )


def load_tokenizer(source: ModelSource, config: ModelConfig) -> Any:
    """Return the model's tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    with refusing(source):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            **source.pretrained, trust_remote_code=config.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_not_finite(model: Any, source: ModelSource) -> None:
    """Raise RequestError for weights that are no numbers: one would make a block, then every loss, NaN."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        low, high = torch.aminmax(parameter.detach())
        if bool(torch.isfinite(low) & torch.isfinite(high)):
            continue
        bad = int((~torch.isfinite(parameter)).sum())
        raise RequestError(
            f"model={source.name} has NaN or infinite weights: {bad} of the {parameter.numel()} in {name}; "
            "use a checkpoint whose training did not diverge"
        )


# The model, dense or empty -----------------------------------------------------------------------


def _empty_model(
    described: Described, config: ModelConfig, source: ModelSource, *, exposed: bool = True
) -> Any:
    """Return the model with its parameters on the meta device and its buffers real.

    `exposed`: its fused experts as linear layers, not as transformers has them.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with refusing(source), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(described.config), trust_remote_code=config.trust_remote_code
        )
    if exposed:
        expose_experts(model)
    return model


def _decoded(source: ModelSource, config: ModelConfig, described: Described) -> Any:
    """Return the model of a checkpoint that came quantized, with dense layers in its blocks."""
    assert described.stored is not None
    storage = storage_of(QuantConfig(format=QuantFormat.as_stored), described.stored)
    with refusing(source):
        empty = _empty_model(described, config, source, exposed=False)
        model = load_stored(source, empty, described.stored, storage, torch.device("cpu"))
    dense = storage_of(QuantConfig(format=QuantFormat.none))
    for name, layer in linear_modules(model):
        assert isinstance(layer, FrozenLinear), name
        weight_OI = layer.dense_weight(torch.float32)
        model.set_submodule(name, dense.quantize(weight_OI, layer.bias, torch.device("cpu")))
    return model


def no_bar_of_gguf() -> AbstractContextManager[None]:
    """Keep the bar off the terminal that transformers' GGUF reader draws whatever it is told."""
    from transformers import modeling_gguf_pytorch_utils as reader

    drawn: Any = getattr(reader, "tqdm", None)
    return (
        nullcontext() if drawn is None else replaced(reader, "tqdm", partial(drawn, disable=True))
    )


def load_dense(source: ModelSource, config: ModelConfig) -> Any:
    """Return transformers' own model in the type its weights are stored in, on the CPU.

    What came quantized is decoded to float32.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    described = read_config(source, config)
    if described.stored is not None:
        return _decoded(source, config, described)
    with refusing(source), no_bar_of_gguf():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source.pretrained,
            config=described.config,
            dtype="auto",
            trust_remote_code=config.trust_remote_code,
        )
    if source.gguf is not None:  # what transformers remembers of the file's storage is left behind
        decoded = loaded.state_dict()
        loaded = _empty_model(described, config, source, exposed=False)
        loaded.load_state_dict(decoded, strict=False, assign=True)
        loaded.tie_weights()
    return loaded
