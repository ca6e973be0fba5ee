"""One question at several scales: `scales` in its file names the parts that differ, `scale=NAME` takes one.
Pure.

    scales:
      embedded: {base: [model=embedded, data=rule], space: {lora.rank: "choice(2, 8)"}}
      paper:    {base: [model=huggyllama/llama-7b, data=hub], plan: [plan.shape=llama2_7b]}

The base of a scale comes after that of the file, its axes stand beside the file's or in their place, and null
takes one away; every other part replaces the file's.
"""

from collections.abc import Sequence
from typing import Any

from harness.errors import RequestError, near_names

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
