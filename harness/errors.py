"""What can go wrong, as types: each maps to one exit code. Imports nothing of the harness."""

import difflib
import errno
from collections.abc import Iterable


class RequestError(ValueError):
    """The request was wrong and nothing was touched (exit code 2).

    The message says what was wrong, what was given and what would work.
    """


class DataError(RequestError):
    """A data file that cannot be used; the message names the file and, where there is one, the line."""


class DiskTrouble(RuntimeError):
    """The disk has refused what every run here needs: each goes on from its checkpoint, later."""


class RunFailed(RuntimeError):
    """The work itself failed after it had begun (exit code 1); the record says how."""


_REFUSALS = (
    "out of memory",  # CUDA's and HIP's allocators, bitsandbytes' managed memory
    "outofmemory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "unable to allocate",
    "failed to allocate",
    "memory allocation",
    "could not create a primitive",  # oneDNN, where its scratch space or its code cannot be had
    "could not create a memory",
    "could not execute a primitive",
    "alloc_failed",  # cuBLAS, cuDNN, cuSPARSE, cuSOLVER
    "cudnn_status_internal_error_host_allocation_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "bad_alloc",
    "enforce fail at alloc_cpu",
    "unable to mmap",
    "mmap failed",
)


def says_out_of_memory(text: str) -> bool:
    """Whether a message is an allocator's refusal; most of them have no exception of their own."""
    lower = text.lower()
    return any(refusal in lower for refusal in _REFUSALS)


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG)
_DISK_SAYS = (  # of what torch and safetensors raise instead of an OSError
    "no space left on device",
    "disk quota exceeded",
    "read-only file system",
    "input/output error",
    "pytorchstreamwriter failed",
    "database or disk is full",
    "disk i/o error",
)


def disk_refusal(error: BaseException) -> str | None:
    """Return what the disk refused, in words, or None for an error of another kind."""
    if isinstance(error, DiskTrouble):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return text[:300] if any(said in text.lower() for said in _DISK_SAYS) else None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def near_names(given: str, known: Iterable[str], limit: int = 4) -> str:
    """Return `"; near names: a, b"` for the known names closest to `given`, or `""` if none is near."""
    known = sorted(set(known))
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), list(lower), n=limit, cutoff=0.6)
    tail = given.rsplit(".", 1)[-1].lower()
    for name in known:  # a right leaf under a wrong parent is near, whatever the edit distance
        if len(close) < limit and name.lower() not in close and name.lower().endswith(tail):
            close.append(name.lower())
    return f"; near names: {', '.join(lower[name] for name in close)}" if close else ""
