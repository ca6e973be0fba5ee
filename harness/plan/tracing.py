"""One pass on the meta device, watched: what autograd keeps, and how much is alive at once."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ALIGNMENT = 512
"""CUDA's caching allocator hands out multiples of so many bytes."""

_aten = torch.ops.aten
_TOLD = (
    _aten._local_scalar_dense.default,
    _aten.native_layer_norm.default,
)


class LiveBytes(TorchDispatchMode):
    """Follows every storage that is allocated inside it, as CUDA's caching allocator counts them.

    What only data can decide is told: that a row without segments is one sequence (which transformers asks
    the positions about).
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = self._told(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._meet(storage, args, kwargs)
        return result

    def _told(self, func: Any, args: Sequence[Any]) -> Any:
        """Return what the meta device cannot say or says otherwise than the device that is meant."""
        if func not in _TOLD or args[0].device.type != "meta":
            return None
        if func is _aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else None
        if self.device == "cuda":
            return None
        # The CPU's kernel keeps mean and deviation in the input's type, CUDA's in float32, as meta does.
        out, *statistics = func(*args)
        return out, *(statistic.to(args[0].dtype) for statistic in statistics)

    def _meet(self, storage: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> None:
        """Count a storage, unless it was there before: then an argument lies in it."""
        given = (*args, *(kwargs or {}).values())
        old = any(tensor.untyped_storage()._cdata == storage._cdata for tensor in _tensors(given))
        size = 0 if old else -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        key = storage._cdata
        self._known[key] = weakref.ref(storage, partial(self._freed, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self.live -= size


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


class SavedOnMeta:
    """Counts what autograd saves by the rule of `harness.measure.memory.SavedBytes`.

    On the meta device no storage has an address, so that storages are told apart as objects.
    """

    def __init__(self, excluded: Iterable[torch.Tensor]) -> None:
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        self._saved: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes of the distinct storages saved."""
        return sum(self._saved.values())

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._excluded:
            self._saved[storage._cdata] = storage.nbytes()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside this context."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield
