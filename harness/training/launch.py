"""From a validated configuration to data and base; what can be refused is refused before weights load."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from harness.base.build import (
    Base,
    ModelOutline,
    build_base,
    check_causal,
    inspect_model,
    load_tokenizer,
)
from harness.base.coverage import check_coverage, coverage_notes
from harness.base.packed_rows import why_apart
from harness.base.prequantized import check_stored
from harness.base.quick_imports import quiet_libraries
from harness.base.source import ModelSource
from harness.base.targets import adapted_layers
from harness.config.devices import resolved_device, threads_per_process
from harness.config.keyed import Keyed
from harness.config.resources import BackendName, Shard
from harness.config.schema import ModelConfig, RunConfig
from harness.data.embeddings import check_special_tokens, check_tokens
from harness.data.prepare import PreparedData, changed_message, prepare_data
from harness.engine.adapter import Adapter
from harness.engine.shared_base import SharedBase
from harness.errors import RequestError
from harness.measure.meter import meter_of
from harness.records.provenance import collect_provenance, write_code_diff
from harness.request import Request, SavedRun
from harness.training.job import Job


def prepare(
    config: RunConfig, source: ModelSource, fingerprint: str, *, keep: bool = True
) -> PreparedData:
    """Check targets and rank against the model, tokenize the data, check the rows against the context.

    With `keep` the tokenized data is left in the cache.

    Raises RequestError or DataError; no weight has been read.
    """
    quiet_libraries()
    if config.resources.threads is not None:
        torch.set_num_threads(threads_per_process(config.resources))
    outline, tokenizer = outline_and_tokenizer(source, config.model, fingerprint)
    check_stored(config.model.name, config.quant, outline.stored)
    adapted_layers(config.lora, outline.linears)
    check_coverage(config, outline.linears, outline.uncovered)
    _check_packing(config, outline)
    check_special_tokens(config.model.name, tokenizer, outline.num_embeddings)
    data = prepare_data(
        config.data, tokenizer, fingerprint, cache_directory(config) / "data", keep=keep
    )
    check_tokens(config.model.name, tokenizer, outline.num_embeddings, data)
    data.rows(config.eval.split)
    if config.eval.tasks:
        from harness.evals.task_scoring import load_tasks  # lm-evaluation-harness takes seconds

        load_tasks(config.eval)
    longest = max(data.train.row_length, data.rows(config.eval.split).row_length)
    if outline.max_positions is not None and longest > outline.max_positions:
        raise RequestError(
            f"data.max_length={config.data.max_length} gives rows of {longest} tokens, and "
            f"model={config.model.name} {outline.beyond}; use at most {outline.max_positions}"
        )
    return data


def outline_and_tokenizer(
    source: ModelSource, model: ModelConfig, fingerprint: str
) -> tuple[ModelOutline, Any]:
    """Return what a model is, and its tokenizer; no weight is read."""
    return _described(source, Keyed(model), fingerprint)


def _check_packing(config: RunConfig, outline: ModelOutline) -> None:
    reason = why_apart(outline.config) if config.data.packing else None
    if reason is not None:
        raise RequestError(
            f"data.packing=true puts several examples into one row, and with model={config.model.name} each "
            f"needs a row of its own: {reason}; use data.packing=false"
        )


@lru_cache(maxsize=8)
def _described(
    source: ModelSource, model: Keyed[ModelConfig], _fingerprint: str
) -> tuple[ModelOutline, Any]:
    return inspect_model(source, model.value), load_tokenizer(source, model.value)


def open_base(
    config: RunConfig,
    source: ModelSource,
    fingerprint: str,
    shard: Callable[[Base], None] | None = None,
) -> SharedBase:
    """Load the frozen base onto the run's device, from the cache where it is there.

    With `shard` it is loaded into the machine's memory, and what that leaves here goes onto the device.
    """
    asks = config.resources.shard is Shard.fsdp
    assert asks == (shard is not None), (
        "resources.shard=fsdp needs the processes that share the base"
    )
    device = torch.device(resolved_device(config.resources.device))
    meter = meter_of(device)
    meter.begin()
    already = meter.read()  # other bases that a worker keeps, and on a CPU the libraries
    base = build_base(
        source,
        config.model,
        config.quant,
        fingerprint=fingerprint,
        device=device if shard is None else torch.device("cpu"),
        cache=cache_directory(config),
        quantized_on=device,
    )
    if shard is not None:
        shard(base)
    else:
        check_causal(base)
    backend = BackendName.reference if config.lora.trains_all else config.resources.backend
    return SharedBase(base, backend=backend, load_peak_bytes=meter.read() - already)


def attach_saved(shared: SharedBase, saved: SavedRun) -> Adapter | None:
    """Attach the adapter that a run has left to a base of its kind; None for a base alone."""
    if saved.directory is None:
        return None
    adapter = shared.attach(saved.config.lora, saved.config.seed)
    shared.load(adapter, saved.directory.trained(saved.config.lora))
    return adapter


def cache_directory(config: RunConfig) -> Path:
    """Return where quantized bases and tokenized data are kept."""
    return Path(config.paths.cache or Path(config.paths.out) / "cache")


def data_notes(data: PreparedData) -> list[str]:
    """Return what a reader should know about rows that were cut or left out."""
    notes = []
    for split, report in data.report.splits.items():
        if report.cut:
            notes.append(
                f"{report.cut} of {report.examples} {split.value} examples were cut at max_length"
            )
        if report.changed:
            notes.append(changed_message(split, report))
        if report.dropped:
            notes.append(
                f"{report.dropped} of {report.examples} {split.value} examples were left out: the cut "
                "left nothing that carries loss"
            )
    return notes


def model_notes(config: RunConfig, outline: ModelOutline) -> list[str]:
    """Return what a reader should know about how this model is run."""
    notes = []
    if outline.config._attn_implementation != config.model.attention.value:
        notes.append(
            f"attention is {outline.config._attn_implementation}: transformers has no "
            f"{config.model.attention.value} for models of type {outline.config.model_type}"
        )
    reason = why_apart(outline.config)
    if reason is not None:
        notes.append(f"rows hold one example each: {reason}")
    if outline.stored is not None:
        notes.append(f"the base is stored as it came: {outline.stored.label}")
    elif outline.came_rounded is not None:
        notes.append(
            f"the base's weights came rounded to {outline.came_rounded}: a storage rounds them once more, "
            "which flatters grids near that one, and `none` is not the model as it was trained"
        )
    return notes + coverage_notes(config, outline.linears, outline.uncovered)


def make_job(request: Request, data: PreparedData) -> Job:
    """Return the job of one run, with its provenance collected and its directory begun."""
    write_code_diff(request.directory.code_diff)
    provenance = collect_provenance(
        model_fingerprint=request.fingerprint, data_fingerprint=data.fingerprint
    ).as_tree()
    provenance |= {
        "cell_id": request.identity.cell_id,
        "seed": request.config.seed,
        "data": data.report.as_dict(),
    }
    outline, _ = outline_and_tokenizer(request.source, request.config.model, request.fingerprint)
    if outline.came_rounded is not None:
        provenance["base_storage"] = outline.came_rounded
    return Job(
        request=request,
        data=data,
        provenance=provenance,
        notes=[*model_notes(request.config, outline), *data_notes(data)],
    )
