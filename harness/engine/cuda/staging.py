"""From micro-batches to the buffers of a pass: rows without padding, end to end, in a few lengths.

Everything that a pass is told travels as one int32 tensor (floats by their bits), so that it is one
copy. Seats' segments begin at multiples of `TILE`; what is left between them and behind the last are
sequences of their own, which nobody sees and which carry no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.data.compact import useful_lengths
from harness.data.rows import Batch
from harness.engine.cuda.attention import Sequences
from harness.engine.cuda.llama_pass import PassInput
from harness.engine.cuda.ops import TILE, Dropout, Rows
from harness.engine.dropout import key_words, threshold
from harness.engine.micro_step import Work

_ALIGNMENT = 16
"""Sections begin at multiples of so many words: kernels load 16 bytes at a time."""


def bucket(count: int, least: int) -> int:
    """Return the length of the buffer for `count`: a multiple of `least`, at most an eighth more than
    asked."""
    step = least
    while step * 16 < count:
        step *= 2
    return max(least, -(-count // step) * step)


@dataclass(frozen=True, slots=True)
class PassKey:
    """What passes must have in common to be one graph."""

    seats: int
    positions: int
    loss_positions: int
    sequences: int
    longest: int
    has_dropout: bool
    recompute: bool

    def places(self) -> tuple[dict[str, slice], int]:
        """Return where each part lies in the buffer, and the words of all."""
        tiles = self.positions // TILE
        lengths = {
            "ids": self.positions,
            "positions": self.positions,
            "places": self.positions if self.has_dropout else 1,
            "starts": self.sequences + 1,
            "seat_of_tile": tiles,
            "first_tile": self.seats,
            "end_tile": self.seats,
            "loss_positions": self.loss_positions,
            "targets": self.loss_positions,
            "weights": self.loss_positions,
            "loss_seats": self.loss_positions,
            "low": self.seats,
            "high": self.seats,
            "threshold": self.seats,
        }
        found, start = {}, 0
        for name, length in lengths.items():
            found[name] = slice(start, start + length)
            start += -(-length // _ALIGNMENT) * _ALIGNMENT
        return found, start

    def view(self, words: torch.Tensor) -> PassInput:
        """Return the pass's inputs as views of its buffer."""
        part = {name: words[place] for name, place in self.places()[0].items()}
        dropout = None
        if self.has_dropout:
            dropout = Dropout(part["places"], part["low"], part["high"], part["threshold"])
        return PassInput(
            ids_N=part["ids"],
            positions_N=part["positions"],
            sequences=Sequences(part["starts"], self.longest),
            rows=Rows(self.seats, part["seat_of_tile"], part["first_tile"], part["end_tile"]),
            dropout=dropout,
            loss_positions_M=part["loss_positions"],
            targets_M=part["targets"],
            weights_M=part["weights"].view(torch.float32),
            loss_seats_M=part["loss_seats"],
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """One run's positions, without padding."""

    seat: int
    ids: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    """Where its sequences begin."""
    loss_positions: np.ndarray
    targets: np.ndarray
    weight: float
    dropout_key: int | None
    rate: float


def stage(work: Sequence[Work], seats: Sequence[int], count: int) -> tuple[PassKey, torch.Tensor]:
    """Return the key of a pass over `work` and its buffer on the CPU; `seats`: whose each item is."""
    pairs = sorted(zip(work, seats, strict=True), key=lambda pair: pair[1])
    segments = [_segment(item, seat) for item, seat in pairs]
    grid = TILE if count > 1 else 1
    lengths = [-(-len(segment.ids) // grid) * grid for segment in segments]
    ends = np.cumsum(lengths)
    positions = bucket(int(ends[-1]), TILE)
    filling = [
        np.arange(int(end) - length + len(segment.ids), int(end), TILE)
        for segment, length, end in zip(segments, lengths, ends, strict=True)
    ]
    filling.append(np.arange(int(ends[-1]), positions, TILE))
    firsts = [int(end) - length for end, length in zip(ends, lengths, strict=True)]
    starts = np.unique(
        np.concatenate(
            [*(first + s.starts for first, s in zip(firsts, segments, strict=True)), *filling]
        )
    )
    longest = int(np.diff(np.append(starts, positions)).max())
    key = PassKey(
        seats=count,
        positions=positions,
        loss_positions=bucket(max(1, sum(len(s.loss_positions) for s in segments)), 16),
        sequences=1 << max(3, (len(starts) - 1).bit_length()),
        longest=max(TILE, 1 << (longest - 1).bit_length()),
        has_dropout=any(segment.dropout_key is not None for segment in segments),
        recompute=any(item.recompute for item in work),
    )
    return key, torch.from_numpy(_filled(key, segments, firsts, starts))


def _filled(
    key: PassKey, segments: Sequence[_Segment], firsts: Sequence[int], starts: np.ndarray
) -> np.ndarray:
    places, size = key.places()
    words = np.zeros(size, dtype=np.int32)
    part = {name: words[place] for name, place in places.items()}
    part["starts"][:] = key.positions
    part["starts"][: len(starts)] = starts
    part["loss_seats"][:] = -1
    weights, filled = part["weights"].view(np.float32), 0
    for segment, first in zip(segments, firsts, strict=True):
        here = slice(first, first + len(segment.ids))
        part["ids"][here], part["positions"][here] = segment.ids, segment.positions
        seat, tiles = segment.seat, -(-len(segment.ids) // TILE)
        if key.seats > 1:
            part["seat_of_tile"][first // TILE : first // TILE + tiles] = seat
        part["first_tile"][seat] = first // TILE
        part["end_tile"][seat] = first // TILE + tiles
        lossy = slice(filled, filled + len(segment.loss_positions))
        filled = lossy.stop
        part["loss_positions"][lossy] = first + segment.loss_positions
        part["targets"][lossy], part["loss_seats"][lossy] = segment.targets, seat
        weights[lossy] = segment.weight
        if segment.dropout_key is not None:
            part["places"][here] = segment.places
            part["low"][seat], part["high"][seat] = key_words(segment.dropout_key)
            part["threshold"][seat] = threshold(segment.rate)
    return words


def _segment(item: Work, seat: int) -> _Segment:
    batch = item.batch
    sequence_BT, kept_BT = _sequences(batch)
    kept = kept_BT.reshape(-1)
    number = sequence_BT.reshape(-1)[kept]
    new = np.ones(len(number), dtype=bool)
    new[1:] = number[1:] != number[:-1]
    starts = np.flatnonzero(new)
    steps = np.arange(len(number))
    moved = np.cumsum(kept) - 1
    loss_positions = batch.loss_positions_N.numpy()
    return _Segment(
        seat=seat,
        ids=batch.input_ids_BT.reshape(-1).numpy()[kept],
        positions=steps - np.repeat(starts, np.diff(np.append(starts, len(number)))),
        places=batch.places.reshape(-1).numpy()[kept] if item.dropout_key is not None else steps,
        starts=starts,
        loss_positions=moved[loss_positions],
        targets=batch.targets_BT.reshape(-1).numpy()[loss_positions],
        weight=item.loss_scale / item.loss_tokens,
        dropout_key=item.dropout_key,
        rate=item.adapter.dropout,
    )


def _sequences(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each position's example, and whether the position is one's at all, both [B, T]."""
    rows, length = batch.input_ids_BT.shape
    row_BT = np.repeat(np.arange(rows)[:, None], length, axis=1)
    if batch.segments_BT is None:
        useful_B = useful_lengths(batch).numpy()
        return row_BT, np.arange(length)[None, :] < useful_B[:, None]
    segments_BT = batch.segments_BT.numpy()
    return row_BT * (int(segments_BT.max()) + 1) + segments_BT, segments_BT > 0
