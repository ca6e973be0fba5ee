"""Regular expressions that users give: which of them end soon, whatever they are matched with."""

from collections.abc import Iterator
from re import _constants as codes  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

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
