"""Bytes of the frozen base in closed form: what `harness.base` would store, module by module."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.storage import Storage, share
from harness.base.targets import LinearSpec, block_name, in_block
from harness.plan.prediction import ModuleSize


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


def base_bytes(outline: Sequence[ModuleOutline], storage: Storage, processes: int = 1) -> BaseBytes:
    """Return what a base of this outline weighs in this storage, in each of the processes that share it."""
    modules = [_module_size(module, storage, processes) for module in outline]
    linears = [module.linear for module in outline if module.linear is not None]
    tables = storage.table_bytes
    if tables:
        modules.append(ModuleSize("(shared by all packed layers)", "tables", 0, 0, tables))
    packed = sum(storage.packed_bytes(spec) for spec in linears)
    constants = sum(storage.constant_bytes(spec) for spec in linears) + tables
    logical = sum(spec.in_features * spec.out_features for spec in linears)
    return BaseBytes(
        modules=tuple(modules),
        logical_params=sum(module.logical_params for module in modules),
        bits_per_param=8 * (packed + constants) / logical,
    )


def gathered_bytes(outline: Sequence[ModuleOutline], storage: Storage) -> int:
    """Return what a GPU holds at most of other processes' shares, if the base is divided.

    A block in use, and of the next one what is being received and its copy; everything outside the blocks,
    where embedding and head are one, else the head. As FSDP2's code reads: it has not been measured.
    """
    blocks: dict[str, int] = defaultdict(int)
    outside: dict[str, int] = defaultdict(int)
    for module in outline:
        size = _module_size(module, storage, 1)
        whole = size.weight_bytes - module.buffer_bytes + size.constant_bytes
        if in_block(module.name):
            blocks[block_name(module.name)] += whole
        else:
            outside[module.kind] += whole
    if "head" in outside:
        outside.pop("embedding", None)  # gathered for itself, before the blocks
    return 3 * max(blocks.values()) + sum(outside.values())


def _module_size(module: ModuleOutline, storage: Storage, processes: int) -> ModuleSize:
    logical, weight, constants = module.other_params, 0, 0
    if module.linear is not None:
        logical += module.linear.in_features * module.linear.out_features
        weight = storage.packed_bytes(module.linear, processes)
        constants = storage.constant_bytes(module.linear, processes)
    others = share(module.other_params, processes) * storage.dtype.itemsize
    weight += others + module.buffer_bytes
    return ModuleSize(module.name, module.kind, logical, weight, constants)
