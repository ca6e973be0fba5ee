"""What can be made of an adapter: each form written, loaded again by who will use it, and evaluated.

Shape suffixes: T positions of a row, V vocabulary.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from harness.base.build import no_bar_of_gguf
from harness.base.quick_imports import replaced
from harness.base.storage import TORCH_DTYPES
from harness.config.schema import QuantFormat
from harness.data.prepare import PreparedData
from harness.evals.copies import Copies
from harness.evals.evaluate import evaluate_copies, evaluate_model
from harness.export.card import Export, card_text, keep_exports
from harness.export.gguf_file import GgufType, check_writable, write_gguf
from harness.export.merge import Into, OpenedRun, folder_bytes, merged_model
from harness.records.record import Estimate
from harness.records.run_directory import write_text

COMPARED_TOKENS = 128
"""Positions of one row over which logits of llama.cpp and transformers are compared."""
COMPARED_TEXTS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be written, and where."""

    form: str
    into: Into
    types: tuple[GgufType, ...]
    place: Path
    license_: str | None


def export(run: OpenedRun, data: PreparedData, wanted: Wanted) -> list[Export]:
    """Write one form of a run's adapter with its card; return it, and what was measured on the way.

    A folder is made beside its place and renamed when it is whole. What stood there is replaced.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = wanted.place
    if wanted.form == "gguf":
        check_writable(run.shared.model.config, run.shared.base.tokenizer)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as name:
        made = Path(name) / place.name
        made.mkdir()
        exports = [
            _placed(each, made, place) for each in _written(run, data, wanted, made, Path(name))
        ]
        assert run.saved.record is not None
        assert run.saved.directory is not None
        known = keep_exports(run.saved.directory.exports, exports)
        own = [each for each in exports if each.form == wanted.form]
        card = card_text(run.saved.record, run.saved.config, own[0], known, wanted.license_)
        write_text(made / "README.md", card)
        if place.exists():
            place.rename(
                Path(name) / "before"
            )  # goes with the directory, once the new one has its place
        made.rename(place)
    return exports


def _placed(export: Export, made: Path, place: Path) -> Export:
    inside = Path(export.place)
    return replace(export, place=str(place / inside.relative_to(made))) if export.place else export


def _written(
    run: OpenedRun, data: PreparedData, wanted: Wanted, made: Path, beside: Path
) -> Iterator[Export]:
    match wanted.form:
        case "adapter":
            yield _adapter(run, data, made)
        case "merged":
            yield _merged(run, data, wanted.into, made)
        case "merged_4bit":
            dense = beside / "merged"
            yield replace(_merged(run, data, wanted.into, dense), place="")  # which does not stay
            yield _restored(run, data, wanted.into, dense, made)
        case "gguf":
            yield from _gguf(run, data, wanted, made)
        case unknown:
            raise AssertionError(unknown)


def _added_to(run: OpenedRun, into: Into) -> str | None:
    """Return what an adapter was added to; None where all of the model was trained."""
    return None if run.saved.config.lora.trains_all else into.value


# The four forms ----------------------------------------------------------------------------------


def _adapter(run: OpenedRun, data: PreparedData, made: Path) -> Export:
    """Copy PEFT's folder, add the tokenizer, and evaluate what was copied."""
    assert run.saved.directory is not None
    shutil.copytree(run.saved.directory.adapter, made, dirs_exist_ok=True)
    run.shared.base.tokenizer.save_pretrained(made)
    run.shared.load(run.adapter, made)
    shared = run.shared
    copies = Copies(1, lambda chosen, rows: shared.side_by_side([run.adapter], rows))
    config = run.saved.config
    with shared.backend.decoded():
        results = evaluate_copies(
            *(shared.model, shared.base.tokenizer, data, config.eval, config.data),
            copies=copies,
            loss_only=True,
        )
    return Export(
        form="adapter",
        storage=f"float32 on {shared.base.storage.label}",
        into=None,
        place=str(made),
        size_bytes=folder_bytes(made),
        loaded_by="QLoRA Harness",
        loss=results[0]["eval/loss"],
        remarks=[],
    )


def _merged(run: OpenedRun, data: PreparedData, into: Into, made: Path) -> Export:
    model = merged_model(run, into)
    dtype = str(model.dtype).removeprefix("torch.")
    model.save_pretrained(made)
    run.shared.base.tokenizer.save_pretrained(made)
    del model
    return Export(
        form="merged",
        storage=dtype,
        into=_added_to(run, into),
        place=str(made),
        size_bytes=folder_bytes(made),
        loaded_by=_transformers(),
        loss=_loss(run, data, _loaded(run, made)),
        remarks=[],
    )


