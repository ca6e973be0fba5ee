"""`harness export`: a run's adapter in the form that others load, with the loss that this form has."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands.saved import find_saved, place_of
from harness.data.check import check_data, data_fingerprint
from harness.errors import RequestError, near_names
from harness.export.card import FORMS, is_export
from harness.parsing import home_path
from harness.records.metrics import format_value
from harness.records.redact import message
from harness.request import SavedRun, check_writable
from harness.training.libraries import import_libraries

if TYPE_CHECKING:
    from harness.export.card import Export

EXPORT_HELP = """\
usage: harness export RUN|SWEEP --to adapter|merged|merged_4bit|gguf [--out DIR] [--into unrounded|rounded]
                      [--types f16,q8_0,q4_0,q4_k_m] [--license NAME] [paths.out=DIRECTORY] [--json]

  adapter      PEFT's folder with tokenizer and chat template
  merged       the adapter added to the base's weights, in 16 bit; --into rounded adds it to the weights as
               they were decoded while it was trained, --into unrounded, the default, to the checkpoint's
  merged_4bit  merged, and stored in NF4 as bitsandbytes has it: transformers loads it as it is
  gguf         merged, as GGUF for llama.cpp; --types says which of f16, q8_0, q4_0 and q4_k_m, all by default

Each is loaded again by who will use it and evaluated on the run's own validation rows. The model card
(README.md) has the losses of all that was exported of the run side by side; they are kept in its
exports.json. DIR is, where none is given, export/FORM in the run's directory. --license goes into the
card; without it the card says unknown.
"""


def export_command(
    words: Sequence[str],
    *,
    to: str | None,
    out: str | None,
    into: str | None,
    types: str | None,
    license_: str | None,
    as_json: bool,
) -> int:
    """Export one run in one form; return the exit code."""
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise RequestError(
            f"harness export takes one run or sweep, got {', '.join(names) or 'none'}; see "
            "harness export --help"
        )
    form = _one_of("--to", to, FORMS)
    target = _one_of("--into", into or "unrounded", ("unrounded", "rounded"))
    chosen = _types(form, types)
    if form == "adapter" and into is not None:
        raise RequestError(f"--into {into} would be ignored: an adapter is not merged")
    saved = find_saved(names[0], place_of([word for word in words if "=" in word]))
    assert saved.directory is not None
    _check_form(saved, form, into)
    default = (
        saved.directory.path / "export" / (form if target == "unrounded" else f"{form}_{target}")
    )
    place = free_place(home_path(out) if out else default)
    _check_data(saved)
    check_writable(saved.config.paths)
    import_libraries()
    from harness.export.forms import Wanted, export
    from harness.export.gguf_file import GgufType
    from harness.export.merge import Into, open_run
    from harness.training.launch import prepare

    data = prepare(saved.config, saved.source, saved.fingerprint)
    kinds = tuple(GgufType(name) for name in chosen)
    made = export(open_run(saved), data, Wanted(form, Into(target), kinds, place, license_))
    if as_json:
        print(json.dumps([asdict(each) for each in made], indent=1))
    else:
        _print(saved, made, place)
    return 0


def _check_form(saved: SavedRun, form: str, into: str | None) -> None:
    """Refuse of full fine-tuning what only an adapter has."""
    if not saved.config.lora.trains_all:
        return
    if form == "adapter":
        raise RequestError(
            f"{saved.name} has no adapter: lora=none has trained all of the model; --to merged writes it"
        )
    if into is not None:
        raise RequestError(
            f"--into {into} would be ignored: {saved.name} has trained all of the model, and nothing is "
            "added to a base"
        )


def _one_of(name: str, given: str | None, known: Sequence[str]) -> str:
    if given is None or given not in known:
        got = f"got {given!r}{near_names(given, known)}" if given else "got nothing"
        raise RequestError(f"{name} takes one of {', '.join(known)}, {got}")
    return given


def _types(form: str, given: str | None) -> list[str]:
    known = ("f16", "q8_0", "q4_0", "q4_k_m")
    if form != "gguf":
        if given is not None:
            raise RequestError(f"--types {given} would be ignored: it belongs to --to gguf")
        return []
    return [
        _one_of("--types", each.strip(), known) for each in (given or ",".join(known)).split(",")
    ]


def free_place(place: Path) -> Path:
    """Return a directory to write to. Refuses to replace what is no export of ours, with a RequestError."""
    if place.exists() and not place.is_dir():
        raise RequestError(f"--out {place} is a file; give a directory")
    if place.is_dir() and any(place.iterdir()) and not is_export(place):
        raise RequestError(
            f"--out {place} has files in it that no export has made; give another directory"
        )
    return place


def _check_data(saved: SavedRun) -> None:
    """Refuse rows that are not those of the run: its exports' losses would be of something else."""
    assert saved.record is not None
    check_data(saved.config.data)
    fingerprint, trained_on = (
        data_fingerprint(saved.config.data),
        saved.record.provenance.get("data_fingerprint"),
    )
    if fingerprint != trained_on:
        raise RequestError(
            f"the data of {saved.name} are not what they were, and no export could be evaluated on its own "
            "rows; put the files back as they were"
        )


def _print(saved: SavedRun, made: "Sequence[Export]", place: Path) -> None:
    record = saved.record
    assert record is not None
    trained = "model" if saved.config.lora.trains_all else "adapter"
    for name, phase in (("base", "before"), (f"{trained}, as recorded", "after")):
        result = record.evals.get(phase, {}).get("eval/loss")
        print(f"{name:<32} eval loss {format_value('eval/loss', result and result.value)}")
    for each in made:
        what = f"{each.label}, {each.storage}"
        loss = format_value("eval/loss", each.loss.value)
        print(message(f"{what:<32} eval loss {loss}  {each.place}"))
        for remark in each.remarks:
            print(message(f"harness: {remark}"), file=sys.stderr)
    print(message(str(place / "README.md")))
