"""How the weight of a linear layer is stored: one class for each kind, reached through `storage_of`.

Everything that depends on the storage is asked of it: what a dense weight becomes, how it is decoded, what it
weighs, what it is called.

Shape suffixes: O outputs, I inputs.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import assert_never

import torch
from torch import nn

from harness.base.code_books import (
    CodeBook,
    Normalization,
    blockwise,
    code_book,
    decode,
    encode,
    packed_rows,
    table,
)
from harness.base.layers import FrozenLinear, dense_linear
from harness.base.prequantized import (
    BITSANDBYTES_BLOCK,
    BitsAndBytesWeights,
    GroupedWeights,
    StoredWeights,
)
from harness.base.targets import LinearSpec
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.config.storage import label_of

TORCH_DTYPES = {
    FloatType.float32: torch.float32,
    FloatType.bfloat16: torch.bfloat16,
    FloatType.float16: torch.float16,
}
DOUBLE_QUANT_BLOCK = 256
"""Constants per block of the second quantization (QLoRA, section 3)."""

Tensors = dict[str, torch.Tensor]
"""What a storage keeps of one weight: `packed`, and its constants by name."""


class Storage(ABC):
    """A kind of storage with its settings."""

    def __init__(self, quant: QuantConfig) -> None:
        self.quant = quant

    @property
    def label(self) -> str:
        """What the command line calls it: `nf4_dq`."""
        return label_of(self.quant)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The compute type: of activations, biases and all that is not packed."""
        return TORCH_DTYPES[self.quant.compute_dtype]

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of a stored weight, without constants."""

    @property
    def constants_per_block(self) -> int:
        """Constants of each block of `quant.block_size` weights; 0 where there are no blocks."""
        return 0

    # From a dense weight to a layer and back -----------------------------------------------------

    @abstractmethod
    def encode(self, weight_OI: torch.Tensor) -> Tensors:
        """Return what is kept of a float32 weight, on the device where it lies."""

    @abstractmethod
    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [O, I] = `shape` in `dtype`; on the meta device, allocate what that would."""

    def quantize(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, device: torch.device
    ) -> nn.Linear:
        """Return the frozen layer that stores a dense weight.

        It is quantized from float32 on `device`, whatever type it was stored in, so that every storage starts
        from the same numbers. The bias is kept in the compute type.
        """
        if bias_O is not None:
            bias_O = bias_O.detach().to(device, self.dtype)
        out_features, in_features = weight_OI.shape
        tensors = self.encode(weight_OI.detach().to(device).float())
        return self.restore(tensors, in_features, out_features, bias_O)

    def tensors(self, layer: nn.Linear) -> Tensors:
        """Return all that `restore` needs to make a layer of this storage again, but its bias."""
        assert isinstance(layer, FrozenLinear), f"{type(layer).__name__} is not packed"
        return {name: tensor.detach() for name, tensor in layer.tensors.items()}

    def restore(
        self, tensors: Tensors, in_features: int, out_features: int, bias: torch.Tensor | None
    ) -> nn.Linear:
        """Return the layer of these tensors, on the device where they lie."""
        return FrozenLinear(self, tensors, in_features, out_features, bias)

    def moved(self, layer: nn.Linear, device: torch.device) -> nn.Linear:
        """Return a layer of this storage on another device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors(layer).items()}
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        return self.restore(tensors, layer.in_features, layer.out_features, bias)

    @torch.no_grad()
    def overwrite(self, layer: nn.Linear, weight_OI: torch.Tensor) -> None:
        """Store another dense weight in a layer of this storage, in the tensors that it has."""
        kept = self.tensors(layer)
        for name, tensor in self.encode(weight_OI.float()).items():
            kept[name].copy_(tensor)

    # What it weighs ------------------------------------------------------------------------------

    @abstractmethod
    def outline(self, spec: LinearSpec) -> Tensors:
        """Return what `encode` does for a layer of these dimensions, on the meta device."""

    def packed_bytes(self, spec: LinearSpec, processes: int = 1) -> int:
        """Return the bytes of one layer's packed weight; where processes share it, those of one of them."""
        return _share_bytes(self.outline(spec)["packed"], processes)

    def constant_bytes(self, spec: LinearSpec, processes: int = 1) -> int:
        """Return the bytes of one layer's own constants, divided likewise."""
        constants = self.outline(spec)
        del constants["packed"]
        return sum(_share_bytes(each, processes) for each in constants.values())

    def tables(self, device: torch.device) -> list[torch.Tensor]:
        """Return the tables that decoding reads, one of each on a device for all layers."""
        return []

    @property
    def table_bytes(self) -> int:
        """Bytes of these tables."""
        return sum(each.numel() * each.element_size() for each in self.tables(torch.device("meta")))