def _restored(run: OpenedRun, data: PreparedData, into: Into, dense: Path, made: Path) -> Export:
    """Store merged weights in NF4 as bitsandbytes has it; evaluate what transformers makes of that."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quant = run.saved.config.quant
    doubly = quant.double_quant and quant.format is QuantFormat.nf4
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=doubly,
        bnb_4bit_compute_dtype=TORCH_DTYPES[quant.compute_dtype],
    )
    device = {"": run.shared.base.device}
    with _sound_bitsandbytes():
        model = AutoModelForCausalLM.from_pretrained(
            dense, quantization_config=settings, dtype="auto", device_map=device
        )
        model.save_pretrained(made)
        run.shared.base.tokenizer.save_pretrained(made)
        del model
        loaded = AutoModelForCausalLM.from_pretrained(made, dtype="auto", device_map=device)
        loss = _loss(run, data, loaded.eval())
    return Export(
        form="merged_4bit",
        storage="nf4_dq" if doubly else "nf4",
        into=_added_to(run, into),
        place=str(made),
        size_bytes=folder_bytes(made),
        loaded_by=f"{_transformers()}, bitsandbytes {metadata.version('bitsandbytes')}",
        loss=loss,
        remarks=[],
    )


def _gguf(run: OpenedRun, data: PreparedData, wanted: Wanted, made: Path) -> Iterator[Export]:
    """Write a file for each type, and evaluate the weights that transformers' GGUF reader finds in it."""
    model, tokenizer = merged_model(run, wanted.into), run.shared.base.tokenizer
    for kind in wanted.types:
        file = made / f"{run.saved.name}-{kind.value}.gguf"
        matrices = write_gguf(model, tokenizer, file, kind, name=run.saved.name)
        read = _loaded(run, made, gguf_file=file.name)
        yield Export(
            form="gguf",
            storage=kind.value,
            into=_added_to(run, wanted.into),
            place=str(file),
            size_bytes=file.stat().st_size,
            loaded_by=f"{_transformers()}'s GGUF reader",
            loss=_loss(run, data, read),
            remarks=[
                f"{file.name}: {_by_type(matrices)}",
                f"{file.name}: {_of_llama_cpp(file, read, tokenizer, data)}",
            ],
        )
        del read


def _by_type(matrices: Counter[str]) -> str:
    """Say how many matrices a file has of each type, and why some are not of its own."""
    counted = ", ".join(f"{count} in {name}" for name, count in matrices.most_common())
    instead = [name for name in ("Q5_0", "Q5_1") if matrices[name]]
    if not instead:
        return f"matrices: {counted}"
    return (
        f"matrices: {counted}; rows that are no multiple of 256 have no K type, and are in {instead[0]} or "
        "Q8_0, as llama.cpp has them"
    )


# Loading and measuring ---------------------------------------------------------------------------


def _loaded(run: OpenedRun, folder: Path, **which: Any) -> Any:
    """Return what transformers makes of a folder, in the run's own compute type."""
    from transformers import AutoModelForCausalLM

    dtype = TORCH_DTYPES[run.saved.config.quant.compute_dtype]
    with no_bar_of_gguf():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **which)
    return model.to(run.shared.base.device).eval()


def _loss(run: OpenedRun, data: PreparedData, model: Any) -> Estimate:
    config = run.saved.config
    results = evaluate_model(
        model, run.shared.base.tokenizer, data, config.eval, config.data, loss_only=True
    )
    return results["eval/loss"]


def _transformers() -> str:
    return f"transformers {metadata.version('transformers')}"


def _sound_bitsandbytes() -> AbstractContextManager[None]:
    """Keep bitsandbytes from packing its weights anew in the first evaluation on AVX512-BF16 CPUs.

    What is then saved is damaged (bitsandbytes 0.50), and layers of odd sizes fail.
    """
    import bitsandbytes.nn.modules as modules

    return replaced(modules, "has_avx512bf16", lambda: False)


@torch.no_grad()
def _of_llama_cpp(file: Path, model: Any, tokenizer: Any, data: PreparedData) -> str:
    """Say how llama.cpp's logits and tokens of a file differ from transformers'; or that it is not there."""
    try:
        from llama_cpp import Llama  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError):
        return "not tried with llama.cpp, since the package llama-cpp-python is not installed"
    rows = data.validation if len(data.validation) else data.train
    ids = rows.input_ids_NT[0, : min(COMPARED_TOKENS, int(rows.lengths_N[0]))].tolist()
    llama = Llama(
        str(file),
        n_ctx=max(len(ids), 64),
        logits_all=True,
        verbose=False,
        n_threads=torch.get_num_threads(),
    )
    try:
        llama.eval(ids)
        theirs_TV = torch.tensor(llama.scores[: len(ids)])
        ours_TV = model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()
        differs = (theirs_TV - ours_TV).abs().max().item()
        texts = [text for text in _texts(data) if text]
        alike = sum(
            llama.tokenize(text.encode(), add_bos=False, special=False)
            == tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in texts
        )
    finally:
        llama.close()
    version = f"llama-cpp-python {metadata.version('llama-cpp-python')}"
    top = int((theirs_TV.argmax(dim=-1) == ours_TV.argmax(dim=-1)).sum())
    return (
        f"llama.cpp ({version}) has logits within {differs:.3g} of transformers' over {len(ids)} positions "
        f"(largest {ours_TV.abs().max().item():.3g}), the same likeliest token at {top}, and cuts {alike} of "
        f"{len(texts)} texts into the same tokens"
    )


def _texts(data: PreparedData) -> Sequence[str]:
    """Return some texts of the run's rows."""
    examples = [*data.splits.validation, *data.splits.train][:COMPARED_TEXTS]
    return [turn.text for example in examples for turn in example.turns] + [
        example.text for example in examples
    ]
