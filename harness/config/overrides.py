"""One override as Hydra's parser reads it; what would break that is refused first. Imports no torch."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MAX_CHARACTERS = 20_000
MAX_DEPTH = 40
"""Brackets inside brackets; the parser calls itself for each."""
_LONG_NUMBER = re.compile(r"(?<![\w.])[-+]?[\d_]{61,}(?![\w-])")
"""Whole numbers that no float holds, and no message prints."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def read_override(text: str) -> "Override":
    """Return an override as Hydra's parser reads it. Raises HydraException for what is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    problem = _problem(text)
    if problem is not None:
        raise HydraException(problem)
    try:
        return OverridesParser.create().parse_override(text)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise HydraException(f"{type(error).__name__}: {error}") from error


def _problem(text: str) -> str | None:
    """Say what the parser would not come to an end with, or break on."""
    if len(text) > MAX_CHARACTERS:
        return f"it has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read"
    control = _CONTROL.search(text)
    if control is not None:
        return f"it has the control character {control[0].encode('unicode_escape').decode()}"
    number = _LONG_NUMBER.search(text)
    if number is not None:
        return f"it has a number of {len(number[0]):,} digits"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return None if deepest <= MAX_DEPTH else f"it is nested more than {MAX_DEPTH} deep"
