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

_NAMES = (
    "0:F32 1:F16 2:Q4_0 3:Q4_1 6:Q5_0 7:Q5_1 8:Q8_0 9:Q8_1 10:Q2_K 11:Q3_K 12:Q4_K 13:Q5_K 14:Q6_K 15:Q8_K "
    "16:IQ2_XXS 17:IQ2_XS 18:IQ3_XXS 19:IQ1_S 20:IQ4_NL 21:IQ3_S 22:IQ2_S 23:IQ4_XS 28:F64 29:IQ1_M 30:BF16 "
    "34:TQ1_0 35:TQ2_0 39:MXFP4"
)
_TYPES = {int(number): name for number, name in (pair.split(":") for pair in _NAMES.split())}
"""Names of ggml's types by number, as in its `ggml.h`."""
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
    for _ in range(tensors):
        name = reader.text()
        dimensions = reader.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _Damaged(f"{name} has {dimensions} dimensions")
        shape = [reader.number("Q") for _ in range(dimensions)]
        kind = reader.number("I")
        reader.number("Q")
        if name.startswith("blk.") and dimensions >= 2:
            types[_TYPES.get(kind, f"type {kind}")] += prod(shape)
    return GgufHeader(
        architecture=architecture,
        has_tokenizer="tokenizer.ggml.tokens" in metadata,
        block_types=dict(types),
    )
