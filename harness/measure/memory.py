"""Memory by parts, as exact tensor bytes; peaks by phase are the device's meter's (harness.measure.meter)."""

import contextlib
import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from harness.base.build import Base
from harness.base.layers import FrozenLinear
from harness.base.sharding import held_here
from harness.errors import RunFailed, says_out_of_memory


def distinct_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the distinct storages behind `tensors`, in this process."""
    held = (held_here(tensor).untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether `error` is an allocation that failed, whichever library's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RunFailed):  # ours: it may quote an allocator, and nothing can be repeated
        return False
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSize:
    """What a frozen base weighs."""

    weight_bytes: int
    """Packed and unpacked weights and buffers, without quantization constants; of a sharded base, this
    process's share."""
    constant_bytes: int
    """Bytes of quantization constants; for a sharded base, this process's share."""
    logical_params: int
    """Weights before packing, tied ones once; of all processes."""
    bits_per_param: float
    """Bits of packed weights and constants of the blocks' linear layers in all processes, over their logical
    weights."""

    @property
    def total_bytes(self) -> int:
        """Weights, buffers and constants together."""
        return self.weight_bytes + self.constant_bytes


def base_size(base: Base) -> BaseSize:
    """Measure `base`, whatever adapters it carries."""
    packed: list[torch.Tensor] = []
    constants: list[torch.Tensor] = []
    logical = 0
    for name, layer in _frozen_linears(base):
        assert isinstance(layer, nn.Linear), name
        packed.append(layer.weight)
        if isinstance(layer, FrozenLinear):
            constants.extend(layer.constants.values())
        logical += layer.in_features * layer.out_features
    inside = {id(tensor) for tensor in [*packed, *constants]}
    constants.extend(base.storage.tables(base.device))
    others = {
        id(tensor): tensor
        for name, tensor in [*base.model.named_parameters(), *base.model.named_buffers()]
        if id(tensor) not in inside and ".lora_" not in name
    }
    rest = [tensor.data for tensor in others.values()]
    parameters = [tensor for tensor in others.values() if isinstance(tensor, nn.Parameter)]
    packed_bytes, constant_bytes = distinct_bytes(packed), distinct_bytes(constants)
    return BaseSize(
        weight_bytes=packed_bytes + distinct_bytes(rest),
        constant_bytes=constant_bytes,
        logical_params=logical + sum(parameter.numel() for parameter in parameters),
        bits_per_param=8 * _bytes_everywhere([*packed, *constants]) / logical,
    )


def _bytes_everywhere(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of distinct tensors in all processes together, those that all keep counted once."""
    whole = [t for t in tensors if isinstance(t, DTensor)]
    return distinct_bytes(t for t in tensors if not isinstance(t, DTensor)) + sum(
        t.numel() * t.element_size() for t in whole
    )


def _frozen_linears(base: Base) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks' own linear layers, looking through PEFT's wrappers."""
    modules = dict(base.model.named_modules())
    for spec in base.linears:
        module: Any = modules[spec.name]
        yield spec.name, getattr(module, "base_layer", module)


class SavedBytes:
    """Counts what autograd saves for backward in the forward passes run inside it."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {
            held_here(tensor).untyped_storage().data_ptr()
            for tensor in [*model.parameters(), *model.buffers()]
        }
        self._saved: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes of the distinct storages saved, parameters and buffers of the model excluded."""
        return sum(self._saved.values())

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        root = tensor if tensor._base is None else tensor._base
        # A block of a sharded base is gathered into new parameters for each pass.
        if storage.data_ptr() not in self._parameters and not isinstance(root, nn.Parameter):
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside this context."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield
