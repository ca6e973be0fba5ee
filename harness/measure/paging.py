"""Bytes of managed memory that move between a GPU and the host: what paging an optimizer's state comes to.

CUPTI counts them (CUDA's profiling interface, which comes with torch; "Unified Memory Counter" in its
activity API): NVML knows nothing of managed memory. The counters are of the whole process. Constants and
layouts are those of cupti_activity.h; in all versions a record begins with kind, counter and value.
"""

import ctypes
import functools
import threading
from typing import Any, Protocol

import torch

_KIND = 25  # CUPTI_ACTIVITY_KIND_UNIFIED_MEMORY_COUNTER
_ONE_DEVICE = 1  # CUPTI_ACTIVITY_UNIFIED_MEMORY_COUNTER_SCOPE_PROCESS_SINGLE_DEVICE
_TO_DEVICE, _TO_HOST = 1, 2  # …_KIND_BYTES_TRANSFER_HTOD, …_DTOH
_FORCED = 1  # CUPTI_ACTIVITY_FLAG_FLUSH_FORCED
_BUFFER_BYTES = 1 << 20


class PagingCounters(Protocol):
    """What counts the bytes that have moved."""

    def moved_bytes(self) -> int:
        """Return the bytes moved to and from the device so far, waiting until all are counted."""
        ...


class PagingUnknown(Exception):
    """Nothing counts here; the message says why."""


def paging_counters(device: torch.device) -> PagingCounters:
    """Return the counters of a GPU, the same ones in all of this process; raises PagingUnknown."""
    if device.type != "cuda":
        raise PagingUnknown(f"memory of {device} has nowhere to move to")
    index = torch.cuda.current_device() if device.index is None else device.index
    return _counters(index)


@functools.cache
def _counters(index: int) -> PagingCounters:
    return Cupti(index, _library())


class _Config(ctypes.Structure):
    _fields_ = (
        ("scope", ctypes.c_int),
        ("counter", ctypes.c_int),
        ("device", ctypes.c_uint32),
        ("enable", ctypes.c_uint32),
    )


class _Activity(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("counter", ctypes.c_int),
        ("value", ctypes.c_uint64),
    )


_Requested = ctypes.CFUNCTYPE(
    None,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
)
_Completed = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
)


class Cupti:
    """CUPTI's counters of one device."""

    def __init__(self, index: int, library: Any) -> None:
        self._library = library
        self._moved = 0
        self._lock = threading.Lock()
        self._buffers: dict[int, Any] = {}
        self._requested, self._completed = _Requested(self._give), _Completed(self._take)
        self._device = index
        self._call("cuptiActivityRegisterCallbacks", self._requested, self._completed)
        counters = (_Config * 2)(
            *(_Config(_ONE_DEVICE, counter, index, 1) for counter in (_TO_DEVICE, _TO_HOST))
        )
        self._call("cuptiActivityConfigureUnifiedMemoryCounter", counters, ctypes.c_uint32(2))
        self._call("cuptiActivityEnable", ctypes.c_int(_KIND))

    def moved_bytes(self) -> int:
        """Return the bytes moved so far."""
        torch.cuda.synchronize(self._device)
        self._call("cuptiActivityFlushAll", ctypes.c_uint32(_FORCED))
        with self._lock:
            return self._moved

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            said = ctypes.c_char_p()
            self._library.cuptiGetResultString(result, ctypes.byref(said))
            text = (said.value or b"").decode(errors="replace")
            raise PagingUnknown(f"{name}: {text or result}")

    def _give(self, buffer: Any, size: Any, most_records: Any) -> None:
        """Give CUPTI room for records, from a thread of its own."""
        room = (ctypes.c_uint64 * (_BUFFER_BYTES // 8))()  # aligned to 8 bytes
        address = ctypes.addressof(room)
        with self._lock:
            self._buffers[address] = room
        buffer[0], size[0], most_records[0] = address, _BUFFER_BYTES, 0

    def _take(self, context: Any, stream: int, buffer: int, size: int, valid_bytes: int) -> None:
        """Count the records of a buffer, from a thread of CUPTI's."""
        record, moved = ctypes.c_void_p(), 0
        next_record = self._library.cuptiActivityGetNextRecord
        while (
            next_record(ctypes.c_void_p(buffer), ctypes.c_size_t(valid_bytes), ctypes.byref(record))
            == 0
        ):
            assert record.value is not None
            activity = _Activity.from_address(record.value)
            if activity.kind == _KIND and activity.counter in (_TO_DEVICE, _TO_HOST):
                moved += activity.value
        with self._lock:
            self._moved += moved
            self._buffers.pop(buffer, None)


def _library() -> Any:
    """Return CUPTI as torch has loaded it; raises PagingUnknown where there is none."""
    version = torch.version.cuda
    if version is None:
        raise PagingUnknown(f"torch {torch.__version__} is built without CUDA")
    name = f"libcupti.so.{version.partition('.')[0]}"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise PagingUnknown(f"{name} cannot be loaded: {error}") from None
