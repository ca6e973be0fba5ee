"""Read back what W&B wrote offline, without the wandb client.

A `.wandb` file is 7 bytes of header (`:W&B`, magic 0xBEE1, version 0, little-endian) and then a LevelDB
log (github.com/google/leveldb, doc/log_format.md) of protobuf `Record`s: blocks of 32 KiB, in each
block chunks of crc32 (of type and payload), length and type (full, first, middle, last). The offsets of
blocks count from the start of the file, header included.

Imports wandb.proto inside the function that needs it: Python runs wandb's own __init__ first, 0.3 s.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from harness.parsing import Unreadable, read_json

_FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_BLOCK_BYTES = 32 * 1024
_CHUNK_HEADER = struct.Struct("<IHB")


class _ChunkType(IntEnum):
    full = 1
    first = 2
    middle = 3
    last = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbHistory:
    """What the offline files of one run say."""

    run_id: str | None
    """None where no file is whole enough to say."""
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    """One row per step, `step` first, in rising order; wandb's own keys (`_runtime`, …) left out."""
    problems: list[str]
    """Messages about what could not be read, each with the file's name."""


def has_ended(file: Path) -> bool:
    """Whether a `.wandb` file holds its exit record, the last one written; reads two blocks at most."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        start = max(0, (size - 1) // _BLOCK_BYTES - 1) * _BLOCK_BYTES
        stream.seek(start)
        tail = stream.read()
    payloads = _payloads(tail, 0 if start else len(_FILE_HEADER), file.name, [])
    return any(record.HasField("exit") for record in _parsed(payloads, file.name, []))


class _Damage(Exception):
    """The rest of the file, or a stretch of it, cannot be trusted."""


def read_wandb_run(directory: Path) -> WandbHistory:
    """Read every `.wandb` file under a run's `wandb/` directory (or the run's own) as one run.

    A resumed run leaves one file per process. Where two have the same step, the later file's row
    stands; configuration and summary keys, too, are the latest. A torn tail, as kill -9 leaves it, is
    reported in `problems`; what stands before it is used.
    """
    files = list(directory.rglob("*.wandb"))
    found = read_wandb_files(files)
    if not files:
        found.problems.append(f"{directory} has no .wandb file")
    return found


def read_wandb_files(files: Iterable[Path]) -> WandbHistory:
    """Read the `.wandb` files of one run; see `read_wandb_run`."""
    merged = _Merged()
    for file in sorted(files, key=_started):
        for record in _records(file, merged.problems):
            try:
                belongs = merged.add(record)
            except (Unreadable, ValueError, TypeError, OverflowError) as error:
                merged.problems.append(f"{file.name}: a record is not as wandb writes it: {error}")
                continue
            if not belongs:
                merged.problems.append(f"{file.name} is not of run {merged.run_id}; left out")
                break
    return WandbHistory(
        run_id=merged.run_id,
        config=_without_own_keys(merged.config),
        summary=_without_own_keys(merged.summary),
        history=[merged.rows[step] for step in sorted(merged.rows)],
        problems=merged.problems,
    )


@dataclass(slots=True)
class _Merged:
    """What the files read so far say together."""

    run_id: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, record: Any) -> bool:
        """Take one record in; False if it begins the file of another run."""
        match record.WhichOneof("record_type"):
            case "run":
                if self.run_id not in (None, record.run.run_id):
                    return False
                self.run_id = record.run.run_id
                _update(self.config, record.run.config)
            case "config":
                _update(self.config, record.config)
            case "summary":
                _update(self.summary, record.summary)
            case "history":
                row = _row(record.history)
                if len(row) > 1:  # else it came with a table, and has no number
                    self.rows[row["step"]] = row
            case _:  # telemetry, exit codes, requests: nothing that was logged
                pass
        return True


def _started(file: Path) -> tuple[str, str]:
    """Order files by their directories' names: `offline-run-<start>-<run id>[-<n>]`."""
    return file.parent.name, file.name


