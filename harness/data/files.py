"""Data files, parsed here so that an error names file and line, and so that a reader adds nothing.

Text stays text: `NA`, `null`, `007` and `2024-01-01` are what somebody wrote, no missing value, number or
time. Imports nothing heavy, except pyarrow for a .parquet file. A file is parsed once per process: checking
and reading share the result.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
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
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""What a file's name ends in, or, except .parquet, ends in before `.gz`."""
_GZIP = ".gz"
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


def file_records(path: str, key: str) -> Iterator[Record]:
    """Yield the rows of a file that is no plain text, whatever they hold. Raises DataError."""
    return _records(file_version(path, key))


def plain_lines(path: str, key: str) -> list[str]:
    """Return the lines of a text file that are not blank. Raises DataError."""
    version = file_version(path, key)
    lines = _decoded(_uncompressed(version), version.path.name).splitlines()
    return [line.strip() for line in lines if line.strip()]


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
    if suffix_of(given) not in SUFFIXES:
        raise DataError(
            f"{key}={path}: the suffix must be {_either(SUFFIXES)} (.gz may follow, except after .parquet), "
            f"got '{given.suffix}'; other formats load through data.hub=DIRECTORY"
        )
    status = given.stat()
    return FileVersion(given.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


def suffix_of(path: Path) -> str:
    """Return the suffix that says how a file is parsed: `.csv` of `rows.csv.gz`."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix == _GZIP and inner != ".parquet" else suffix


def _either(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"


_digests: dict[FileVersion, str] = {}
"""Of every file that has been read."""


def _content(version: FileVersion) -> bytes:
    """Read a file, and keep its digest: whoever asks for that later reads nothing."""
    content = version.path.read_bytes()
    suffix = version.path.suffix.lower()
    told = suffix_of(version.path) + suffix if suffix == _GZIP else suffix
    digest = hashlib.sha256(told.encode() + b"\0")
    digest.update(content)
    _digests[version] = digest.hexdigest()
    return content


@lru_cache(maxsize=16)
def _parse(version: FileVersion, form: RecordForm) -> ReadRows:
    name = version.path.name
    if suffix_of(version.path) == ".txt":
        return _plain_text(_decoded(_uncompressed(version), name), form, name)
    return read_records(_records(version), form, name)


def _records(version: FileVersion) -> Iterator[Record]:
    name, suffix, content = version.path.name, suffix_of(version.path), _uncompressed(version)
    match suffix:
        case ".json":
            return json_list(content, name)
        case ".parquet":
            return _parquet(content, name)
        case ".csv" | ".tsv":
            return separated(content, name, "," if suffix == ".csv" else "\t")
        case _:
            return json_lines(content, name)


def _uncompressed(version: FileVersion) -> bytes:
    content = _content(version)
    if version.path.suffix.lower() != _GZIP:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{version.path.name} cannot be decompressed: {error}") from None


def _decoded(content: bytes, name: str, encoding: str = "utf-8-sig") -> str:
    """Decode UTF-8, with or without a byte-order mark; names the line that is not."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        called = "UTF-8" if encoding == "utf-8-sig" else encoding
        raise DataError(
            f"{name}:{line}: not {called} (byte 0x{content[error.start]:02x}); convert the file to UTF-8"
        ) from None


def separated(
    content: bytes,
    name: str,
    separator: str,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8-sig",
) -> Iterator[Record]:
    """Yield the rows of a CSV file, all values as text; `columns`: of a file without a line of names.

    A row is named by the line that it starts on: quoted text may hold line ends.
    """
    text = _decoded(content, name, encoding)
    csv.field_size_limit(sys.maxsize)  # of the whole process; 128 KiB where nobody says otherwise
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for fields in reader:
            place, line = f"{name}:{line}", reader.line_num + 1
            if not fields:
                continue  # an empty line
            if columns is None:
                columns = fields
                _refuse_repeated(columns, place)
            elif len(fields) != len(columns):
                raise DataError(
                    f"{place}: has {len(fields)} values for {len(columns)} columns ({', '.join(columns)}); a "
                    f"value with {separator!r} or a line end in it stands in double quotes"
                )
            else:
                yield Record(place, dict(zip(columns, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name}:{line}: not CSV: {error}") from None


def _refuse_repeated(columns: Sequence[str], place: str) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(f"{place}: several columns are called {', '.join(map(repr, repeated))}")


def _parquet(content: bytes, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{name}, row {number}", without_absent(row))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read as parquet: {error}") from None


def without_absent(row: dict[str, object]) -> dict[str, object]:
    """Return a row of Arrow's without the nulls that it holds for keys that a message or a call lacks.

    In an Arrow table all records of a column have the same keys: one call's `city` puts `city: null` into
    every other call's arguments, which a chat template would write out.
    """

    def whole(value: object) -> object:
        if isinstance(value, list):
            return [whole(each) for each in value]
        if isinstance(value, dict):
            return {key: whole(each) for key, each in value.items() if each is not None}
        return value

    return {column: whole(value) for column, value in row.items()}


def json_lines(content: bytes, name: str, encoding: str = "utf-8-sig") -> Iterator[Record]:
    """Yield the objects of a file with one in each line."""
    for number, line in enumerate(_decoded(content, name, encoding).split("\n"), 1):
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


def json_list(content: bytes, name: str, encoding: str = "utf-8-sig") -> Iterator[Record]:
    """Yield the objects of one JSON list, each with the line that it starts on."""
    text = _decoded(content, name, encoding)
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


def json_field(
    content: bytes, name: str, field: str, encoding: str = "utf-8-sig"
) -> Iterator[Record]:
    """Yield the objects of the list that one field of a JSON object holds."""
    try:
        whole = json.loads(_decoded(content, name, encoding))
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: {_beyond(error)}") from None
    rows = whole.get(field) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{name}: is no object whose field '{field}' holds a list of rows")
    for number, row in enumerate(rows, 1):
        yield Record(f"{name}, row {number} of {field}", row)


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
