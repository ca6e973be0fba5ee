"""A model's transformers configuration as the frozen base has it, and what is refused by it alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.base.attention import attends_both_ways, implementation_of
from harness.base.prequantized import StoredWeights, stored_weights
from harness.base.source import ModelSource
from harness.config.schema import ModelConfig
from harness.errors import RequestError, first_line, says_out_of_memory
from harness.parsing import read_json


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
        where = source.location if source.directory else f"Hugging Face id {source.location}"
        raise RequestError(
            f"model={source.name} cannot be loaded from {where}: {first_line(error)} "
            "(a directory with config.json, safetensors weights and a tokenizer works offline; "
            "a Hugging Face id needs the network or a filled HF cache)"
        ) from error


@dataclass(frozen=True, slots=True)
class Described:
    """What the files of a model say of it, but for its weights."""

    config: Any
    """Its transformers configuration, as the base has it: nothing in it quantizes or drops."""
    stored: StoredWeights | None
    """How its weights came quantized, if they did."""


def read_config(source: ModelSource, model: ModelConfig) -> Described:
    """Return what a model's configuration says. Raises RequestError where nothing can be made of it."""
    with refusing(source):
        if source.gguf is None:
            _judge_file(source)
            config = _read(source, model)
        else:  # whose reader walks over the whole vocabulary each time
            stat = Path(source.location).stat()
            config = copy.deepcopy(_read_gguf(source, (stat.st_size, stat.st_mtime_ns)))
        _refuse_encoders(source, config)
        return Described(stored=_stored(source, config), config=prepared_config(config, model))


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


def _refuse_encoders(source: ModelSource, config: Any) -> None:
    if attends_both_ways(config):
        raise RequestError(
            f"model={source.name} is an encoder ({config.model_type}): its positions see the tokens that "
            "they are to predict; give a causal language model (a checkpoint that was trained as a decoder "
            "says is_decoder in its config.json)"
        )


def _judge_file(source: ModelSource) -> None:
    """Refuse a quantization that is not read here before transformers stumbles over it."""
    if source.directory is None:
        return
    tree = read_json((source.directory / "config.json").read_bytes())
    fields = tree.get("quantization_config") if isinstance(tree, dict) else None
    if fields is not None:
        stored_weights(source.name, fields)


def _stored(source: ModelSource, config: Any) -> StoredWeights | None:
    """Return how the weights came quantized, and take that out of the configuration: we read them."""
    found = None
    for part in (config, config.get_text_config()):
        fields = getattr(part, "quantization_config", None)
        if fields is not None:
            found = fields if isinstance(fields, dict | str | list) else fields.to_dict()
            del part.quantization_config
    return None if found is None else stored_weights(source.name, found)