def _records(file: Path, problems: list[str]) -> Iterator[Any]:
    """Yield the protobuf records of one file, noting in `problems` what is damaged or missing."""
    content = file.read_bytes()
    if content[: len(_FILE_HEADER)] != _FILE_HEADER:
        problems.append(f"{file.name}: torn or no .wandb file: it begins with {content[:7]!r}")
        return
    ended = False
    for record in _parsed(
        _payloads(content, len(_FILE_HEADER), file.name, problems), file.name, problems
    ):
        ended = ended or record.HasField("exit")
        yield record
    if not ended:
        problems.append(f"{file.name}: no end: still being written, or its process was killed")


def _parsed(payloads: Iterator[bytes], name: str, problems: list[str]) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import (
        Record,  # pyright: ignore[reportAttributeAccessIssue]  (generated code)
    )

    for payload in payloads:
        record = Record()
        try:
            record.ParseFromString(payload)
        except DecodeError as error:
            problems.append(f"{name}: a record is no protobuf: {error}")
            continue
        yield record


def _payloads(content: bytes, offset: int, name: str, problems: list[str]) -> Iterator[bytes]:
    """Yield the payloads of a log from `offset` on, joining the chunks of those that cross blocks.

    `content` begins at a block. After damage reading goes on at the next block, as LevelDB does: a
    chunk's length cannot be trusted once its checksum fails.
    """
    parts: list[bytes] | None = None  # of a record whose last chunk is still to come
    while offset < len(content):
        block_end = offset - offset % _BLOCK_BYTES + _BLOCK_BYTES
        if block_end - offset < _CHUNK_HEADER.size:  # the writer fills with zeros
            offset = block_end
            continue
        try:
            kind, payload = _chunk(content, offset, block_end)
        except _Damage as damage:
            problems.append(f"{name}: {damage} at byte {offset} of {len(content)}")
            parts, offset = None, block_end
            continue
        offset += _CHUNK_HEADER.size + len(payload)
        match kind:
            case _ChunkType.full:
                parts = None
                yield payload
            case _ChunkType.first:
                parts = [payload]
            case _ChunkType.middle | _ChunkType.last:
                if parts is None:  # its beginning was damaged, and that was reported
                    continue
                parts.append(payload)
                if kind is _ChunkType.last:
                    yield b"".join(parts)
                    parts = None
    if parts is not None:
        problems.append(f"{name}: torn at its end: the last record is not complete")


def _chunk(content: bytes, offset: int, block_end: int) -> tuple[_ChunkType, bytes]:
    start = offset + _CHUNK_HEADER.size
    if start > len(content):
        raise _Damage("torn at its end")
    checksum, length, kind = _CHUNK_HEADER.unpack_from(content, offset)
    if start + length > block_end:
        raise _Damage(f"a chunk of {length} bytes leaves its block")
    if start + length > len(content):
        raise _Damage("torn at its end")
    payload = content[start : start + length]
    if zlib.crc32(payload, zlib.crc32(bytes([kind]))) != checksum:
        raise _Damage("a checksum does not match")
    try:
        return _ChunkType(kind), payload
    except ValueError:
        raise _Damage(f"a chunk has the unknown type {kind}") from None


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _update(tree: dict[str, Any], change: Any) -> None:
    """Apply a ConfigRecord or SummaryRecord: keys set, keys removed."""
    for item in change.update:
        tree[_name(item)] = read_json(item.value_json)  # NaN and Infinity included
    for item in change.remove:
        tree.pop(_name(item), None)


def _row(history: Any) -> dict[str, Any]:
    # What has several words is a part of a table or of another file that was logged, no number.
    items = (item for item in history.item if len(item.nested_key) < 2)
    values = {_name(item): read_json(item.value_json) for item in items}
    step = values.get("_step", history.step.num)
    return {"step": int(step)} | _without_own_keys(values)


def _without_own_keys(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if not name.startswith("_")}
