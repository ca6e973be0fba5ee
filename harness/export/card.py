"""The model card of an export, written from the record: nothing in it is typed in. Must not import torch."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import RunConfig
from harness.config.storage import label_of
from harness.parsing import Unreadable, read_json, shaped
from harness.records.metrics import METRICS, format_value
from harness.records.record import Estimate, Record
from harness.records.redact import redact
from harness.records.run_directory import write_text

FORMS = ("adapter", "merged", "merged_4bit", "gguf")
"""Forms that an adapter is exported in."""
_MADE_HERE = "trained and measured by QLoRA Harness."
ROWS_MADE_HERE = "Rows that QLoRA Harness trains and evaluates"
_NORMAL_95 = 1.959964
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "qlora-harness")
_LIBRARY = {"adapter": "peft", "gguf": "gguf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One thing that was made of an adapter, and what it costs in loss."""

    form: str
    """adapter, merged, merged_4bit or gguf."""
    storage: str
    """Type of its weights: `bfloat16`, `nf4`, `q8_0`; of an adapter, that of the base below it."""
    into: str | None
    """unrounded or rounded: what the adapter was added to; None for an adapter."""
    place: str
    """The folder or file."""
    size_bytes: int
    loaded_by: str
    """Who has loaded it for its evaluation."""
    loss: Estimate
    """On the rows of the run's own split."""
    remarks: list[str]
    """What else was compared, a sentence each."""

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return " ".join([self.form, *([f"into the {self.into} base"] if self.into else [])])


def read_exports(path: Path) -> list[Export]:
    """Return what was exported of a run before; a file that is missing or damaged has nothing."""
    try:
        return shaped(list[Export], read_json(path.read_bytes()))
    except (OSError, Unreadable):
        return []


def keep_exports(path: Path, new: Sequence[Export]) -> list[Export]:
    """Add exports to those of a run, each in the place of its like; return them all."""
    made = {(each.label, each.storage): each for each in [*read_exports(path), *new]}
    write_text(path, json.dumps([asdict(each) for each in made.values()], indent=1) + "\n")
    return list(made.values())


def is_export(folder: Path) -> bool:
    """Whether a folder is an export and nothing else, so that another may take its place.

    A README.md alone says little: every project has one, and a clone of what was pushed has its history.
    """
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    is_ours = any(said in card for said in (_MADE_HERE, ROWS_MADE_HERE))
    return is_ours and not any(each.name.startswith(".") for each in folder.iterdir())


def card_text(
    record: Record,
    config: RunConfig,
    export: Export,
    exports: Sequence[Export],
    license_: str | None,
) -> str:
    """Return README.md of an export: what it is, its loss beside the others', where it comes from."""
    base, revision = config.model.name, config.model.revision
    parts = [
        _front_matter(config, export, license_),
        f"# {record.run_id}: {export.label}",
        f"{_kind(config)} `{base}`{f' at {revision}' if revision else ''}, {_MADE_HERE} "
        f"This folder holds: **{export.label}**, {export.storage}.",
        "## Loss of what was exported",
        f"Mean cross-entropy in nats per token on the {config.eval.split.value} rows of the run, each loaded "
        "and evaluated as it lies here; ± is the standard error over the same rows.",
        table(
            ("what", "weights", "size", "eval loss", "n", "loaded by"), _loss_lines(record, exports)
        ),
        *bullets(remark for each in exports if each.form == export.form for remark in each.remarks),
        "## Results of the run",
        table(("metric", "before", "after", "95 % interval after", "n"), _result_lines(record)),
        "## Training",
        table(("setting", "value"), _setting_lines(config, record)),
        "## Data",
        table(("fact", "value"), _data_lines(config, record)),
        "## Versions",
        table(("fact", "value"), _version_lines(record)),
        *(["## Notes", *bullets(record.notes)] if record.notes else []),
        "## Use",
        _use(export, base),
    ]
    return redact("\n\n".join(parts) + "\n")


def _kind(config: RunConfig) -> str:
    return "Full fine-tuning of" if config.lora.trains_all else "A LoRA adapter on"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def bullets(points: Iterable[str]) -> list[str]:
    """Return a list in Markdown as one paragraph; nothing, if there are no points."""
    text = "\n".join(f"- {point}" for point in points)
    return [text] if text else []


def front_matter(tree: dict[str, Any]) -> str:
    """Return what the hub reads of a card, in front of its text."""
    import yaml

    return f"---\n{yaml.safe_dump(tree, sort_keys=False).rstrip()}\n---"


