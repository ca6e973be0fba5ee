"""From a dense weight to the frozen layer that stores it, and from a cache's tensors back to that layer.

NF4 and FP4 are bitsandbytes' `Linear4bit`; the integer formats are ours (`harness.base.layers`).
"""

from typing import Any

import torch
from torch import nn

from harness.base.code_books import CODE_BOOKS, nibble_tables
from harness.base.layers import (
    DOUBLE_QUANT_BLOCK,
    CodeBookLinear,
    Constants,
    DoubleQuantized,
    FrozenLinear,
    Int8Linear,
    PlainConstants,
    dynamic_table,
)
from harness.config.schema import FloatType, QuantConfig, QuantFormat

TORCH_DTYPES = {FloatType.float32: torch.float32, FloatType.bfloat16: torch.bfloat16}


def quantize_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    quant: QuantConfig,
    device: torch.device,
) -> nn.Linear:
    """Return the frozen layer that stores `weight` [out_features, in_features] as `quant` says.

    The dense weight is quantized from float32 on `device`, whatever type it was stored in, so that every
    format starts from the same numbers. The bias is kept in the compute type.
    """
    dtype = TORCH_DTYPES[quant.compute_dtype]
    if bias is not None:
        bias = bias.detach().to(device, dtype)
    match quant.format:
        case QuantFormat.none:
            return _dense_linear(weight.detach().to(device, dtype), bias)
        case QuantFormat.nf4 | QuantFormat.fp4:
            return _bitsandbytes_linear(weight.detach().float(), bias, quant, device)
        case QuantFormat.int8:
            return Int8Linear.quantize(weight.detach().to(device), bias)
        case _:  # a code book of ours: an entry of CODE_BOOKS is all that a further one needs
            return CodeBookLinear.quantize(weight.detach().to(device).float(), bias, quant)


def _dense_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype
    )
    linear.weight = nn.Parameter(weight, requires_grad=False)
    _set_bias(linear, bias)
    return linear


def _set_bias(linear: nn.Linear, bias: torch.Tensor | None) -> None:
    linear.register_parameter(
        "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
    )


def _bitsandbytes_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, quant: QuantConfig, device: torch.device
) -> nn.Linear:
    import bitsandbytes.nn

    new_weight: Any = bitsandbytes.nn.Params4bit
    linear = _empty_bitsandbytes_linear(weight.shape[1], weight.shape[0], bias, quant)
    packed = new_weight(
        weight,
        requires_grad=False,
        blocksize=quant.block_size,
        compress_statistics=quant.double_quant,
        quant_type=quant.format.value,
        module=linear,
    ).to(device)
    return _with_packed(linear, packed, quant)


def _empty_bitsandbytes_linear(
    in_features: int, out_features: int, bias: torch.Tensor | None, quant: QuantConfig
) -> Any:
    from bitsandbytes.nn import Linear4bit

    linear = Linear4bit(
        in_features,
        out_features,
        bias=False,
        compute_dtype=TORCH_DTYPES[quant.compute_dtype],
        compress_statistics=quant.double_quant,
        quant_type=quant.format.value,
        device="meta",
    )
    _set_bias(linear, bias)
    return linear


def _with_packed(linear: Any, packed: Any, quant: QuantConfig) -> nn.Linear:
    """Finish a Linear4bit: decode in the compute type, share the tables that all layers have alike."""
    state = packed.quant_state
    state.dtype = TORCH_DTYPES[quant.compute_dtype]
    state.code = _shared_code(state.code, quant.format)
    if state.nested:
        state.state2.code = dynamic_table(packed.device)
    linear.weight = packed
    linear.quant_state = state
    return linear


_codes: dict[tuple[QuantFormat, torch.device], torch.Tensor] = {}


def _shared_code(code: torch.Tensor, quant_format: QuantFormat) -> torch.Tensor:
    return _codes.setdefault((quant_format, code.device), code)


def layer_tensors(layer: nn.Linear) -> dict[str, torch.Tensor]:
    """Return everything a quantized layer must keep to be rebuilt by `layer_from_tensors`, but its bias."""
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is not None:
        tensors = {"packed": layer.weight.data, "absmax": state.absmax}
        if state.nested:
            tensors |= {"nested_absmax": state.state2.absmax, "nested_offset": state.offset}
        return tensors
    match layer:
        case CodeBookLinear():
            tensors = {"packed": layer.weight.data}
            for name, part in (("scale", layer.scale), ("offset", layer.offset)):
                if part is not None:
                    tensors |= {f"{name}.{key}": value for key, value in part.named_buffers()}
            return tensors
        case Int8Linear():
            return {"packed": layer.weight.data, "row_scale": layer.row_scale}
        case _:
            raise TypeError(f"{type(layer).__name__} is not a quantized layer of ours")


