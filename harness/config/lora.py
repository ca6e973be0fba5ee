"""Rank, alpha and scaling of each layer of an adapter, by PEFT's rules for its patterns. Imports no torch."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from re import _constants as codes  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any, TypeVar

from harness.config.schema import LoraConfig

_Number = TypeVar("_Number", int, float)


def rank_of(lora: LoraConfig, name: str) -> int:
    """Return the rank that an adapter has in a layer."""
    return _matching(lora.rank_pattern, name) or lora.rank


def own_alpha(lora: LoraConfig) -> float:
    """Return the adapter's alpha where no pattern says another, given as itself or as a multiple of the
    rank."""
    if lora.alpha is not None:
        return lora.alpha
    assert lora.alpha_over_rank is not None
    return lora.alpha_over_rank * lora.rank


def alpha_of(lora: LoraConfig, name: str) -> float:
    """Return the alpha that an adapter has in a layer: given, or a multiple of the rank there."""
    own = _matching(lora.alpha_pattern, name)
    if own is not None:
        return own
    if lora.alpha_over_rank is not None:
        return lora.alpha_over_rank * rank_of(lora, name)
    return own_alpha(lora)


def scaling_of(lora: LoraConfig, name: str) -> float:
    """Return what an adapter's product is multiplied by in a layer."""
    rank = rank_of(lora, name)
    return alpha_of(lora, name) / (math.sqrt(rank) if lora.rslora else rank)


def alpha_patterns(lora: LoraConfig) -> dict[str, float]:
    """Return PEFT's `alpha_pattern`: the given one and, where alpha goes with the rank, one for each
    pattern of ranks."""
    given = lora.alpha_pattern or {}
    if lora.alpha is not None or lora.alpha_over_rank is None:
        return dict(given)
    by_rank = {key: lora.alpha_over_rank * r for key, r in (lora.rank_pattern or {}).items()}
    return given | {key: alpha for key, alpha in by_rank.items() if key not in given}


def patterns_for(patterns: Mapping[str, _Number], names: Sequence[str]) -> dict[str, _Number]:
    """Return patterns that mean the same for these layers in any order: PEFT's files have them sorted.

    Where several match one layer, each layer has a pattern of its own.
    """
    if all(sum(ends_in(key, name) for key in patterns) <= 1 for name in names):
        return dict(patterns)
    own = {name: _matching(patterns, name) for name in names}
    return {re.escape(name): value for name, value in own.items() if value is not None}


def start_of(lora: LoraConfig) -> str:
    """Return what adapters have in common that leave the same of the dense weights to a base: these can share
    it, whatever their seeds, rates and dropouts are."""
    parts = (
        *(lora.init, lora.loftq_iterations, lora.rank, own_alpha(lora), lora.rslora),
        *(sorted(lora.target_modules), list((lora.rank_pattern or {}).items())),
        list(alpha_patterns(lora).items()),
    )
    return repr(parts)


def _matching(patterns: Mapping[str, _Number] | None, name: str) -> _Number | None:
    """Return the value of the first pattern that a layer's name ends in (PEFT's `get_pattern_key`)."""
    given = patterns or {}
    return next((value for key, value in given.items() if ends_in(key, name)), None)


def ends_in(pattern: str, name: str) -> bool:
    """Say whether a layer's name ends in what a pattern describes, as PEFT reads patterns."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


# Patterns that users give --------------------------------------------------------------------------


_MOST_REPETITIONS = 3
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)


def may_match_for_ever(pattern: str) -> bool:
    """Whether `re` may try exponentially many ways, or a high power of the text's length.

    It does where something is repeated inside of what is repeated, or a choice is, and slowly where many
    repetitions follow one another. Some such patterns end soon; they can be written otherwise.
    """
    found = list(_repetitions(parser.parse(pattern), inside=False))
    return any(found) or len(found) > _MOST_REPETITIONS


def _repetitions(parsed: Any, *, inside: bool) -> Iterator[bool]:
    """Yield for each repetition or choice whether it is one in what is repeated; free choices are none."""
    for code, given in parsed:
        if code in _REPEATS:
            _, most, body = given
            if inside or most > 1:  # an optional part, too, is a choice
                yield inside
            yield from _repetitions(body, inside=inside or most > 1)
        elif code is codes.BRANCH:
            if inside:
                yield True
            for each in given[1]:
                yield from _repetitions(each, inside=inside)
        elif code is codes.GROUPREF_EXISTS:
            for each in given[1:]:
                yield from _repetitions(each or (), inside=inside)
        elif code is codes.SUBPATTERN:
            yield from _repetitions(given[-1], inside=inside)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            yield from _repetitions(given[1], inside=inside)
        elif code is codes.ATOMIC_GROUP:
            yield from _repetitions(given, inside=inside)
