"""Build the frozen base: load dense weights once, store the blocks packed, keep the result in a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.base.attention import attends_both_ways, implementation_of, most_positions
from harness.base.blocks import (
    block_linears,
    finish_base,
    linear_modules,
    pack_blocks,
    uncovered_weights,
    weight_and_bias,
)
from harness.base.cache import cache_entry, load_entry, save_entry
from harness.base.quick_imports import quiet_libraries
from harness.base.source import ModelSource
from harness.base.storage import Dense, Storage, storage_of
from harness.base.targets import LinearSpec
from harness.config.schema import FloatType, ModelConfig, QuantConfig
from harness.errors import RequestError, says_out_of_memory

_TRIED_POSITIONS = 8
_ROUNDING = {FloatType.float32: 1e-5, FloatType.bfloat16: 2e-2, FloatType.float16: 4e-3}
"""Share of the largest logit that another company in a batch may move one by."""


@dataclass(slots=True, kw_only=True)
class Base:
    """A frozen base on its device, with everything needed to adapt, feed and describe it."""

    model: Any
    """The transformers causal LM: blocks packed, everything else in the compute type, nothing trainable."""
    tokenizer: Any
    source: ModelSource
    fingerprint: str
    storage: Storage
    linears: tuple[LinearSpec, ...]
    device: torch.device
    from_cache: bool
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


def inspect_model(source: ModelSource, config: ModelConfig) -> ModelOutline:
    """Return the model's outline without loading any weight."""
    model = _empty_model(source, config)
    positions, beyond = most_positions(model.config)
    linears = tuple(block_linears(model))
    return ModelOutline(
        linears=linears,
        uncovered=uncovered_weights(model, linears),
        max_positions=positions,
        beyond=beyond,
        num_embeddings=model.get_input_embeddings().weight.shape[0],
        config=model.config,
    )


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
    storage = storage_of(quant)
    entry = cache_entry(cache, fingerprint, storage)
    model = load_entry(entry, lambda: _empty_model(source, config), storage, device)
    from_cache = model is not None
    if model is None:
        model = _load_dense(source, config)
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
    linears, storage = tuple(block_linears(model)), storage_of(quant)
    pack_blocks(model, storage, device)
    finish_base(model, storage.dtype, device)
    return Base(
        model=model,
        tokenizer=None,
        source=ModelSource(name=type(model).__name__, directory=None, revision=None),
        fingerprint="",
        storage=storage,
        linears=linears,
        device=device,
        from_cache=False,
    )


def dense_weights(base: Base) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights [O, I] of the blocks' linear layers as the model came, by name; it is read again."""
    assert base.config is not None, "a base of a model that was at hand has nothing to be read from"
    for name, module in linear_modules(_load_dense(base.source, base.config)):
        yield name, weight_and_bias(module)[0].detach()


@torch.no_grad()
def check_causal(base: Base) -> None:
    """Refuse a model in which the last token of a row changes what stands before it."""
    most = base.model.get_input_embeddings().weight.shape[0]
    ids_BT = torch.arange(2 * _TRIED_POSITIONS, device=base.device).view(2, -1) % most
    ids_BT[1, :-1] = ids_BT[0, :-1]
    one_TV, other_TV = base.model(input_ids=ids_BT, use_cache=False).logits.float()
    moved = (one_TV - other_TV).abs().amax(dim=1)
    if not bool(moved[:-1].max() <= _ROUNDING[base.quant.compute_dtype] * one_TV.abs().max()):
        raise RequestError(
            f"model={base.source.name} is not causal: its logits change with the token that they are to "
            "predict; give a causal language model"
        )


def load_tokenizer(source: ModelSource, config: ModelConfig) -> Any:
    """Return the model's tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    with _refusing(source):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source.location,
            revision=source.revision,
            trust_remote_code=config.trust_remote_code,
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


@contextmanager
def _refusing(source: ModelSource) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into a RequestError."""
    try:
        yield
    except RequestError:  # by a function within, which has said it all
        raise
    # A damaged or foreign file makes its reader raise anything: UnpicklingError, plain Exception
    # (tokenizers), AttributeError. None of it is ours, and nothing of a model that did not load is used.
    except Exception as error:
        if isinstance(error, MemoryError) or says_out_of_memory(str(error)):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = source.location if source.directory else f"Hugging Face id {source.location}"
        raise RequestError(
            f"model={source.name} cannot be loaded from {where}: {first} "
            "(a directory with config.json, safetensors weights and a tokenizer works offline; "
            "a Hugging Face id needs the network or a filled HF cache)"
        ) from error


def _read_config(source: ModelSource, config: ModelConfig) -> Any:
    """Return the transformers config with every dropout of the frozen base switched off.

    Dropout in the base would draw from a generator that all runs of a cohort share.
    """
    from transformers import AutoConfig

    with _refusing(source):
        model_config: Any = AutoConfig.from_pretrained(
            source.location,
            revision=source.revision,
            trust_remote_code=config.trust_remote_code,
        )
    _refuse_what_is_no_dense_causal_model(source, model_config)
    for name, value in model_config.to_dict().items():
        if ("drop" in name or "_pdrop" in name) and isinstance(value, float):
            setattr(model_config, name, 0.0)
    model_config._attn_implementation = implementation_of(model_config, config.attention.value)
    return model_config


def _refuse_what_is_no_dense_causal_model(source: ModelSource, config: Any) -> None:
    """Refuse encoders, and weights that are codes of another quantizer."""
    if attends_both_ways(config):
        raise RequestError(
            f"model={source.name} is an encoder ({config.model_type}): its positions see the tokens that "
            "they are to predict; give a causal language model (a checkpoint that was trained as a decoder "
            "says is_decoder in its config.json)"
        )
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        fields = quantized if isinstance(quantized, dict) else quantized.to_dict()
        raise RequestError(
            f"model={source.name} is already quantized ({fields.get('quant_method', 'unknown method')}, "
            "quantization_config of its config.json), and its codes are no weights; give the unquantized "
            "checkpoint, which quant=… quantizes"
        )


def _empty_model(source: ModelSource, config: ModelConfig) -> Any:
    """Return the model with its parameters on the meta device and its buffers real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with _refusing(source), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            _read_config(source, config), trust_remote_code=config.trust_remote_code
        )


def _load_dense(source: ModelSource, config: ModelConfig) -> Any:
    """Return the model in the type its weights are stored in, on the CPU."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _refusing(source):
        return AutoModelForCausalLM.from_pretrained(
            source.location,
            config=_read_config(source, config),
            revision=source.revision,
            dtype="auto",
            trust_remote_code=config.trust_remote_code,
        )