def layer_from_tensors(
    tensors: dict[str, torch.Tensor],
    in_features: int,
    out_features: int,
    bias: torch.Tensor | None,
    quant: QuantConfig,
) -> nn.Linear:
    """Rebuild the layer that `layer_tensors` described, on the device where the tensors lie."""
    match quant.format:
        case QuantFormat.nf4 | QuantFormat.fp4:
            return _restore_bitsandbytes(tensors, in_features, out_features, bias, quant)
        case QuantFormat.int8:
            return Int8Linear(
                in_features, out_features, tensors["packed"], bias, row_scale=tensors["row_scale"]
            )
        case QuantFormat.none:
            raise ValueError("an unquantized layer has no packed tensors")
        case _:
            return CodeBookLinear(
                in_features,
                out_features,
                tensors["packed"],
                bias,
                scale=_restore_constants(tensors, "scale"),
                offset=_restore_constants(tensors, "offset")
                if any(key.startswith("offset.") for key in tensors)
                else None,
                book=CODE_BOOKS[quant.format],
                block_size=quant.block_size,
            )


def moved_layer(layer: nn.Linear, quant: QuantConfig, device: torch.device) -> nn.Linear:
    """Return a layer that `quantize_linear` has made, on another device."""
    if quant.format is QuantFormat.none:
        return layer.to(device)
    tensors = {key: tensor.to(device) for key, tensor in layer_tensors(layer).items()}
    bias = None if layer.bias is None else layer.bias.data.to(device)
    return layer_from_tensors(tensors, layer.in_features, layer.out_features, bias, quant)


def dense_from_tensors(
    tensors: dict[str, torch.Tensor],
    in_features: int,
    out_features: int,
    quant: QuantConfig,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the weight [out_features, in_features] that `layer_tensors` stores, as the layer decodes it."""
    match quant.format:
        case QuantFormat.none:
            return tensors["packed"]
        case QuantFormat.nf4 | QuantFormat.fp4:
            scale = _bitsandbytes_scale(tensors, quant)
            shape, block = (out_features, in_features), quant.block_size
            return torch.ops.bitsandbytes.dequantize_4bit(
                tensors["packed"], scale, block, quant.format.value, shape, dtype
            )
        case _:
            layer = layer_from_tensors(tensors, in_features, out_features, None, quant)
            assert isinstance(layer, FrozenLinear)
            return layer.dense_weight(dtype)


def _bitsandbytes_scale(tensors: dict[str, torch.Tensor], quant: QuantConfig) -> torch.Tensor:
    """Return the float32 scale of each block; bitsandbytes calls it absmax."""
    if not quant.double_quant:
        return tensors["absmax"]
    parts = (tensors["absmax"], tensors["nested_absmax"], tensors["nested_offset"])
    return DoubleQuantized(*parts).values()


def _restore_constants(tensors: dict[str, torch.Tensor], name: str) -> Constants:
    if f"{name}.stored" in tensors:
        return PlainConstants(tensors[f"{name}.stored"])
    return DoubleQuantized(*(tensors[f"{name}.{part}"] for part in ("codes", "scale", "mean")))


def _restore_bitsandbytes(
    tensors: dict[str, torch.Tensor],
    in_features: int,
    out_features: int,
    bias: torch.Tensor | None,
    quant: QuantConfig,
) -> nn.Linear:
    import bitsandbytes.nn
    from bitsandbytes.functional import QuantState, get_4bit_type

    new_weight: Any = bitsandbytes.nn.Params4bit
    packed, device = tensors["packed"], tensors["packed"].device
    nested = None
    if quant.double_quant:
        nested = QuantState(
            absmax=tensors["nested_absmax"],
            code=dynamic_table(device),
            blocksize=DOUBLE_QUANT_BLOCK,
            dtype=torch.float32,
        )
    state = QuantState(
        absmax=tensors["absmax"],
        shape=torch.Size((out_features, in_features)),
        code=get_4bit_type(quant.format.value, device=device),
        blocksize=quant.block_size,
        quant_type=quant.format.value,
        dtype=TORCH_DTYPES[quant.compute_dtype],
        offset=tensors.get("nested_offset"),
        state2=nested,
    )
    linear = _empty_bitsandbytes_linear(in_features, out_features, bias, quant)
    weight = new_weight(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=quant.block_size,
        compress_statistics=quant.double_quant,
        quant_type=quant.format.value,
        module=linear,
        bnb_quantized=True,
    )
    return _with_packed(linear, weight, quant)


def redecode_in_compute_type(model: nn.Module, quant: QuantConfig) -> None:
    """Restore the compute type of bitsandbytes layers whose weights PEFT has quantized again (OLoRA)."""
    for module in model.modules():
        state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
        if isinstance(module, nn.Linear) and state is not None:
            _with_packed(module, module.weight, quant)


def constant_tensors(layer: nn.Linear) -> list[torch.Tensor]:
    """Return every tensor besides the packed weights that decoding `layer` reads; tables may be shared."""
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is not None:
        nested = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        return [state.absmax, state.code, *nested]
    if isinstance(layer, CodeBookLinear):
        double = isinstance(layer.scale, DoubleQuantized)
        tables = [*nibble_tables(layer.book, layer.weight.device)]
        return [
            *layer.buffers(),
            *tables,
            *([dynamic_table(layer.weight.device)] if double else []),
        ]
    return list(layer.buffers())
