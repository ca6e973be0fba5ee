"""Bytes of the frozen base in closed form: what `harness.base` would store, module by module."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.code_books import CODE_BOOKS, Normalization
from harness.base.layers import DOUBLE_QUANT_BLOCK
from harness.base.layout import LinearSpec, block_name, in_block
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.plan.prediction import ModuleSize

FLOAT_BYTES = {FloatType.float32: 4, FloatType.bfloat16: 2}
_TABLE_BYTES = 256 * 4
"""A float32 table over all values of a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleOutline:
    """The tensors that belong to one module itself, before anything is packed."""

    name: str
    kind: str
    linear: LinearSpec | None
    """Of a linear layer of the blocks, whose weight is stored as the format says."""
    other_params: int
    """Elements kept in the compute type: everything but that weight."""
    buffer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseBytes:
    """What the base weighs, as `harness.measure.memory.BaseSize`, with its table."""

    modules: tuple[ModuleSize, ...]
    logical_params: int
    bits_per_param: float

    @property
    def weight_bytes(self) -> int:
        """Packed and unpacked weights and buffers."""
        return sum(module.weight_bytes for module in self.modules)

    @property
    def constant_bytes(self) -> int:
        """Quantization constants and tables."""
        return sum(module.constant_bytes for module in self.modules)


def packed_bytes(spec: LinearSpec, quant: QuantConfig, processes: int = 1) -> int:
    """Return the bytes of one layer's stored weight; of one that processes share, those of one of them.

    FSDP2 divides a tensor along its first dimension and rounds up.
    """
    match quant.format:
        case QuantFormat.none:
            rows = _share(spec.out_features, processes)
            return rows * spec.in_features * FLOAT_BYTES[quant.compute_dtype]
        case QuantFormat.int8:
            return _share(spec.out_features, processes) * spec.in_features
        case _:
            return _share(-(-spec.in_features * spec.out_features // 2), processes)


def constant_bytes(spec: LinearSpec, quant: QuantConfig, processes: int = 1) -> int:
    """Return the bytes of one layer's own constants; with double quantization 8 + 32/256 bits each.

    QLoRA (Dettmers et al. 2023), section 3: constants are coded in blocks of 256 around their mean.
    """
    match quant.format:
        case QuantFormat.none:
            return 0
        case QuantFormat.int8:
            return 4 * _share(spec.out_features, processes)
        case _:
            blocks = -(-spec.in_features * spec.out_features // quant.block_size)
            each = 4 * _share(blocks, processes)
            if quant.double_quant:
                of_blocks = -(-blocks // DOUBLE_QUANT_BLOCK)
                each = _share(blocks, processes) + 4 * _share(of_blocks, processes) + 4
            return each * (2 if has_offset(quant.format) else 1)


def _share(length: int, processes: int) -> int:
    return -(-length // processes)


def has_offset(quant_format: QuantFormat) -> bool:
    """Say whether a format keeps two constants for each block."""
    book = CODE_BOOKS.get(quant_format)
    return book is not None and book.normalization is Normalization.minmax


def table_bytes(quant: QuantConfig, processes: int = 1) -> int:
    """Return the bytes of the tables that all layers share."""
    match quant.format:
        case QuantFormat.none | QuantFormat.int8:
            return 0
        case QuantFormat.nf4 | QuantFormat.fp4:
            codes = 16 * 4 if processes == 1 else 0  # bitsandbytes' layer keeps one, ours does not
        case _:
            codes = 2 * _TABLE_BYTES  # of the high and of the low half of a byte
    return codes + (_TABLE_BYTES if quant.double_quant else 0)


def base_bytes(
    outline: Sequence[ModuleOutline], quant: QuantConfig, processes: int = 1
) -> BaseBytes:
    """Return what a base of this outline weighs in this storage, in each of the processes that share it."""
    modules = [_module_size(module, quant, processes) for module in outline]
    linears = [module.linear for module in outline if module.linear is not None]
    tables = table_bytes(quant, processes)
    if tables:
        modules.append(ModuleSize("(shared by all packed layers)", "tables", 0, 0, tables))
    packed = sum(packed_bytes(spec, quant) for spec in linears)
    constants = sum(constant_bytes(spec, quant) for spec in linears) + tables
    logical = sum(spec.in_features * spec.out_features for spec in linears)
    return BaseBytes(
        modules=tuple(modules),
        logical_params=sum(module.logical_params for module in modules),
        bits_per_param=8 * (packed + constants) / logical,
    )


def gathered_bytes(outline: Sequence[ModuleOutline], quant: QuantConfig) -> int:
    """Return what a GPU holds at most of other processes' shares, if the base is divided.

    A block in use, and of the next one what is being received and its copy; everything outside the blocks,
    where embedding and head are one, else the head. As FSDP2's code reads: it has not been measured.
    """
    blocks: dict[str, int] = defaultdict(int)
    outside: dict[str, int] = defaultdict(int)
    for module in outline:
        size = _module_size(module, quant, 1)
        whole = size.weight_bytes - module.buffer_bytes + size.constant_bytes
        if in_block(module.name):
            blocks[block_name(module.name)] += whole
        else:
            outside[module.kind] += whole
    if "head" in outside:
        outside.pop("embedding", None)  # gathered for itself, before the blocks
    return 3 * max(blocks.values()) + sum(outside.values())


def _module_size(module: ModuleOutline, quant: QuantConfig, processes: int) -> ModuleSize:
    logical, weight, constants = module.other_params, 0, 0
    if module.linear is not None:
        logical += module.linear.in_features * module.linear.out_features
        weight = packed_bytes(module.linear, quant, processes)
        constants = constant_bytes(module.linear, quant, processes)
    others = _share(module.other_params, processes) * FLOAT_BYTES[quant.compute_dtype]
    weight += others + module.buffer_bytes
    return ModuleSize(module.name, module.kind, logical, weight, constants)
