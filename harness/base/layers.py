"""Frozen linear layers of our own with packed storage: 4-bit code books and 8-bit rows.

They keep only packed weights and constants; backward decodes again instead of keeping a dense copy.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from harness.base.code_books import CODE_BOOKS, CodeBook, decode, encode
from harness.config.schema import QuantConfig

DOUBLE_QUANT_BLOCK = 256
"""Constants per block of the second quantization (QLoRA, section 3)."""


class FrozenLinear(nn.Linear):
    """A frozen linear layer whose dense weight exists only while it is used.

    It is an `nn.Linear` so that PEFT takes it as one. `weight` holds the packed bytes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
        )

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the decoded weight [out_features, in_features] in `dtype`."""
        raise NotImplementedError

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input @ weight.T + bias, for input [..., in_features] in the compute type."""
        return _FrozenMatmul.apply(input, self)  # pyright: ignore[reportReturnType]


class _FrozenMatmul(torch.autograd.Function):
    """x @ W.T + b, where W is decoded in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense_weight(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        (grad,) = grad_outputs
        return grad @ ctx.layer.dense_weight(grad.dtype), None


class DoubleQuantized(nn.Module):
    """Per-block constants in 8 bits: code·scale + mean in blocks of 256 (QLoRA, section 3)."""

    codes: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, mean: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("mean", mean)

    @classmethod
    def of(cls, constants: torch.Tensor) -> "DoubleQuantized":
        """Quantize float32 `constants` [blocks] around their mean."""
        from bitsandbytes.functional import quantize_blockwise

        mean = constants.mean()
        table = dynamic_table(constants.device)
        codes, state = quantize_blockwise(
            constants - mean, code=table, blocksize=DOUBLE_QUANT_BLOCK, nested=False
        )
        return cls(codes, state.absmax, mean)

    def values(self) -> torch.Tensor:
        """Return the float32 constants [blocks]."""
        table = dynamic_table(self.codes.device)
        return (
            torch.ops.bitsandbytes.dequantize_blockwise(
                self.codes, self.scale, table, DOUBLE_QUANT_BLOCK, torch.float32
            )
            + self.mean
        )


class PlainConstants(nn.Module):
    """Per-block constants kept in float32."""

    stored: torch.Tensor

    def __init__(self, stored: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("stored", stored)

    def values(self) -> torch.Tensor:
        """Return the float32 constants [blocks]."""
        return self.stored


Constants = DoubleQuantized | PlainConstants

_dynamic_tables: dict[torch.device, torch.Tensor] = {}


def dynamic_table(device: torch.device) -> torch.Tensor:
    """Return bitsandbytes' 256-value dynamic 8-bit table, one per device, shared by all layers."""
    if device not in _dynamic_tables:
        from bitsandbytes.functional import create_dynamic_map

        _dynamic_tables[device] = create_dynamic_map().to(device)
    return _dynamic_tables[device]


class CodeBookLinear(FrozenLinear):
    """A linear layer stored as 4-bit indices into one of our code books."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        scale: Constants,
        offset: Constants | None,
        book: CodeBook,
        block_size: int,
    ) -> None:
        super().__init__(in_features, out_features, packed, bias)
        self.scale = scale
        self.offset = offset
        self.book = book
        self.block_size = block_size

    @classmethod
    def quantize(
        cls, weight: torch.Tensor, bias: torch.Tensor | None, quant: QuantConfig
    ) -> "CodeBookLinear":
        """Quantize a dense `weight` [out_features, in_features] on the device where it lies."""
        book = CODE_BOOKS[quant.format]
        encoded = encode(weight, book, quant.block_size)
        keep = DoubleQuantized.of if quant.double_quant else PlainConstants
        return cls(
            weight.shape[1],
            weight.shape[0],
            encoded.packed,
            bias,
            scale=keep(encoded.scale),
            offset=None if encoded.offset is None else keep(encoded.offset),
            book=book,
            block_size=quant.block_size,
        )

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        return decode(
            self.weight,
            self.scale.values(),
            None if self.offset is None else self.offset.values(),
            book=self.book,
            block_size=self.block_size,
            count=self.out_features * self.in_features,
            dtype=dtype,
        ).view(self.out_features, self.in_features)


class Int8Linear(FrozenLinear):
    """A linear layer stored in bitsandbytes' row-wise int8 (LLM.int8 weights), decoded for each product.

    LLM.int8's own product also quantizes the activations, and chooses outlier columns over all rows
    of the batch: a run would then depend on its neighbours in the cohort, training and evaluation on
    the CPU would use different numbers, and so would CPU and CUDA. Storage is the same; the product is exact.
    """

    row_scale: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        row_scale: torch.Tensor,
    ) -> None:
        super().__init__(in_features, out_features, packed, bias)
        self.register_buffer("row_scale", row_scale)

    @classmethod
    def quantize(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> "Int8Linear":
        """Quantize a dense `weight` [out_features, in_features] by absmax/127 of each row."""
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, absmax, _ = int8_vectorwise_quant(weight.detach().to(torch.float16))
        return cls(weight.shape[1], weight.shape[0], codes, bias, row_scale=absmax.float() / 127)

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype == torch.float32:
            return self.weight.to(dtype).mul_(self.row_scale.unsqueeze(1))
        return (self.weight * self.row_scale.unsqueeze(1)).to(dtype)
