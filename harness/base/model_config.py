"""A model's transformers configuration as the frozen base has it, and what is refused by it alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.base.attention import attends_both_ways, implementation_of
from harness.base.source import ModelSource
from harness.config.schema import ModelConfig
from harness.errors import RequestError, says_out_of_memory


@contextmanager
def refusing(source: ModelSource) -> Iterator[None]:
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


def read_config(source: ModelSource, model: ModelConfig) -> Any:
    """Return a model's transformers configuration, prepared. Raises RequestError where none can be used."""
    with refusing(source):
        if source.gguf is None:
            config = _read(source, model)
        else:  # whose reader walks over the whole vocabulary each time
            stat = Path(source.location).stat()
            config = copy.deepcopy(_read_gguf(source, (stat.st_size, stat.st_mtime_ns)))
        _refuse_what_is_no_dense_causal_model(source, config)
        return prepared_config(config, model)


def prepared_config(config: Any, model: ModelConfig) -> Any:
    """Choose the attention implementation, and switch every dropout of the frozen base off.

    Dropout in the base would draw from a generator that all runs of a cohort share.
    """
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    config._attn_implementation = implementation_of(config, model.attention.value)
    return config


def _read(source: ModelSource, model: ModelConfig) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        **source.pretrained, trust_remote_code=model.trust_remote_code
    )


@lru_cache(maxsize=4)
def _read_gguf(source: ModelSource, _stamp: tuple[int, int]) -> Any:
    return _read(source, ModelConfig())


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
