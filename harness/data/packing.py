"""Put sequences of different lengths into as few rows as is cheap to find. Pure, imports nothing heavy."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Return the groups of indices that share a row of `row_length`, by best-fit decreasing.

    Longest first, each sequence goes into the fullest row that still has room: O(n log n), and at worst
    about 11/9 of the fewest rows possible (Johnson et al. 1974). Deterministic: equal lengths keep their
    order, of equally full rows the oldest is taken. Indices ascend within a group, groups by their first
    index.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free positions, row), ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        assert 0 < length <= row_length, f"a sequence of {length} tokens in rows of {row_length}"
        place = bisect_left(rooms, (length, -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
            rows[row].append(index)
        else:
            room, row = row_length, len(rows)
            rows.append([index])
        if room > length:
            insort(rooms, (room - length, row))
    return sorted(sorted(row) for row in rows)
