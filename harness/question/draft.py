"""A question while it is being put together: its file's parts as they were written, at one of its scales.

Must not import torch. Nothing is judged here that can be judged when the question is whole.

    scales:
      embedded: {base: [model=embedded, data=rule], space: {lora.rank: "choice(2, 8)"}}
      paper:    {base: [model=huggyllama/llama-7b, data=hub], plan: [plan.shape=llama2_7b]}

The base of a scale comes after that of the file, its axes stand beside the file's or in their place, and null
takes one away; every other part replaces the file's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import RequestError, near_names
from harness.parsing import Unreadable, read_yaml
from harness.question.entries import Entries
from harness.question.grammar import is_sweep
from harness.question.question import PARTS

MAX_BYTES = 1_000_000


@dataclass(slots=True, kw_only=True)
class Draft:
    """A question's parts as plain values."""

    where: str
    """Beginning of every message about the file."""
    parts: dict[str, Any]
    """Everything but base and space, by its key in the file."""
    base: list[str]
    entries: Entries
    touched: set[str] = field(default_factory=set)
    """Parts that the command line has changed: messages about them do not name the file."""
    given: set[str] = field(default_factory=set)
    """Keys of runs that the command line has given."""

    def place(self, part: str) -> str:
        """Return what a message about a part begins with."""
        return "" if part in self.touched else self.where


def read_draft(file: Path, shown: str, scale: str | None = None) -> Draft:
    """Read a sweep's file. Raises RequestError if it is no mapping with the keys of a question."""
    where = f"{shown}: "
    try:
        if file.stat().st_size > MAX_BYTES:
            raise Unreadable(f"it has more than {MAX_BYTES:,} bytes, which no question needs")
        tree = read_yaml(file.read_bytes(), _Loader)
    except (OSError, Unreadable) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{where}cannot be read as YAML: {reason}") from error
    return draft_of(tree, where, file.stem, scale)


def draft_of(tree: Any, where: str, name: str, scale: str | None = None) -> Draft:
    """Take a question's parts from plain values, at a scale of its `scales` where it has some.

    `name` is its name where they give none; at a scale, `name_scale`.
    """
    if not isinstance(tree, dict):
        raise RequestError(f"{where}a question is a mapping with {', '.join(PARTS)}")
    has_scales = SCALES in tree
    tree = at_scale(tree, scale, where)
    if has_scales:
        name = f"{name}_{tree.pop(SCALE)}"
    for key in tree:
        if key not in PARTS:
            raise RequestError(
                f"{where}unknown key {key!r}{near_names(str(key), PARTS)}; a question has "
                f"{', '.join(PARTS)}"
            )
    parts = {key: value for key, value in tree.items() if key not in ("base", "space")}
    space = tree.get("space")
    if not isinstance(space, dict) or not all(isinstance(key, str) for key in space):
        raise RequestError(
            f"{where}space must be a mapping such as {{lora.rank: 'choice(2, 8)'}}, got {space!r}"
        )
    return Draft(
        where=where,
        parts={"name": name} | parts,
        base=_base(tree.get("base"), where),
        entries=Entries(axes=dict(space), where=where),
    )


class _Loader(yaml.SafeLoader):
    """YAML as it is, but for a key that is given twice: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for each, _ in node.value:
            key = self.construct_object(each, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"{key!r} is given twice {node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _base(given: Any, where: str) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise RequestError(
            f"{where}base must be a list of overrides such as [model=embedded, data=facts], got {given!r}"
        )
    for text in given:
        key, _, value = text.partition("=")
        if is_sweep(value) and not key.startswith("hydra"):
            raise RequestError(f"{where}base: {text} gives several values; an axis stands in space")
    return list(given)


# Scales --------------------------------------------------------------------------------------------


SCALE, SCALES = "scale", "scales"


def split_scale(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the scale that the overrides name, the last of several, and the other overrides."""
    prefix = f"{SCALE}="
    given = [text.removeprefix(prefix) for text in overrides if text.startswith(prefix)]
    return given[-1] if given else None, [o for o in overrides if not o.startswith(prefix)]


def at_scale(tree: Any, scale: str | None, where: str) -> Any:
    """Return the question's parts at a scale, of which the first is the default, and named after it.

    Raises RequestError for a scale that the file does not have, and for `scales` that are no mappings.
    """
    scales = tree.get(SCALES) if isinstance(tree, dict) else None
    if scales is None:
        if scale is not None:
            raise RequestError(
                f"{where}{SCALE}={scale} would be ignored: the question has no {SCALES}; give the model and "
                "the data themselves"
            )
        return tree
    if not isinstance(scales, dict) or not scales or not all(map(_is_scale, scales.items())):
        raise RequestError(
            f"{where}{SCALES} must be a mapping of names to parts of the question, such as "
            f"{{embedded: {{base: [model=embedded]}}}}, got {scales!r}"
        )
    chosen = next(iter(scales)) if scale is None else scale
    if chosen not in scales:
        raise RequestError(
            f"{where}{SCALE}={chosen} is none of its {SCALES}{near_names(chosen, scales)}; there are "
            f"{', '.join(map(str, scales))}"
        )
    parts = {key: value for key, value in tree.items() if key != SCALES}
    if not _is_scale((chosen, {k: v for k, v in parts.items() if v is not None})):
        return {**parts, SCALE: chosen}  # whoever reads them says what is wrong
    own = scales[chosen]
    merged = {**parts, **own}
    if "base" in own:
        merged["base"] = [*(parts.get("base") or []), *own["base"]]
    if "space" in own:
        space = {**(parts.get("space") or {}), **own["space"]}
        merged["space"] = {key: entry for key, entry in space.items() if entry is not None}
    return {**merged, SCALE: chosen}


def _is_scale(entry: tuple[Any, Any]) -> bool:
    name, given = entry
    return (
        isinstance(name, str)
        and isinstance(given, dict)
        and isinstance(given.get("base", []), list)
        and isinstance(given.get("space", {}), dict)
    )
