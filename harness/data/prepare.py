"""The data of a run, tokenized once: read, rendered, tokenized, laid out in rows, and cached on disk."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.config.schema import DataConfig, Split
from harness.data.check import data_fingerprint
from harness.data.rows import NO_LOSS, TokenRows
from harness.data.sources import SourceReport, Splits, empty_split_message, read_splits
from harness.data.tokenize import (
    EncodedRows,
    encode,
    packed_rows,
    padded_length,
    padded_rows,
    padding_id,
)
from harness.errors import DataError
from harness.records.run_directory import staged, sweep_staged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT_VERSION = 4
"""Raise it with every change of what rows look like: older files are then never read."""
_TENSORS = ("input_ids_NT", "targets_NT", "segments_NT", "lengths_N", "source_N")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport:
    """How the examples of one split became rows; tokens are positions that are not padding."""

    examples: int
    rows: int
    row_length: int
    cut: int
    """Examples cut at `max_length`."""
    dropped: int
    """Examples of which the cut left nothing that carries loss."""
    changed: int
    """Examples in whose answers the model's chat template dropped or added text."""
    continued: int
    """Rows that go on with the plain text of the row before."""
    tokens: int
    loss_tokens: int
    padding_share: float | None
    """Padding over all positions; None where there is no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What the data became, for the record."""

    source: SourceReport
    max_length: int
    """`data.max_length`: what `cut` and `dropped` are counted against."""
    splits: dict[Split, SplitReport]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        splits = {split.value: asdict(report) for split, report in self.splits.items()}
        return {**asdict(self.source), "max_length": self.max_length, "splits": splits}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """Tokenized splits, the examples that they come from, and what is to be reported of them."""

    train: TokenRows
    validation: TokenRows
    test: TokenRows
    splits: Splits
    report: DataReport
    fingerprint: str
    """`harness.data.check.data_fingerprint`."""

    def rows(self, split: Split) -> TokenRows:
        """Return the rows of `split`; an empty one is a DataError, since it is asked for."""
        match split:
            case Split.train:
                rows = self.train
            case Split.validation:
                rows = self.validation
            case Split.test:
                rows = self.test
            case _:
                assert_never(split)
        if not len(rows):
            raise DataError(_no_rows_message(split, self.report))
        return rows


def prepare_data(
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    tokenizer_fingerprint: str,
    cache_dir: Path,
    *,
    keep: bool = True,
) -> PreparedData:
    """Read the data and return its rows, from `cache_dir` where this form of it has been tokenized before.

    With `keep` a new form of it is left there. `tokenizer_fingerprint` covers everything that changes what
    the tokenizer does, its chat template included. Training rows are packed where `data.packing`; validation
    and test rows are padded, one example each. All padded splits have one row length, so nothing depends on
    the batch.

    Raises:
        DataError: as `read_splits` and `render` do, or `max_length` leaves no training row.
    """
    splits = read_splits(config)
    fingerprint = data_fingerprint(config)
    key = _cache_key(config, splits, fingerprint, tokenizer_fingerprint)
    file = cache_dir / f"{key}.safetensors"
    cached = _load(file)
    if cached is None:
        cached = _tokenized(config, splits, tokenizer)
        if keep:
            _store(file, *cached)
    rows, reports = cached
    prepared = PreparedData(
        train=rows[Split.train],
        validation=rows[Split.validation],
        test=rows[Split.test],
        splits=splits,
        report=DataReport(source=splits.report, max_length=config.max_length, splits=reports),
        fingerprint=fingerprint,
    )
    prepared.rows(Split.train)
    if config.strict:
        _refuse_changed(prepared.report)
    return prepared


def _refuse_changed(report: DataReport) -> None:
    for split, of_split in report.splits.items():
        if of_split.changed:
            raise DataError(
                f"data.strict=true: {changed_message(split, of_split)}; use data.template=chatml, or "
                "data.strict=false to train what the template makes of them"
            )


def changed_message(split: Split, report: SplitReport) -> str:
    """Say how many answers are not trained as the data have them."""
    return (
        f"{report.changed} of {report.examples} {split.value} examples have answers that the chat template "
        "renders with other text than the data's"
    )


