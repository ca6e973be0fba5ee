"""Greedy answers of adapters in seats: all prompts in one pass, then one captured step for each token.

Keys and values lie in a cache of one size, so that a step is the same list of kernels whatever it holds; what
was not written yet is masked. A step has the rows of all seats, and those that only fill write where nobody
reads. Shape suffixes: C sequences, N positions of a pass or rows of a step, S key heads, G query heads of a
key head, L positions of the cache, D head, T tokens that are new.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.rows import NO_LOSS, Batch
from harness.engine.adapter import Adapter
from harness.engine.cuda.attention import Attended, Heads, Sequences, attend
from harness.engine.cuda.llama_pass import LlamaPass, PassInput
from harness.engine.cuda.ops import TILE, Rows
from harness.engine.cuda.seats import Seats
from harness.engine.cuda.staging import PassKey, bucket, stage
from harness.engine.micro_step import Work

if TYPE_CHECKING:
    from harness.engine.cuda.backend import CudaBackend

_LOOK_EVERY = 8
"""Steps after which the host asks whether all sequences have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSize:
    """What decoders must have in common to be one."""

    rows: int
    """Prompts of each adapter at most."""
    length: int
    """Positions of the longest prompt with its answer."""
    new_tokens: int
    """Tokens of an answer at most."""

    @property
    def cache_length(self) -> int:
        """Positions that the cache has room for."""
        return -(-self.length // TILE) * TILE


class KeyValueCache:
    """Keys and values of C sequences, and of one more, which rows that only fill write to."""

    def __init__(self, heads: Sequence[Heads], sequences: int, length: int, like: torch.Tensor):
        shapes = [(sequences + 1, each.key, length, each.size) for each in heads]
        self.keys = [like.new_zeros(shape) for shape in shapes]
        self.values = [like.new_zeros(shape) for shape in shapes]
        self.length = length

    def keep(
        self,
        layer: int,
        qkv_NW: torch.Tensor,
        heads: Heads,
        sequence_N: torch.Tensor,
        position_N: torch.Tensor,
    ) -> None:
        """Write keys and values of positions where their sequences have them."""
        _, k_NSD, v_NSD = heads.split(qkv_NW)
        head_1S = torch.arange(heads.key, device=qkv_NW.device).unsqueeze(0)
        at = sequence_N.unsqueeze(1), head_1S, position_N.unsqueeze(1)
        self.keys[layer][at] = k_NSD
        self.values[layer][at] = v_NSD

    def attend(
        self,
        layer: int,
        qkv_NW: torch.Tensor,
        heads: Heads,
        row_C: torch.Tensor,
        end_C: torch.Tensor,
    ) -> torch.Tensor:
        """Return for the row of each sequence what it sees of its first `end_C` positions, [N, Q, D]."""
        q_NQD, _, _ = heads.split(qkv_NW)
        q_CSGD = q_NQD.index_select(0, row_C).unflatten(1, (heads.key, -1))
        keys_CSLD, values_CSLD = self.keys[layer][:-1], self.values[layer][:-1]
        scores_CSGL = (q_CSGD @ keys_CSLD.mT).float() * heads.scale
        place_L = torch.arange(self.length, device=qkv_NW.device)
        unseen_CL = place_L >= end_C.unsqueeze(1)
        if heads.window is not None:
            unseen_CL = unseen_CL | (place_L < end_C.unsqueeze(1) - heads.window)
        scores_CSGL = scores_CSGL.masked_fill(unseen_CL[:, None, None, :], float("-inf"))
        seen_CSGD = torch.softmax(scores_CSGL, dim=-1).to(values_CSLD.dtype) @ values_CSLD
        out_NQD = torch.zeros_like(q_NQD)
        return out_NQD.index_copy(0, row_C, seen_CSGD.flatten(1, 2))


class Decoder:
    """Answers of some seats to as many prompts each."""

    def __init__(
        self,
        backend: "CudaBackend",
        passes: LlamaPass,
        seats: Seats,
        chosen: Sequence[int],
        size: DecodingSize,
        stop_ids: Sequence[int],
    ) -> None:
        """`chosen`: seats, in ascending order."""
        self._backend, self._passes, self._seats = backend, passes, seats
        self._chosen, self.size = tuple(chosen), size
        device = seats.parameters_SP.device
        passes.turn_to(size.cache_length)
        self._count = len(chosen) * size.rows
        heads = [block.heads for block in passes.blocks]
        self._cache = KeyValueCache(heads, self._count, size.cache_length, seats.computed_SP)
        self._given = _step_input(chosen, size.rows, seats.count, device)
        self._row_C = self._given.loss_positions_M.long()
        self._positions_N = self._given.positions_N
        self._sequence_N = torch.full_like(self._positions_N, self._count, dtype=torch.int64)
        self._new_CT = torch.zeros(self._count, size.new_tokens, dtype=torch.int64, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        self._open_C = torch.zeros(self._count, dtype=torch.bool, device=device)
        self._stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
        self._again: Callable[[], None] | None = None

    def answers(
        self, adapters: Sequence[Adapter], prompts: Sequence[Sequence[int]]
    ) -> list[list[list[int]]]:
        """Return each adapter's continuation of each prompt; what follows a stop token is anything.

        `adapters`: those in the seats, in ascending order of these.
        """
        self._begin(adapters, prompts)
        for number in range(1, self.size.new_tokens):
            if number % _LOOK_EVERY == 0 and not self._open_C.any().item():
                break
            self._again = self._backend.do(self._step, self._again)
        new = self._new_CT.unflatten(0, (len(self._chosen), self.size.rows))[:, : len(prompts)]
        return new.tolist()

    @torch.no_grad()
    def _begin(self, adapters: Sequence[Adapter], prompts: Sequence[Sequence[int]]) -> None:
        """Compute the prompts, and with them the first token of every answer."""
        batch = _as_batch(prompts)
        work = [
            Work(adapter=each, batch=batch, loss_tokens=1, dropout_key=None, recompute=False)
            for each in adapters
        ]
        key, words = stage(work, self._chosen, self._seats.count)
        self._passes.turn_to(key.longest)
        device = self._row_C.device
        given = key.view(words.to(device))
        sequence_N = torch.from_numpy(
            _sequences(key, words.numpy(), len(adapters), len(prompts), self.size.rows, self._count)
        ).to(device)
        position_N = given.positions_N.long()

        def see(layer: int, qkv_NW: torch.Tensor, heads: Heads) -> Attended:
            self._cache.keep(layer, qkv_NW, heads, sequence_N, position_N)
            return attend(qkv_NW, heads, given.sequences)

        logits_MV = self._passes.logits(given, self._seats, see)
        asked = len(adapters) * len(prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts] * len(adapters), device=device)
        order = torch.arange(len(adapters), device=device).unsqueeze(1) * self.size.rows
        here_A = (order + torch.arange(len(prompts), device=device)).flatten()
        self._sequence_N.fill_(self._count)
        self._sequence_N[self._row_C[here_A]] = here_A
        self._positions_N.zero_()
        self._positions_N[self._row_C[here_A]] = lengths.to(self._positions_N.dtype)
        self._given.ids_N.zero_()
        self._new_CT.zero_()
        self._number.zero_()
        self._open_C.zero_()
        self._open_C[here_A] = True
        token_C = torch.zeros(self._count, dtype=torch.int64, device=device)
        token_C[here_A] = logits_MV[:asked].float().argmax(dim=1)
        self._take(token_C)

    def _take(self, token_C: torch.Tensor) -> None:
        """Write the newest tokens where the next step finds them."""
        self._new_CT.index_copy_(1, self._number, token_C.unsqueeze(1))
        self._number.add_(1)
        ends_C = (token_C.unsqueeze(1) == self._stops).any(dim=1)
        self._open_C.logical_and_(~ends_C)
        self._given.ids_N.index_copy_(0, self._row_C, token_C.to(self._given.ids_N.dtype))

    @torch.no_grad()
    def _step(self) -> None:
        """Compute one more token of every sequence."""
        given = self._given
        position_N = self._positions_N.long()
        end_C = position_N.index_select(0, self._row_C) + 1

        def see(layer: int, qkv_NW: torch.Tensor, heads: Heads) -> Attended:
            self._cache.keep(layer, qkv_NW, heads, self._sequence_N, position_N)
            out_NQD = self._cache.attend(layer, qkv_NW, heads, self._row_C, end_C)
            return Attended(out_NQD, ())

        logits_CV = self._passes.logits(given, self._seats, see)
        self._positions_N.add_(1).clamp_(max=self.size.cache_length - 1)
        self._take(logits_CV.float().argmax(dim=1))


def cache_bytes(passes: LlamaPass, size: DecodingSize, element_bytes: int) -> int:
    """Return what the cache of one adapter's sequences takes."""
    per_position = sum(2 * block.heads.key * block.heads.size for block in passes.blocks)
    return size.rows * size.cache_length * per_position * element_bytes


def _step_input(chosen: Sequence[int], rows: int, seats: int, device: torch.device) -> PassInput:
    """Return the input of a step: one position of each sequence, a seat's from a multiple of TILE on."""
    own = -(-rows // TILE) * TILE if seats > 1 else rows
    positions = bucket(len(chosen) * own, TILE)
    seat_of_tile = np.zeros(positions // TILE, dtype=np.int32)
    first, end = np.zeros(seats, dtype=np.int32), np.zeros(seats, dtype=np.int32)
    for number, seat in enumerate(chosen):
        if seats > 1:
            seat_of_tile[number * own // TILE : (number + 1) * own // TILE] = seat
        first[seat], end[seat] = number * own // TILE, -(-(number + 1) * own // TILE)
    tiles, first_S, end_S = (
        torch.from_numpy(each).to(device) for each in (seat_of_tile, first, end)
    )
    rows_of = [number * own + row for number in range(len(chosen)) for row in range(rows)]
    nothing = torch.zeros(positions, dtype=torch.int32, device=device)
    return PassInput(
        ids_N=nothing.clone(),
        positions_N=nothing.clone(),
        sequences=Sequences(nothing[:2], 1),
        rows=Rows(seats, tiles, first_S, end_S),
        dropout=None,
        loss_positions_M=torch.tensor(rows_of, dtype=torch.int32, device=device),
        targets_M=nothing,
        weights_M=nothing.float(),
        loss_seats_M=nothing,
    )


def _as_batch(prompts: Sequence[Sequence[int]]) -> Batch:
    """Return prompts as rows whose last token carries loss: there the answer begins."""
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    targets_BT = torch.full_like(ids_BT, NO_LOSS)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = torch.tensor(prompt)
        targets_BT[row, len(prompt) - 1] = 0
    return Batch.of(ids_BT, targets_BT)


def _sequences(
    key: PassKey, words: np.ndarray, adapters: int, prompts: int, rows: int, trash: int
) -> np.ndarray:
    """Return in which sequence of the cache each position of a pass over prompts lies, int64 [N]."""
    part = {name: words[place] for name, place in key.places()[0].items()}
    starts = part["starts"]
    number_N = np.searchsorted(starts, np.arange(key.positions), side="right") - 1
    sequence_of = np.full(len(starts), trash, dtype=np.int64)
    ends = part["loss_positions"][: adapters * prompts]
    sequence_of[number_N[ends]] = [
        a * rows + row for a in range(adapters) for row in range(prompts)
    ]
    return sequence_of[number_N]
