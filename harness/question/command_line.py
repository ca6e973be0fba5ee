"""What a command line changes in a question. Must not import torch."""

import os
from dataclasses import fields

from harness.config.compose import EXCLUSIVE, FREE_GROUP, text_keys
from harness.errors import RequestError, near_names
from harness.question.axes import CaseAxis
from harness.question.draft import Draft
from harness.question.entries import Entries, read_axes
from harness.question.grammar import FUNCTIONS, is_sweep
from harness.question.keys import (
    QUESTION_SECTIONS,
    WITHOUT_EFFECT,
    check_axis_key,
    field_types,
    is_group,
    key_of,
)
from harness.question.question import TEXTS
from harness.question.reading import TEXT_KEYS, with_launcher
from harness.question.settings import (
    Confirmation,
    LauncherSettings,
    SearchSettings,
    StudySettings,
    WorkerSettings,
)
from harness.question.values import from_text, normalized

WORKER_KEYS = tuple(f"resources.{each.name}" for each in fields(WorkerSettings))
_SECTION_KEYS = {
    part: tuple(each.name for each in fields(kind))
    for part, kind in (
        ("search", SearchSettings),
        ("confirm", Confirmation),
        ("study", StudySettings),
        ("launcher", LauncherSettings),
    )
}
_NULLABLE = ("study.storage", "study.artifacts", *(f"launcher.{key}" for key in TEXT_KEYS))
_AS_WRITTEN = (*TEXTS, *_NULLABLE)
"""Keys whose value is text, whatever it looks like in Hydra's grammar."""


def apply_override(draft: Draft, text: str) -> None:
    """Change the draft as one override of the command line says.

    `key=choice(a,b)` gives or replaces an axis, `key=value` on an axis fixes it, a key of the question
    changes the question, and everything else is an override of every run. A metric's name has a slash, which
    no key of the grammar has, so objectives and constraints are given as a whole, in a shell without spaces
    or in quotes: `objective={eval/loss:minimize}`, `objective=eval/loss`,
    `'constraints={memory/peak_bytes: {at_most: 8GiB}}'`.
    """
    key, equals, value = text.partition("=")
    part, _, name = key.partition(".")
    if equals and (key in TEXTS or key in WORKER_KEYS or part in QUESTION_SECTIONS):
        _apply_to_question(draft, key, part, name, value)
    elif equals and _gives_several(key, value) and not key.startswith(("+", "~")):
        _apply_axis(draft, key, value)
    elif equals and key in draft.entries.axes:
        _fix_axis(draft, key, value)
    else:
        _apply_to_base(draft, text)


def _gives_several(key: str, value: str) -> bool:
    """Say whether an override makes an axis. Of texts, which may hold commas, only what cannot be one text.

    `data.path=a.jsonl,b.jsonl` is an axis unless there is such a file; `data.system=Be kind, and brief.` is
    none, and neither is a text that changes no result. `choice('a, b', 'c')` always is.
    """
    if key not in text_keys() or value.lstrip().startswith(FUNCTIONS):
        return is_sweep(value)
    one_text = key == "data.system" or key.split(".")[0] in WITHOUT_EFFECT
    return not one_text and not os.path.lexists(value) and is_sweep(value)


def _apply_to_question(draft: Draft, key: str, part: str, name: str, value: str) -> None:
    known = _SECTION_KEYS.get(part, ())
    if name and part in QUESTION_SECTIONS and name not in known:
        if not known:
            raise RequestError(
                f"{key}={value}: {part} is given as a whole; write {part}={_EXAMPLES[part]}"
            )
        raise RequestError(
            f"unknown key {key!r}{near_names(name, known)}; {part} has {', '.join(known)}"
        )
    draft.touched.add(part)
    if key in _AS_WRITTEN:
        read = None if key in _NULLABLE and value == "null" else _unquoted(value)
    else:
        try:
            read = from_text(value)
        except RequestError as error:
            raise RequestError(f"{key}: {error}") from error
    if part == "launcher":
        draft.parts[part] = with_launcher(draft.parts.get(part), name, read)
        return
    if not name:
        draft.parts[part] = read
        return
    section = draft.parts.get(part)
    draft.parts[part] = {**(section if isinstance(section, dict) else {}), name: read}


_EXAMPLES = {
    "objective": "{eval/loss:minimize}",
    "constraints": "{memory/peak_bytes:{at_most:8GiB}}",
    "compare": "{lora.rank:steps,per:quant}",
    "margin": "0.01",
    "published": "[qlora_rounding]",
    "plan": "[plan.device=cuda]",
}


def _unquoted(text: str) -> str:
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _apply_axis(draft: Draft, key: str, text: str) -> None:
    """Give or replace an axis in its place; its condition and its cases stay."""
    axes = draft.entries.axes
    entry = axes.get(key)
    if key not in axes:
        check_axis_key(key, axes)
        _take_the_place_of(draft, key)
    axes[key] = {**entry, "values": text} if isinstance(entry, dict) else text
    draft.entries.replaced.add(key)
    draft.touched.add("base")
    draft.base = [override for override in draft.base if key_of(override) != key]
    draft.given.add(key)


def _fix_axis(draft: Draft, key: str, value: str) -> None:
    """Make an axis one value of every run; axes under a condition on it stay, or go with it."""
    entries = draft.entries
    entry = entries.axes[key]
    if isinstance(entry, dict) and "cases" in entry:
        label = normalized(value)
        only = Entries(axes={key: {"cases": entry["cases"], "values": f"choice({label})"}})
        (axis,) = read_axes(only)
        assert isinstance(axis, CaseAxis)
        overrides = list(axis.cases[label])
    else:
        label = value if key == FREE_GROUP else normalized(value)
        overrides = [f"{key}={value}"]
    del entries.axes[key]
    entries.fixed[key] = label
    for override in overrides:
        _apply_to_base(draft, override)


def _apply_to_base(draft: Draft, text: str) -> None:
    """Let every run have an override, in the place of the same key's in the file."""
    key = key_of(text)
    if key in draft.entries.axes:  # with + or ~
        raise RequestError(
            f"{text}: {key} is an axis of this sweep; {key}=VALUE fixes it, {key}=choice(a,b) replaces it"
        )
    if key == "seed":
        raise RequestError(
            f"{text} would be ignored; the seeds of every cell are search.seeds=[0,1]"
        )
    sections = {name.split(".")[0] for name in field_types()}
    if key not in (*field_types(), *sections, "hydra") and not is_group(key.split("/")[0]):
        known = (*field_types(), *TEXTS, *WORKER_KEYS, *draft.entries.axes)
        known += tuple(f"{part}.{name}" for part, names in _SECTION_KEYS.items() for name in names)
        raise RequestError(
            f"unknown key {key!r}{near_names(key, known)}; `harness run --help` lists a run's keys, "
            "`harness sweep --help` a question's"
        )
    draft.touched.add("base")
    _take_the_place_of(draft, key)
    places = [i for i, override in enumerate(draft.base) if key_of(override) == key]
    if not places:
        draft.base.append(text)
    else:
        draft.base[places[-1]] = text
        draft.base = [each for i, each in enumerate(draft.base) if i not in places[:-1]]
    draft.given.add(key)


def _take_the_place_of(draft: Draft, key: str) -> None:
    """Drop what the file gives for the other key of a pair of which a run has one."""
    for pair in EXCLUSIVE:
        if key not in pair:
            continue
        (other,) = set(pair) - {key}
        if other in draft.given:
            continue  # asked for as well: refused when the question is whole
        draft.base = [override for override in draft.base if key_of(override) != other]
        draft.entries.axes.pop(other, None)
