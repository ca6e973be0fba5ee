"""Checkpoints that came quantized: what `quantization_config` says, and which of them can be taken over.

Must not import torch or transformers: what cannot be read is refused before any weight is. Configurations are
those that transformers writes (`transformers.utils.quantization_config`) and their writers' own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness.config.schema import QuantConfig, QuantFormat
from harness.config.storage import storage_label
from harness.errors import RequestError

BITSANDBYTES_BLOCK = 64
"""Weights per block that transformers lets bitsandbytes quantize in; there is no field for another size."""


class GroupedMethod(Enum):
    """Who packed 4-bit integers with a scale and a zero point for each group of inputs."""

    gptq = "gptq"
    """Zero points are stored less one, as by AutoGPTQ."""
    gptq_v2 = "gptq_v2"
    """Zero points are stored as they are, as by GPTQModel's own format."""
    awq = "awq"
    """AutoAWQ's GEMM layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAndBytesWeights:
    """Weights that bitsandbytes has quantized."""

    format: QuantFormat
    """nf4, fp4 or int8."""
    double_quant: bool

    @property
    def label(self) -> str:
        """What a record calls it."""
        return f"bitsandbytes {storage_label(self.format.value, self.double_quant)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedWeights:
    """4-bit integers with a scale and a zero point for each group of inputs of an output."""

    method: GroupedMethod
    group_size: int | None
    """Inputs of a group; None: all of them."""
    reordered: bool
    """Whether groups are of inputs in another order than they lie (GPTQ's `desc_act`)."""

    @property
    def label(self) -> str:
        """What a record calls it."""
        groups = "one group a row" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.method.value} int4, {groups}"


StoredWeights = BitsAndBytesWeights | GroupedWeights


def stored_weights(name: str, fields: Any) -> StoredWeights:
    """Return what a checkpoint's `quantization_config` says.

    Raises RequestError for a storage that is not read here.
    """
    if not isinstance(fields, Mapping):
        raise _refusal(name, f"a quantization_config that is no mapping ({str(fields)[:40]})")
    method = str(fields.get("quant_method") or _method_of_old(fields)).lower()
    match method:
        case "bitsandbytes" | "bitsandbytes_4bit" | "bitsandbytes_8bit":
            return _bitsandbytes(name, fields)
        case "gptq":
            return _gptq(name, fields)
        case "awq":
            return _awq(name, fields)
        case _:
            raise _refusal(name, method)


def check_stored(name: str, quant: QuantConfig, stored: StoredWeights | None) -> None:
    """Refuse a storage that a checkpoint does not come in, and a second rounding of one that came rounded."""
    takes_over = quant.format is QuantFormat.as_stored
    if stored is None and takes_over:
        raise RequestError(
            f"quant=as_stored takes over how a checkpoint came quantized, and model={name} did not; use "
            "quant=none, or a storage to round it to"
        )
    if stored is not None and not takes_over:
        raise RequestError(
            f"model={name} is already quantized ({stored.label}, quantization_config of its config.json), "
            f"and quant.format={quant.format.value} would round it once more; use quant=as_stored, or give "
            "the unquantized checkpoint"
        )


def _refusal(name: str, method: str) -> RequestError:
    return RequestError(
        f"model={name} is already quantized by {method} (quantization_config of its config.json), which is "
        "not read here; give the unquantized checkpoint, or for quant=as_stored one by bitsandbytes, or in 4 "
        "bits by GPTQ or AWQ"
    )


def _method_of_old(fields: Mapping[str, Any]) -> str:
    """Return the method of a configuration that names none: only bitsandbytes' once were written so."""
    is_old = fields.get("load_in_4bit") or fields.get("load_in_8bit")
    return "bitsandbytes" if is_old else "an unnamed method"


def _bitsandbytes(name: str, fields: Mapping[str, Any]) -> BitsAndBytesWeights:
    in_8, in_4 = (
        bool(fields.get(f"load_in_{bits}bit") or fields.get(f"_load_in_{bits}bit"))
        for bits in (8, 4)
    )
    if in_8 == in_4:
        raise _refusal(name, "bitsandbytes in neither 4 nor 8 bits")
    if in_8:
        return BitsAndBytesWeights(format=QuantFormat.int8, double_quant=False)
    kinds = {"nf4": QuantFormat.nf4, "fp4": QuantFormat.fp4}
    kind = fields.get("bnb_4bit_quant_type", "fp4")
    if kind not in kinds:
        raise _refusal(name, f"bitsandbytes to {kind}")
    return BitsAndBytesWeights(
        format=kinds[kind], double_quant=bool(fields.get("bnb_4bit_use_double_quant", False))
    )


def _gptq(name: str, fields: Mapping[str, Any]) -> GroupedWeights:
    bits = fields.get("bits")
    if bits != 4:
        raise _refusal(name, f"GPTQ in {bits} bits")
    layout = fields.get("checkpoint_format") or fields.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2") or fields.get("is_marlin_format"):
        raise _refusal(name, f"GPTQ, laid out for {layout if layout != 'gptq' else 'marlin'}")
    if fields.get("dynamic"):
        raise _refusal(name, "GPTQ with settings of their own for some layers")
    return GroupedWeights(
        method=GroupedMethod(layout),
        group_size=_group_size(name, fields.get("group_size", 128)),
        reordered=bool(fields.get("desc_act", False)),
    )


def _awq(name: str, fields: Mapping[str, Any]) -> GroupedWeights:
    bits = fields.get("bits", fields.get("w_bit"))
    if bits != 4:
        raise _refusal(name, f"AWQ in {bits} bits")
    layout = str(fields.get("version") or fields.get("format") or "gemm").lower()
    if layout != "gemm" or fields.get("backend", "autoawq") == "llm-awq":
        raise _refusal(name, f"AWQ, laid out for {layout if layout != 'gemm' else 'llm-awq'}")
    if not fields.get("zero_point", True):
        raise _refusal(name, "AWQ without zero points")
    return GroupedWeights(
        method=GroupedMethod.awq,
        group_size=_group_size(name, fields.get("group_size", fields.get("q_group_size", 128))),
        reordered=False,
    )


def _group_size(name: str, value: Any) -> int | None:
    if type(value) is not int or (value < 1 and value != -1):
        raise _refusal(name, f"groups of {value}")
    return None if value == -1 else value
