"""Paged bytes: CUPTI's records are summed, those of both directions.

CUPTI itself is stood in for: there is none without a GPU (tests/gpu has the real one).
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from harness.measure import paging
from harness.measure.paging import Cupti, PagingUnknown, paging_counters

TO_DEVICE, TO_HOST, CPU_FAULTS, KERNEL, LATER = 1, 2, 3, 10, 36


class Library:
    """CUPTI with the records that it is given, handed over when it is flushed."""

    def __init__(self, records: Sequence[tuple[int, int, int]], refuses: str | None = None) -> None:
        self._records, self._refuses = list(records), refuses

    def cuptiActivityRegisterCallbacks(self, requested: Any, completed: Any) -> int:  # noqa: N802
        self._requested, self._completed = requested, completed
        return 0

    def cuptiActivityConfigureUnifiedMemoryCounter(self, counters: Any, count: Any) -> int:  # noqa: N802
        of_device = 1  # of cupti_activity.h: what one device of this process has moved
        found = [(each.scope, each.counter, each.device, each.enable) for each in counters]
        assert found == [(of_device, TO_DEVICE, 0, 1), (of_device, TO_HOST, 0, 1)]
        assert count.value == 2
        return 33 if self._refuses else 0

    def cuptiGetResultString(self, result: int, said: Any) -> int:  # noqa: N802
        said._obj.value = (self._refuses or "").encode()
        return 0

    def cuptiActivityEnable(self, kind: Any) -> int:  # noqa: N802
        assert kind.value == 25
        return 0

    def cuptiActivityFlushAll(self, flag: Any) -> int:  # noqa: N802
        assert flag.value == 1, "buffers that are not full are given back, too"
        buffer, size, most = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
        self._requested(ctypes.byref(buffer), ctypes.byref(size), ctypes.byref(most))
        assert buffer.value is not None
        assert buffer.value % 8 == 0
        assert size.value >= 1 << 16
        words = (ctypes.c_uint32 * 16 * len(self._records)).from_address(buffer.value)
        for room, (kind, counter, value) in zip(words, self._records, strict=True):
            room[:4] = [kind, counter, value % 2**32, value // 2**32]
        self._left = [buffer.value + 64 * i for i in range(len(self._records))]
        self._records = []
        self._completed(None, 0, buffer, size, ctypes.sizeof(words))
        return 0

    def cuptiActivityGetNextRecord(self, buffer: Any, valid: Any, record: Any) -> int:  # noqa: N802
        if not self._left:
            return 12  # CUPTI_ERROR_MAX_LIMIT_REACHED
        record._obj.value = self._left.pop(0)
        return 0


def test_bytes_moved_in_both_directions_are_counted_and_nothing_else(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    large = 5 * 2**32 + 7
    records = [(25, TO_DEVICE, large), (25, CPU_FAULTS, 99), (25, TO_HOST, 4096)]
    records += [(KERNEL, TO_DEVICE, 55), (LATER, TO_HOST, 77)]
    counters = Cupti(0, Library(records))
    assert counters.moved_bytes() == large + 4096
    assert counters.moved_bytes() == large + 4096  # nothing has moved since


def test_where_nothing_counts_the_reason_is_cuptis_own() -> None:
    with pytest.raises(PagingUnknown, match=r"Configure\w+: CUPTI_ERROR_NOT_SUPPORTED_HERE"):
        Cupti(0, Library([], refuses="CUPTI_ERROR_NOT_SUPPORTED_HERE"))
    with pytest.raises(PagingUnknown, match="nowhere"):
        paging_counters(torch.device("cpu"))


def test_the_library_is_that_of_torchs_own_cuda(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(PagingUnknown, match="is built without CUDA"):
        paging._library()
    monkeypatch.setattr(torch.version, "cuda", "99.4")
    with pytest.raises(PagingUnknown, match=r"libcupti\.so\.99 cannot be loaded: "):
        paging._library()


def test_a_gpu_is_counted_by_its_number_or_the_current_one(monkeypatch) -> None:
    monkeypatch.setattr(paging, "_counters", lambda index: index)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    assert paging_counters(torch.device("cuda", 0)) == 0
    assert paging_counters(torch.device("cuda", 3)) == 3
    assert paging_counters(torch.device("cuda")) == 5
