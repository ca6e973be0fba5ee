"""A configuration as the key of a cache."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Keyed(Generic[T]):
    """A value that counts as another where both print the same; a configuration itself has no hash."""

    __slots__ = ("_key", "value")

    def __init__(self, value: T, text: str | None = None) -> None:
        """`text`: what is compared in place of the value's print, which may leave things out."""
        self.value = value
        self._key = repr(value) if text is None else text

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and self._key == other._key