def _front_matter(config: RunConfig, export: Export, license_: str | None) -> str:
    tree: dict[str, Any] = {
        "license": license_ or "unknown",
        "base_model": config.model.name,
        "base_model_relation": "adapter"
        if export.form == "adapter"
        else "quantized"
        if export.form in ("merged_4bit", "gguf")
        else "finetune",
        "library_name": _LIBRARY.get(export.form, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["full-fine-tuning"]
        if config.lora.trains_all
        else ["lora", "qlora", label_of(config.quant)],
    }
    if config.data.hub is not None:
        tree["datasets"] = [config.data.hub]
    return front_matter(tree)


def _loss_lines(record: Record, exports: Sequence[Export]) -> Iterator[Sequence[str]]:
    trained = "adapter" if any(each.form == "adapter" or each.into for each in exports) else "model"
    recorded = (("base, before training", "before"), (f"{trained}, as recorded", "after"))
    for what, phase in recorded:
        result = record.evals.get(phase, {}).get("eval/loss")
        n = "—" if result is None else f"{result.n:,}"
        yield what, "—", "—", _estimate("eval/loss", result), n, "the run itself"
    for each in exports:
        size = f"{each.size_bytes / 2**20:,.1f} MiB"
        loss = _estimate("eval/loss", each.loss)
        yield each.label, each.storage, size, loss, f"{each.loss.n:,}", each.loaded_by


def _result_lines(record: Record) -> Iterator[Sequence[str]]:
    before, after = record.evals.get("before", {}), record.evals.get("after", {})
    for name in METRICS.in_order([*before, *after]):
        result = after.get(name)
        n = (result or before[name]).n
        yield (
            METRICS[name].label,
            _estimate(name, before.get(name)),
            _estimate(name, result),
            _interval(name, result),
            f"{n:,}",
        )


def _estimate(name: str, result: Estimate | None) -> str:
    if result is None:
        return "—"
    error = result.standard_error
    shown = format_value(name, result.value)
    return shown if error is None else f"{shown} ± {format_value(name, error)}"


def _interval(name: str, result: Estimate | None) -> str:
    if result is None or result.standard_error is None:
        return "—"
    half = _NORMAL_95 * result.standard_error
    low, high = (format_value(name, result.value + sign * half) for sign in (-1, 1))
    return f"{low} to {high}"


def _setting_lines(config: RunConfig, record: Record) -> Iterator[Sequence[str]]:
    lora, optim = config.lora, config.optim
    length = f"{optim.steps} steps" if optim.steps is not None else f"{optim.epochs} epochs"
    yield "base storage while training", label_of(config.quant)
    yield "compute type", config.quant.compute_dtype.value
    if lora.trains_all:
        yield "trained", "all of the model"
    else:
        alpha = lora.alpha if lora.alpha is not None else f"{lora.alpha_over_rank} x rank"
        yield "method, initialization", f"{lora.method.value}, {lora.init.value}"
        yield "rank, alpha, dropout", f"{lora.rank}, {alpha}, {lora.dropout}"
        for name, patterns in (("ranks", lora.rank_pattern), ("alphas", lora.alpha_pattern)):
            if patterns:
                yield f"{name} of some layers", ", ".join(f"{k}: {v}" for k, v in patterns.items())
        yield "adapted layers", ", ".join(lora.target_modules)
    if lora.train_also:
        yield "trained whole", ", ".join(lora.train_also)
    parameters = record.metrics.get("adapter/trainable_params")
    yield "trainable parameters", "—" if parameters is None else f"{parameters:,.0f}"
    yield "optimizer", f"{optim.name.value}, lr {optim.lr}, {optim.schedule.value}"
    yield "length", f"{length} of {optim.batch_size} rows"
    yield "seed", str(config.seed)


def _data_lines(config: RunConfig, record: Record) -> Iterator[Sequence[str]]:
    report = record.provenance.get("data") or {}
    yield "source", str(report.get("source", "—"))
    for split in ("train", "validation", "test"):
        yield f"{split} rows", str(report.get(f"{split}_rows", "—"))
    yield "template", config.data.template.value
    yield "system message", config.data.system or "—"
    yield "fingerprint", str(record.provenance.get("data_fingerprint") or "—")


def _version_lines(record: Record) -> Iterator[Sequence[str]]:
    provenance = record.provenance
    git = provenance.get("git") or {}
    yield "run", record.run_id
    yield "trained", record.started_at
    dirty = " with local changes" if git.get("dirty") else ""
    yield "commit of the harness", f"{git.get('commit') or '—'}{dirty}"
    for package in _PACKAGES:
        version = (provenance.get("packages") or {}).get(package)
        if version is not None:
            yield package, str(version)
    yield "model fingerprint", str(provenance.get("model_fingerprint") or "—")


def _base_in_code(base: str) -> str:
    """Return how a base is named in a line of Python, with what a reader must put in its place."""
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        return f"{base!r})"
    return f"BASE)  # the directory of {base}; of a GGUF file its own, and gguf_file=NAME"


def _use(export: Export, base: str) -> str:
    match export.form:
        case "adapter":
            lines = [
                "from peft import PeftModel",
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f"model = AutoModelForCausalLM.from_pretrained({_base_in_code(base)}",
                "model = PeftModel.from_pretrained(model, FOLDER)",
                "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
            ]
        case "gguf":
            lines = [
                "from llama_cpp import Llama",
                "",
                f"Llama({Path(export.place).name!r}).create_chat_completion(",
                '    [{"role": "user", "content": "…"}]',
                ")",
            ]
        case _:
            lines = [
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
                "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
            ]
    return "\n".join(["```python", *lines, "```"])
