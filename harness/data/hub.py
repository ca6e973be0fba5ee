"""Hub data sets, and directories that `datasets` can load.

`datasets` finds the files of a split. It takes `NA` in a CSV file for nothing, `007` for 7 and, in JSON,
`2024-01-01` for a time, and names no line where it fails; so files of these two kinds are parsed by
`harness.data.files`. Everything else comes as `datasets` has it, in the types that the files say.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import DataConfig
from harness.data.files import json_field, json_lines, json_list, separated, without_absent
from harness.data.records import ReadRows, Record, RecordForm, read_records
from harness.errors import DataError
from harness.parsing import home_path

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_ABOUT_THE_FILES = ("name", "version", "data_dir", "data_files", "description")
_HONOURED_OF_CSV = ("sep", "delimiter", "names", "column_names", "header", "encoding")
_NO_PART_OF_CSV = ("na_values", "keep_default_na", "na_filter", "chunksize", "verbose")
"""What a data set's card may say of its CSV files: what is done, and what cannot change text."""


def read_hub(config: DataConfig) -> ReadRows:
    """Return the rows of the split that `config` names.

    Raises:
        DataError: `datasets` cannot load it, or a row cannot be used.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    assert config.hub is not None
    directory = home_path(config.hub)
    name = str(directory) if directory.is_dir() else config.hub
    source = f"{config.hub} ({config.hub_split})"
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(name, config.hub_config, revision=config.revision)
        if isinstance(builder, Csv | Json):
            records: Iterable[Record] = _split_of_files(config.hub_split, builder)
        else:
            builder.download_and_prepare()
            records = _split_of_tables(builder.as_dataset(config.hub_split), source)
    except DataError:
        raise
    except Exception as error:  # `datasets` documents no set of errors: some twenty types leave it
        raise DataError(
            f"data.hub={config.hub} could not be loaded (data.hub_config={config.hub_config}, "
            f"data.hub_split={config.hub_split}): {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return read_records(records, RecordForm.of(config), source)


def _split_of_tables(rows: Iterable[Any], source: str) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        yield Record(f"{source}, row {number}", without_absent(row))


def _split_of_files(split: str, builder: "DatasetBuilder") -> list[Record]:
    """Return the records that a name such as `train`, `train[:10%]` or `train+test` selects."""
    from datasets import ReadInstruction

    files = builder.config.data_files
    assert files is not None, "`datasets` makes no such builder without files"
    known = {str(name): urls for name, urls in files.items()}
    wanted = [part.partition("[")[0].strip() for part in split.split("+")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"Unknown split {name!r}; there are {', '.join(known)}")
    read = {name: list(_records(known[name], builder)) for name in dict.fromkeys(wanted)}
    counts = {name: len(records) for name, records in read.items()}
    parts = ReadInstruction.from_spec(split).to_absolute(counts)
    return list(chain(*(read[part.splitname][part.from_ : part.to] for part in parts)))


def _records(urls: list[str], builder: "DatasetBuilder") -> Iterator[Record]:
    from datasets import DownloadConfig, DownloadManager

    manager = DownloadManager(
        dataset_name=builder.dataset_name,
        download_config=DownloadConfig(use_etag=False, token=builder.token),
        base_path=builder.base_path,
    )
    for url, found in zip(urls, manager.download_and_extract(urls), strict=True):
        for file in manager.iter_files([found]):
            path = Path(file)
            inside = path.name if path.is_relative_to(found) and path != Path(found) else ""
            yield from _parsed(path.read_bytes(), inside or Path(url).name, builder.config)


def _parsed(content: bytes, name: str, config: Any) -> Iterator[Record]:
    """Parse one file as its data set's card says; a card that says more than is known here is refused."""
    from datasets.packaged_modules.csv.csv import CsvConfig

    encoding = config.encoding or "utf-8"
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    if isinstance(config, CsvConfig):
        _refuse_unknown_options(config, name)
        yield from separated(content, name, config.sep, config.names, encoding)
    elif config.field is not None:
        yield from json_field(content, name, config.field, encoding)
    elif content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from json_list(content, name, encoding)
    else:
        yield from json_lines(content, name, encoding)


def _refuse_unknown_options(config: Any, name: str) -> None:
    plain = type(config)()
    known = (*_ABOUT_THE_FILES, *_HONOURED_OF_CSV, *_NO_PART_OF_CSV)
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in known and value != getattr(plain, field.name):
            raise DataError(
                f"{name}: the data set's card says {field.name}={value!r} of its CSV files, which is not "
                "supported here; convert them, and give them as data.path"
            )
    has_names = config.names is not None
    if config.header not in (("infer", None) if has_names else ("infer", 0)):
        raise DataError(
            f"{name}: the data set's card says header={config.header!r} of its CSV files, which is not "
            "supported here; convert them, and give them as data.path"
        )
