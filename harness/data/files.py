"""Local data files: .jsonl, .json and .txt, parsed here so that an error names file and line.

Imports nothing heavy. A file is parsed once per process: checking and reading share the result.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.config.schema import DataForm
from harness.data.example import Example
from harness.data.records import ReadRows, Record, RecordForm, read_records
from harness.errors import DataError, near_names
from harness.parsing import home_path

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""A line of a .txt file that separates documents, as TinyStories' files do."""
SUFFIXES = (".jsonl", ".json", ".txt")
_PIECE_CHARACTERS = 2000
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class FileVersion:
    """A file's identity on disk; the file is read again when any of this changes."""

    path: Path
    inode: int
    size: int
    modified_ns: int


def read_file(path: str, form: RecordForm, key: str) -> ReadRows:
    """Return the examples of one file, parsed at most once per process; `key` is the config key.

    Raises:
        DataError: the file is missing, is no file, has an unknown suffix, no usable row, or a malformed
            one, which the message names by file and line.
    """
    return _parse(file_version(path, key), form)


def file_digest(path: str, key: str) -> str:
    """Return the SHA-256 of a file's bytes and suffix (the suffix says how it is parsed)."""
    version = file_version(path, key)
    if version not in _digests:
        _content(version)
    return _digests[version]


def resolved_file(path: str, key: str) -> Path:
    """Return the absolute path of a data file; refuses what cannot be one (DataError)."""
    return file_version(path, key).path


def file_version(path: str, key: str) -> FileVersion:
    """Return which file a path is now; refuses what cannot be a data file (DataError)."""
    given = home_path(path)
    if given.is_dir():
        raise DataError(
            f"{key}={path} is a directory; give a {_either(SUFFIXES)} file, or data.hub={path} for a "
            "directory that `datasets` can load"
        )
    if not given.is_file():
        parent = given.parent
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        where = near_names(given.name, names) if names else f"; {parent} is no directory"
        raise DataError(f"{key}={path}: no such file{where}")
    if given.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{key}={path}: the suffix must be {_either(SUFFIXES)}, got '{given.suffix}'; other "
            "formats load through data.hub=DIRECTORY"
        )
    status = given.stat()
    return FileVersion(given.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


def _either(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"


_digests: dict[FileVersion, str] = {}
"""Of every file that has been read."""


def _content(version: FileVersion) -> bytes:
    """Read a file, and keep its digest: whoever asks for that later reads nothing."""
    content = version.path.read_bytes()
    digest = hashlib.sha256(version.path.suffix.lower().encode() + b"\0")
    digest.update(content)
    _digests[version] = digest.hexdigest()
    return content


@lru_cache(maxsize=16)
def _parse(version: FileVersion, form: RecordForm) -> ReadRows:
    name = version.path.name
    content = _content(version)
    match version.path.suffix.lower():
        case ".jsonl":
            return read_records(_json_lines(content, name), form, name)
        case ".json":
            return read_records(_json_list(content, name), form, name)
        case _:
            return _plain_text(_decoded(content, name), form, name)


def _decoded(content: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte-order mark; names the line that is not."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); convert the file to UTF-8"
        ) from None


def _json_lines(content: bytes, name: str) -> Iterator[Record]:
    for number, line in enumerate(_decoded(content, name).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            yield Record(place, json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: not JSON: {error.msg} at column {error.colno}; a .jsonl file has one JSON "
                "object per line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: {_beyond(error)}") from None


def _beyond(error: Exception) -> str:
    """Say what JSON allows and no row has: a number of thousands of digits, brackets by the thousand."""
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    return f"a number cannot be read: {error}"


def _json_list(content: bytes, name: str) -> Iterator[Record]:
    """Yield the objects of one JSON list, each with the line that it starts on."""
    text = _decoded(content, name)
    decoder = json.JSONDecoder()

    def skip(position: int) -> int:
        match = _WHITE_SPACE.match(text, position)
        return match.end() if match else position

    def malformed(position: int, problem: str) -> DataError:
        line = text.count("\n", 0, position) + 1
        return DataError(
            f"{name}:{line}: not JSON: {problem}; a .json file is one list of objects, and one object "
            "per line makes a .jsonl file"
        )

    position = skip(0)
    if not text[position:]:
        return
    if text[position] != "[":
        raise malformed(position, f"expected '[', got {text[position]!r}")
    position = skip(position + 1)
    line, counted = 1, 0
    closed = text.startswith("]", position)
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise malformed(error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{line}: {_beyond(error)}") from None
        yield Record(f"{name}:{line}", value)
        position = skip(end)
        closed = text.startswith("]", position)
        if not closed:
            if not text.startswith(",", position):
                raise malformed(position, "expected ',' or ']' after a row")
            position = skip(position + 1)
    if skip(position + 1) != len(text):
        raise malformed(skip(position + 1), "something follows the list")


def _plain_text(text: str, form: RecordForm, name: str) -> ReadRows:
    if form.form is not DataForm.text:
        raise DataError(
            f"{name} is plain text, but data.form={form.form.value}; set data.form=text"
        )
    examples = text_examples(text)
    if not examples:
        raise DataError(f"{name} has no usable rows: it is empty")
    return ReadRows(examples=examples, num_empty=0)


def text_examples(text: str) -> tuple[Example, ...]:
    """Return the documents of a plain text.

    Lines that are exactly `<|endoftext|>` separate documents; where there is none, blank lines do. A
    text that is one document is divided at white space about every 2,000 characters, so that held-out
    rows can be split off; all its parts but the last go on in the next (`Example.complete`). Nothing
    but separators and the white space around documents is lost.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    has_separators = any(line.strip() == DOCUMENT_SEPARATOR for line in lines)
    separator = DOCUMENT_SEPARATOR if has_separators else ""
    documents: list[str] = []
    block: list[str] = []
    for line in [*lines, separator]:
        if line.strip() == separator:
            documents.append("\n".join(block).strip())
            block = []
        else:
            block.append(line)
    documents = [document for document in documents if document]
    if len(documents) == 1:
        return _pieces(documents[0])
    return tuple(Example(text=document) for document in documents)


def _pieces(document: str) -> tuple[Example, ...]:
    """Cut after the first white space past every 2,000 characters."""
    pieces: list[str] = []
    start = 0
    while start < len(document):
        gap = re.compile(r"\s").search(document, start + _PIECE_CHARACTERS)
        end = gap.end() if gap else len(document)
        pieces.append(document[start:end])
        start = end
    last = len(pieces) - 1
    return tuple(Example(text=piece, complete=index == last) for index, piece in enumerate(pieces))
