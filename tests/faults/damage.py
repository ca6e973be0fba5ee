"""What happens to files: cut, flipped, overwritten, of another shape, far too large. Seeded."""

import json
import random
from collections.abc import Callable
from typing import Any

SHAPES = (
    b"",
    b"[]",
    b"{}",
    b"null",
    b"1",
    b'"x"',
    b"[[1, 2]]",
    b'{"a": null}',
    b"\xff\xfe",
    b"\0" * 64,
)
BOMBS = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 5000,
    b"[1e400]",
    b'"\\ud800"',
    b"[-" + b"9" * 400 + b"]",
)
LEAVES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e300, -4, "", "x", "NaN", "2001-99-99", "\x1b[31m", "../../x", [], {}),
    *([[]], {"a": 1}, 10**18, 10**400, "9" * 5000, "\ud800", "=HYPERLINK(1)", "<script>"),
)


def damaged(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Return what was done to a file's content, and what became of it."""
    ways: tuple[tuple[str, Callable[[bytes, random.Random], bytes]], ...] = (
        ("cut", _cut),
        ("bits flipped", _flipped),
        ("a page of zeros", _zeros),
        ("bytes put in", _more),
        ("another shape", lambda _, chance: chance.choice(SHAPES)),
        ("a bomb", lambda _, chance: chance.choice(BOMBS)),
        ("a value changed", _changed),
        ("a value changed", _changed),  # what parsing alone does not notice
        ("a key missing", _without_key),
    )
    name, way = chance.choice(ways)
    return name, way(content, chance)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 5, 200))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _zeros(content: bytes, chance: random.Random) -> bytes:
    start = 4096 * chance.randrange(len(content) // 4096 + 1)
    return content[:start] + b"\0" * len(content[start : start + 4096]) + content[start + 4096 :]


def _more(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + chance.randbytes(chance.choice((1, 7, 4096))) + content[at:]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON tree."""
    found: list[tuple[Any, Any]] = []
    open_nodes = [tree]
    while open_nodes:
        node = open_nodes.pop()
        keys = (
            list(node)
            if isinstance(node, dict)
            else range(len(node))
            if isinstance(node, list)
            else ()
        )
        for key in keys:
            found.append((node, key))
            open_nodes.append(node[key])
    return found


def _parsed(content: bytes) -> Any:
    """Return a JSON tree, of a file of lines its first line's; None for what is none."""
    try:
        return json.loads(content)
    except ValueError:
        pass
    try:
        return json.loads(content.partition(b"\n")[0])
    except ValueError:
        return None


def _changed(content: bytes, chance: random.Random) -> bytes:
    tree = _parsed(content)
    places = _places(tree)
    if not places:
        return _flipped(content, chance)
    container, key = chance.choice(places)
    container[key] = chance.choice(LEAVES)
    return json.dumps(tree).encode() + b"\n"


def _without_key(content: bytes, chance: random.Random) -> bytes:
    tree = _parsed(content)
    places = [(node, key) for node, key in _places(tree) if isinstance(node, dict)]
    if not places:
        return _cut(content, chance)
    container, key = chance.choice(places)
    del container[key]
    return json.dumps(tree).encode() + b"\n"
