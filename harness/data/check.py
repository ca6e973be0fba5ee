"""Judge `DataConfig` before a model is loaded. Must not import torch, transformers or datasets."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from harness.config.schema import DataConfig, DataForm, Template
from harness.data.files import SUFFIXES, file_digest, read_file, resolved_file, suffix_of
from harness.data.prompts import read_prompts
from harness.data.records import RecordForm
from harness.data.sources import read_splits
from harness.errors import DataError
from harness.parsing import home_path

MIN_LENGTH = 8
"""Fewest tokens of a row: a start token, a prompt, a response and an end token need some room."""

_DEFAULTS = DataConfig()
_HUB_READER = 2
"""Raise it where the same files of a hub data set become other rows."""
_CHAT_RENDERING = 2
"""Raise it where a model's chat template gives other rows of the same conversations."""
_HUB_KEYS = ("hub_config", "hub_split", "revision")
_FILE_KEYS = ("validation_path", "test_path")
_PAIR_KEYS = ("prompt_column", "response_column", "input_column")
_FORM_KEYS = ("form", *_PAIR_KEYS, "messages_column", "text_column")


def check_data(config: DataConfig) -> None:
    """Refuse whatever is wrong with the data, as far as it shows without a tokenizer.

    Local files are parsed (once per process: `read_splits` uses the result), embedded tasks are made. A
    hub data set is loaded only by `read_splits`.

    Raises:
        DataError: not exactly one source; a number out of range; a key that the others make ineffective; a
            file or row that cannot be used; a source that leaves no training row.
    """
    _check_one_source(config)
    _check_numbers(config)
    _check_template(config)
    _check_ignored(config)
    if config.answers is not None:
        read_prompts(config.answers, config, "data.answers")
    if config.hub is None:
        _check_distinct_files(config)
        read_splits(config)
        return
    _check_hub_directory(config.hub)
    form = RecordForm.of(config)
    for key in _FILE_KEYS:
        path = getattr(config, key)
        if path is not None:
            read_file(path, form, f"data.{key}")


def _check_one_source(config: DataConfig) -> None:
    sources = ("task", "path", "hub")
    values = {key: getattr(config, key) for key in sources}
    given = [f"data.{key}={value}" for key, value in values.items() if value is not None]
    if len(given) != 1:
        raise DataError(
            f"exactly one of data.task (an embedded task), data.path (a file: {', '.join(SUFFIXES)}) and "
            f"data.hub (a data set) must be given, got {', '.join(given) or 'none of them'}"
        )


def _check_numbers(config: DataConfig) -> None:
    limits = {"validation_rows": 0, "test_rows": 0, "max_length": MIN_LENGTH}
    if config.train_rows is not None:
        limits["train_rows"] = 1
    for key, smallest in limits.items():
        if getattr(config, key) < smallest:
            raise DataError(f"data.{key}={getattr(config, key)} must be at least {smallest}")


def _check_template(config: DataConfig) -> None:
    if config.form is DataForm.messages and config.template is Template.alpaca:
        raise DataError(
            "data.template=alpaca has one instruction and one response and cannot render "
            "data.form=messages; use data.template=chatml, tokenizer or plain"
        )


def _check_ignored(config: DataConfig) -> None:
    for keys, reason in _ineffective(config):
        for key in keys:
            value = getattr(config, key)
            if value != getattr(_DEFAULTS, key):
                shown = getattr(value, "value", value)
                raise DataError(f"data.{key}={shown} would be ignored: {reason}")


def _ineffective(config: DataConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys that the rest of `config` makes ineffective, with the reason."""
    if config.task is not None:
        reason = f"data.task={config.task} makes its own prompts and responses"
        yield (*_HUB_KEYS, *_FILE_KEYS, *_FORM_KEYS), reason
    if config.path is not None:
        yield _HUB_KEYS, "it belongs to data.hub, and data.path is given"
    if config.hub is not None and home_path(config.hub).is_dir():
        yield ("revision",), f"data.hub={config.hub} is a local directory, which has no revisions"
    if config.form is not DataForm.pairs:
        yield _PAIR_KEYS, f"it belongs to data.form=pairs, got data.form={config.form.value}"
    if config.form is not DataForm.messages:
        reason = f"it belongs to data.form=messages, got data.form={config.form.value}"
        yield ("messages_column",), reason
    if config.form is not DataForm.text:
        yield ("text_column",), f"it belongs to data.form=text, got data.form={config.form.value}"
    elif config.path is not None and all(map(_is_plain_text, _files(config).values())):
        yield ("text_column",), "a .txt file has no columns"
    if config.form is DataForm.text:
        yield (
            ("template", "system"),
            "data.form=text has no prompt and no response to put it around",
        )
    if config.template is not Template.tokenizer:
        yield ("strict",), f"data.template={config.template.value} renders answers as they are"
    if config.template not in (Template.chatml, Template.tokenizer):
        reason = "use data.template=chatml or tokenizer, or leave it out"
        yield ("system",), f"data.template={config.template.value} has no system message; {reason}"


def _files(config: DataConfig) -> dict[str, str]:
    """Return the local files of `config` by key."""
    keys = ("path", *_FILE_KEYS)
    return {key: path for key in keys if (path := getattr(config, key)) is not None}


def _is_plain_text(path: str) -> bool:
    return suffix_of(Path(path)) == ".txt"


def _check_distinct_files(config: DataConfig) -> None:
    seen: dict[Path, str] = {}
    for key, path in _files(config).items():
        file = resolved_file(path, f"data.{key}")
        if file in seen:
            raise DataError(
                f"data.{key} and data.{seen[file]} are the same file, {path}: the splits must not share "
                f"rows; leave data.{key} out to split rows off"
            )
        seen[file] = key


def _check_hub_directory(hub: str) -> None:
    """Refuse what is plainly a path but no directory: the hub would answer after a long wait."""
    path = home_path(hub)
    if path.is_file():
        raise DataError(f"data.hub={hub} is a file; give it as data.path")
    if not path.is_dir() and (hub.startswith(("/", ".", "~")) or hub.count("/") > 1):
        raise DataError(
            f"data.hub={hub}: no such directory; give a directory or a data set id as owner/name"
        )


def data_fingerprint(config: DataConfig) -> str:
    """Return the SHA-256 of what determines the rows, whatever their path is called.

    Files count by content and suffix, an embedded task by its name, sizes, seed and rows, a hub data set
    by id, configuration, split and revision (a local directory by its files). How rows are rendered and
    split stands in the configuration; only the versions of what reads and renders them are part of this.

    Raises:
        DataError: a file is missing.
    """
    parts: dict[str, object] = {}
    if config.task is not None:
        splits = read_splits(config)
        sizes = (config.train_rows, config.validation_rows, config.test_rows)
        parts["task"] = (config.task, sizes, config.split_seed)
        parts["rows"] = splits.digest()
    if config.hub is not None:
        directory = home_path(config.hub)
        parts["hub"] = _directory_digest(directory) if directory.is_dir() else config.hub
        parts["hub_part"] = (config.hub_config, config.hub_split, config.revision)
        parts["hub_reader"] = _HUB_READER
    if config.template is Template.tokenizer:
        parts["chat_rendering"] = _CHAT_RENDERING
    for key, path in _files(config).items():
        parts[key] = file_digest(path, f"data.{key}")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _directory_digest(directory: Path) -> str:
    """Return the SHA-256 of the names and contents of a directory's files, hidden ones left out."""
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*")):
        inside = file.relative_to(directory)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{inside.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