def _no_rows_message(split: Split, report: DataReport) -> str:
    dropped = report.splits[split].dropped
    if not dropped:
        return empty_split_message(split, report.source)
    return (
        f"no row is left in the {split.value} split of {report.source.source}: each of its {dropped} "
        f"prompts fills data.max_length={report.max_length} by itself, so no response "
        "is left to learn; raise data.max_length"
    )


_Tokenized = tuple[dict[Split, TokenRows], dict[Split, SplitReport]]


def _tokenized(
    config: DataConfig, splits: Splits, tokenizer: "PreTrainedTokenizerBase"
) -> _Tokenized:
    examples = {
        Split.train: splits.train,
        Split.validation: splits.validation,
        Split.test: splits.test,
    }
    encoded = {split: encode(given, config, tokenizer) for split, given in examples.items()}
    padded = {
        split: rows
        for split, rows in encoded.items()
        if not (config.packing and split is Split.train)
    }
    length, padding = padded_length(padded.values(), config), padding_id(tokenizer)
    rows = {
        split: padded_rows(encoded[split], length, padding)
        if split in padded
        else packed_rows(encoded[split], config.max_length, padding)
        for split in encoded
    }
    reports = {split: _report(len(examples[split]), encoded[split], rows[split]) for split in rows}
    return rows, reports


def _report(num_examples: int, encoded: EncodedRows, rows: TokenRows) -> SplitReport:
    positions = rows.input_ids_NT.numel()
    tokens = int(rows.lengths_N.sum())
    return SplitReport(
        examples=num_examples,
        rows=len(rows),
        row_length=rows.row_length,
        cut=encoded.num_cut,
        dropped=encoded.num_dropped,
        changed=encoded.num_changed,
        continued=encoded.num_continued,
        tokens=tokens,
        loss_tokens=int((rows.targets_NT != NO_LOSS).sum()),
        padding_share=1 - tokens / positions if positions else None,
    )


def _cache_key(
    config: DataConfig, splits: Splits, data_fingerprint: str, tokenizer_fingerprint: str
) -> str:
    """Return the name of a tokenized form: its examples themselves, and all that renders them.

    The examples stand for every key that selects or divides them (columns, sizes, `split_seed`), also
    where a hub data set has changed behind its name.
    """
    parts = {
        "version": _FORMAT_VERSION,
        "data": data_fingerprint,
        "examples": splits.digest(),
        "tokenizer": tokenizer_fingerprint,
        "template": config.template.value,
        "system": config.system,
        "loss_on": config.loss_on.value,
        "max_length": config.max_length,
        "packing": config.packing,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _store(
    file: Path, rows: Mapping[Split, TokenRows], reports: Mapping[Split, SplitReport]
) -> None:
    """Write rows and reports as one file, complete or not at all."""
    tensors = {
        f"{split.value}.{name}": tensor.contiguous()
        for split, part in rows.items()
        for name in _TENSORS
        if (tensor := getattr(part, name)) is not None
    }
    described = {split.value: asdict(report) for split, report in reports.items()}
    reported = json.dumps(described)
    metadata = {"reports": reported, "sha256": _digest(tensors, reported)}
    new = staged(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep_staged(file.parent)
        new.write_bytes(save(tensors, metadata))
        os.replace(new, file)
    except OSError as error:  # the cache saves time, and nothing else
        logger.warning("the tokenized data cannot be kept in %s: %s", file, error)
        with contextlib.suppress(OSError):  # a disk that is read-only refuses this, too
            new.unlink(missing_ok=True)


def _load(file: Path) -> _Tokenized | None:
    """Return what `_store` wrote; None where there is nothing, or nothing whole."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors: dict[str, torch.Tensor] = {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118
            }
        if metadata["sha256"] != _digest(tensors, metadata["reports"]):
            raise ValueError("its contents do not match their hash")
        described = json.loads(metadata["reports"])
        rows = {
            split: TokenRows(**{name: tensors.get(f"{split.value}.{name}") for name in _TENSORS})  # pyright: ignore[reportArgumentType]
            for split in Split
        }
        return rows, {split: SplitReport(**described[split.value]) for split in Split}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("tokenized data in %s is damaged (%s) and is made again", file, error)
        return None


def _digest(tensors: Mapping[str, torch.Tensor], reported: str) -> str:
    digest = hashlib.sha256(reported.encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