class Dense(Storage):
    """Weights in the compute type: nothing is packed."""

    @property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize

    def encode(self, weight_OI: torch.Tensor) -> Tensors:
        return {"packed": weight_OI.to(self.dtype)}

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return tensors["packed"]

    def tensors(self, layer: nn.Linear) -> Tensors:
        return {"packed": layer.weight.detach()}

    def restore(
        self, tensors: Tensors, in_features: int, out_features: int, bias: torch.Tensor | None
    ) -> nn.Linear:
        """Return torch's own layer: there is nothing to decode."""
        return dense_linear(tensors["packed"], bias)

    def outline(self, spec: LinearSpec) -> Tensors:
        return {"packed": _on_meta(spec.out_features, spec.in_features, dtype=self.dtype)}


class Blockwise(Storage):
    """Indices into a code book of at most 16 values, packed at its bits, with constants for each block."""

    def __init__(self, quant: QuantConfig, book: CodeBook) -> None:
        super().__init__(quant)
        self.book = book

    @property
    def bits(self) -> int:
        return self.book.bits

    @property
    def constants_per_block(self) -> int:
        match self.book.normalization:
            case Normalization.absmax:
                return 1
            case Normalization.minmax:
                return 2
            case _ as unreachable:
                assert_never(unreachable)

    def encode(self, weight_OI: torch.Tensor) -> Tensors:
        encoded = encode(weight_OI, self.book, self.quant.block_size)
        tensors = {"packed": encoded.packed, **self._kept("scale", encoded.scale)}
        return tensors if encoded.offset is None else tensors | self._kept("offset", encoded.offset)

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return decode(
            tensors["packed"],
            self.constant("scale", tensors),
            self.constant("offset", tensors) if self.constants_per_block == 2 else None,
            book=self.book,
            block_size=self.quant.block_size,
            shape=shape,
            dtype=dtype,
        )

    def _kept(self, name: str, constants: torch.Tensor) -> Tensors:
        """Return float32 constants [blocks] as they are kept: doubly quantized in 8 bits."""
        if not self.quant.double_quant:
            return {name: constants}
        from bitsandbytes.functional import quantize_blockwise

        mean = constants.mean()
        codes, state = quantize_blockwise(
            constants - mean,
            code=dynamic_table(constants.device),
            blocksize=DOUBLE_QUANT_BLOCK,
            nested=False,
        )
        return {f"{name}_codes": codes, f"{name}_absmax": state.absmax, f"{name}_mean": mean}

    def constant(self, name: str, tensors: Tensors) -> torch.Tensor:
        """Return the float32 constants [blocks] called `scale` or `offset`."""
        if not self.quant.double_quant:
            return tensors[name]
        codes = tensors[f"{name}_codes"]
        values = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        second = dynamic_table(codes.device)
        blockwise(codes, tensors[f"{name}_absmax"], second, DOUBLE_QUANT_BLOCK, values)
        return values.add_(tensors[f"{name}_mean"])

    def outline(self, spec: LinearSpec) -> Tensors:
        rows = packed_rows(spec.out_features, self.bits)
        tensors = {"packed": _on_meta(rows, spec.in_features, dtype=torch.uint8)}
        blocks = -(-spec.in_features * spec.out_features // self.quant.block_size)
        for name in ("scale", "offset")[: self.constants_per_block]:
            tensors |= self._outline_of(name, blocks)
        return tensors

    def _outline_of(self, name: str, blocks: int) -> Tensors:
        """With double quantization 8 + 32/256 bits a constant (QLoRA, Dettmers et al. 2023, section 3)."""
        if not self.quant.double_quant:
            return {name: _on_meta(blocks, dtype=torch.float32)}
        return {
            f"{name}_codes": _on_meta(blocks, dtype=torch.uint8),
            f"{name}_absmax": _on_meta(-(-blocks // DOUBLE_QUANT_BLOCK), dtype=torch.float32),
            f"{name}_mean": _on_meta(dtype=torch.float32),
        }

    def tables(self, device: torch.device) -> list[torch.Tensor]:
        values = [table(self.book, device)]
        return [*values, dynamic_table(device)] if self.quant.double_quant else values


class RowwiseInt8(Storage):
    """Row-wise int8 by absmax/127 (LLM.int8's weights, Dettmers et al. 2022), decoded for each product.

    LLM.int8's own product also quantizes the activations, and chooses outlier columns over all rows
    of the batch: a run would then depend on its neighbours in the cohort, training and evaluation on
    the CPU would use different numbers, and so would CPU and CUDA. Storage is the same
    (bitsandbytes rounds to 16 bits first, we do not); the product is exact.
    """

    @property
    def bits(self) -> int:
        return 8

    def encode(self, weight_OI: torch.Tensor) -> Tensors:
        scale = weight_OI.abs().amax(dim=1) / 127
        safe = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(1)
        codes = torch.round(weight_OI / safe).clamp_(-127, 127).to(torch.int8)
        return {"packed": codes, "scale": scale}

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        codes, scale = tensors["packed"], tensors["scale"].unsqueeze(1)
        if dtype == torch.float32:
            return codes.to(dtype).mul_(scale)
        return (codes * scale).to(dtype)

    def outline(self, spec: LinearSpec) -> Tensors:
        return {
            "packed": _on_meta(spec.out_features, spec.in_features, dtype=torch.int8),
            "scale": _on_meta(spec.out_features, dtype=torch.float32),
        }


class BitsAndBytesInt8(RowwiseInt8):
    """Row-wise int8 as bitsandbytes uploads have it: codes, and the largest weight of each row."""

    _OF_CODE = 7.874015718698502e-3
    """1/127 as bitsandbytes writes it (`int8_vectorwise_dequant`)."""

    def encode(self, weight_OI: torch.Tensor) -> Tensors:
        raise AssertionError("what came quantized is never rounded")

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        weight = tensors["packed"] * tensors["scale"].unsqueeze(1)
        return weight.mul_(self._OF_CODE).to(dtype)


class GroupedInt4(Storage):
    """4-bit integers q with scale s and zero point z for each group of an output's inputs: w = s (q - z).

    As GPTQ (Frantar et al. 2022, arXiv 2210.17323) and AWQ (Lin et al. 2023, arXiv 2306.00978) upload them.
    With scales in 16 bits the decoded float32 weight is exact: 11 bits of s times 5 of q - z.
    """

    def __init__(self, quant: QuantConfig, stored: GroupedWeights) -> None:
        super().__init__(quant)
        self.stored = stored

    @property
    def label(self) -> str:
        return self.stored.label

    @property
    def bits(self) -> int:
        return 4

    def encode(self, weight_OI: torch.Tensor) -> Tensors:
        raise AssertionError("what came quantized is never rounded")

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        packed, inputs = tensors["packed"], shape[1]
        codes_OI = torch.cat([packed >> 4, packed & 15])[: shape[0]]
        group_I = tensors.get("group")
        if group_I is None:
            group_I = torch.arange(inputs, device=packed.device) // self.group_size(inputs)
        weight_OI = codes_OI.float().sub_(tensors["zero"].float()[:, group_I])
        return weight_OI.mul_(tensors["scale"].float()[:, group_I]).to(dtype)

    def group_size(self, inputs: int) -> int:
        """Return how many of a layer's inputs share a scale."""
        return self.stored.group_size or inputs

    def outline(self, spec: LinearSpec) -> Tensors:
        groups = -(-spec.in_features // self.group_size(spec.in_features))
        half = -(-spec.out_features // 2)
        tensors = {
            "packed": _on_meta(half, spec.in_features, dtype=torch.uint8),
            "scale": _on_meta(spec.out_features, groups, dtype=torch.float16),
            "zero": _on_meta(spec.out_features, groups, dtype=torch.uint8),
        }
        if self.stored.reordered:
            tensors["group"] = _on_meta(spec.in_features, dtype=torch.int32)
        return tensors


def storage_of(quant: QuantConfig, stored: StoredWeights | None = None) -> Storage:
    """Return the storage that a configuration asks for; `stored`: how the checkpoint came, if quantized."""
    match quant.format:
        case QuantFormat.none:
            return Dense(quant)
        case QuantFormat.nf4 | QuantFormat.af4 | QuantFormat.int4:
            return Blockwise(quant, code_book(quant.format, quant.block_size))
        case QuantFormat.int4_asym | QuantFormat.int3_asym | QuantFormat.int2_asym:
            return Blockwise(quant, code_book(quant.format, quant.block_size))
        case QuantFormat.fp4 | QuantFormat.fp4_e2m1 | QuantFormat.fp4_e3m0:
            return Blockwise(quant, code_book(quant.format, quant.block_size))
        case QuantFormat.int8:
            return RowwiseInt8(quant)
        case QuantFormat.as_stored:
            assert stored is not None, (
                "quant.format=as_stored is asked of a checkpoint's own storage"
            )
            return _storage_of_stored(quant, stored)
        case _ as unreachable:
            assert_never(unreachable)


def _storage_of_stored(quant: QuantConfig, stored: StoredWeights) -> Storage:
    match stored:
        case BitsAndBytesWeights(format=QuantFormat.int8):
            return BitsAndBytesInt8(replace(quant, format=QuantFormat.int8))
        case BitsAndBytesWeights():
            return storage_of(
                replace(
                    quant,
                    format=stored.format,
                    double_quant=stored.double_quant,
                    block_size=BITSANDBYTES_BLOCK,
                )
            )
        case GroupedWeights():
            return GroupedInt4(quant, stored)
        case _ as unreachable:
            assert_never(unreachable)


def _on_meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def share(length: int, processes: int) -> int:
    """Return what one of so many processes keeps of a dimension that they divide: FSDP2 rounds up."""
    return -(-length // processes)


def _share_bytes(tensor: torch.Tensor, processes: int) -> int:
    """FSDP2 divides a tensor along its first dimension; of a single number each process keeps its own."""
    if tensor.ndim == 0:
        return tensor.itemsize
    return share(len(tensor), processes) * tensor[0].numel() * tensor.itemsize


@lru_cache(maxsize=16)
def dynamic_table(device: torch.device) -> torch.Tensor:
    """Return bitsandbytes' 256-value dynamic 8-bit table, one on a device for all layers."""
    if device.type == "meta":
        return torch.empty(256, device=device)
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map().to(device)
