"""Freed memory of a CPU process: kept between steps, given back between phases.

A step frees what the next one allocates again, tensors of megabytes. glibc hands such blocks back to the
kernel at once, and every page of them costs a fault when it is used again: a third of a step's time where the
runs of a cohort have 1,024 tokens each (bench/LOG.md).
"""

import ctypes
import functools
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_LARGEST = 2**31 - 1


@functools.cache
def _glibc() -> Any | None:
    """Return the C library, if it is one that takes such advice."""
    library = ctypes.CDLL(None)
    known = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    return library if known else None


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep what it frees, up to 2 GiB, whatever the size of the blocks."""
    library = _glibc()
    if library is not None:
        library.mallopt(_TRIM_THRESHOLD, _LARGEST)
        library.mallopt(_MMAP_MAX, 0)


def give_back_freed_memory() -> None:
    """Return freed pages to the kernel, so that a resident peak counts what is in use."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
