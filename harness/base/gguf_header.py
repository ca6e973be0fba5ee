"""What a GGUF file says of itself before any weight is read: its architecture and its tensors' types.

Must not import torch, transformers or gguf: a file that is none is refused before they are loaded.
Format: ggml-org/ggml, docs/gguf.md.
"""

import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from harness.errors import RequestError

_VERSIONS = (2, 3)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 32
"""Of anything that is counted: a damaged count must not be read for ever."""
_MOST_DIMENSIONS = 4

_KINDS = (
    "0:F32:1:4 1:F16:1:2 2:Q4_0:32:18 3:Q4_1:32:20 6:Q5_0:32:22 7:Q5_1:32:24 8:Q8_0:32:34 10:Q2_K:256:84 "
    "11:Q3_K:256:110 12:Q4_K:256:144 13:Q5_K:256:176 14:Q6_K:256:210 15:Q8_K:256:292 16:IQ2_XXS:256:66 "
    "17:IQ2_XS:256:74 18:IQ3_XXS:256:98 19:IQ1_S:256:50 20:IQ4_NL:32:18 21:IQ3_S:256:110 22:IQ2_S:256:82 "
    "23:IQ4_XS:256:136 28:F64:1:8 29:IQ1_M:256:56 30:BF16:1:2 34:TQ1_0:256:54 35:TQ2_0:256:66 39:MXFP4:32:17"
)
_TYPES = {
    int(number): (name, int(weights), int(size))
    for number, name, weights, size in (kind.split(":") for kind in _KINDS.split())
}
"""ggml's types by number, as in its `ggml.h`: the name, the weights of a block, and its bytes."""
_ALIGNMENT = 32
"""Of the tensors, where the metadata does not say it."""
_UNROUNDED = ("F32", "F64")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """The part of a GGUF file that comes before its tensors."""

    architecture: str
    has_tokenizer: bool
    block_types: dict[str, int]
    """Weights of the blocks' matrices by the type that they are stored in."""

    @property
    def storage(self) -> str:
        """How the blocks' matrices are stored, the largest part first: `Q4_K and Q6_K`."""
        named = sorted(self.block_types, key=lambda name: -self.block_types[name])
        return " and ".join(named) or "F32"

    @property
    def is_rounded(self) -> bool:
        """Whether the blocks' matrices have lost what float32 would have kept."""
        return any(name not in _UNROUNDED for name in self.block_types)


def read_gguf_header(path: Path) -> GgufHeader:
    """Return what a file says of itself. Raises RequestError for one that is damaged or none at all."""
    try:
        with path.open("rb") as file:
            return _header(_Reader(file, path.stat().st_size))
    except (_Damaged, struct.error, UnicodeDecodeError, OSError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(
            f"model={path} cannot be read as a GGUF file: {reason}; give a whole one of version 2 or 3"
        ) from error


class _Damaged(ValueError):
    """A file that is no GGUF file, or a part of one."""


class _Reader:
    """Values from a file, none of them longer than the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def check_end(self, begin: int, data_bytes: int) -> None:
        """Raise _Damaged for a file that is shorter than its tensors, which begin at `begin`, need."""
        if data_bytes and begin + data_bytes > self._size:
            raise _Damaged(
                f"it ends in the middle of its tensors, after {self._size:,} of {begin + data_bytes:,} bytes"
            )

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._file.tell()

    def bytes(self, count: int) -> bytes:
        if count > self._size:
            raise _Damaged("a text in it is longer than the file")
        found = self._file.read(count)
        if len(found) < count:
            raise _Damaged("it ends before its tensors begin")
        return found

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def count(self) -> int:
        found = self.number("Q")
        if found > min(_MOST, self._size):
            raise _Damaged(f"it counts {found:,} of something in {self._size:,} bytes")
        return found

    def text(self) -> str:
        return self.bytes(self.count()).decode()

    def value(self, kind: int) -> object:
        """Return a value of the metadata; of an array only that it was there."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            element, count = self.number("I"), self.count()
            if element in _SCALARS:
                self.bytes(count * struct.calcsize(f"<{_SCALARS[element]}"))
            else:
                for _ in range(count):
                    self.value(element)
            return None
        if kind not in _SCALARS:
            raise _Damaged(f"its metadata has a value of type {kind}, which there is none of")
        return self.number(_SCALARS[kind])


def _header(reader: _Reader) -> GgufHeader:
    if reader.bytes(4) != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    version = reader.number("I")
    if version not in _VERSIONS:
        raise _Damaged(f"it is of version {version}")
    tensors, values = reader.count(), reader.count()
    metadata: dict[str, object] = {}
    for _ in range(values):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise _Damaged("it does not name its architecture")
    types: Counter[str] = Counter()
    data_bytes = 0
    for _ in range(tensors):
        name = reader.text()
        dimensions = reader.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _Damaged(f"{name} has {dimensions} dimensions")
        shape = [reader.number("Q") for _ in range(dimensions)]
        kind, offset = reader.number("I"), reader.number("Q")
        named, weights, size = _TYPES.get(kind, (f"type {kind}", 1, 0))
        data_bytes = max(data_bytes, offset + prod(shape) // weights * size)
        if name.startswith("blk.") and dimensions >= 2:
            types[named] += prod(shape)
    alignment = metadata.get("general.alignment")
    step = alignment if isinstance(alignment, int) and alignment > 0 else _ALIGNMENT
    reader.check_end(-(-reader.position // step) * step, data_bytes)
    return GgufHeader(
        architecture=architecture,
        has_tokenizer="tokenizer.ggml.tokens" in metadata,
        block_types=dict(types),
    )
