"""Seats: fixed buffers in which the adapters of a cohort train, so that a run takes another's place
unnoticed.

A seat holds one adapter in float32, its two moments and its gradient, and a copy in the type that
products are taken in, with B already times the scaling. Ranks are padded to a common one, layers that
an adapter leaves alone have a place of zeros: zeros stay zeros, since every gradient of theirs is a
product with a zero.

Shape suffixes: S seats, P elements of a seat, L layers of a group, R common rank, I inputs, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.engine.adapter import Adapter

RANK_GRID = 16
"""Ranks are padded to a multiple of it: what tensor cores multiply at once."""


def seats_for(runs: int) -> int:
    """Return how many seats there are for so many runs: a power of two, so that few sizes are captured."""
    return 1 << (runs - 1).bit_length()


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """Where the adapters of layers with one input lie in a seat."""

    layers: tuple[int, ...]
    """Their indices in the model."""
    a_start: int
    b_starts: tuple[int, ...]
    inputs: int
    outputs: tuple[int, ...]


class SeatLayout:
    """Where everything lies in a seat: every A first, then every B."""

    def __init__(
        self, groups: Sequence[tuple[tuple[int, ...], int, tuple[int, ...]]], rank: int
    ) -> None:
        """`groups`: (layers, inputs, outputs of each layer) of layers with one input; `rank`: the highest."""
        rank = -(-rank // RANK_GRID) * RANK_GRID
        self.rank = rank
        self.num_a = sum(len(layers) * rank * inputs for layers, inputs, _ in groups)
        self.places: dict[tuple[int, ...], GroupPlace] = {}
        a_start, b_start = 0, self.num_a
        for layers, inputs, outputs in groups:
            b_starts = []
            for width in outputs:
                b_starts.append(b_start)
                b_start += rank * width
            self.places[layers] = GroupPlace(layers, a_start, tuple(b_starts), inputs, outputs)
            a_start += len(layers) * rank * inputs
        self.size = b_start
        self._of_layer = {
            layer: (place, number)
            for place in self.places.values()
            for number, layer in enumerate(place.layers)
        }

    def a(self, flat_SP: torch.Tensor, place: GroupPlace) -> torch.Tensor:
        """Return the A of a group's layers, one above the other, [S, L·R, I]."""
        rows = len(place.layers) * self.rank
        part = flat_SP[:, place.a_start : place.a_start + rows * place.inputs]
        return part.unflatten(1, (rows, place.inputs))

    def b(self, flat_SP: torch.Tensor, place: GroupPlace, number: int) -> torch.Tensor:
        """Return the B of one of a group's layers, [S, O, R]."""
        start, width = place.b_starts[number], place.outputs[number]
        part = flat_SP[:, start : start + width * self.rank]
        return part.unflatten(1, (width, self.rank))

    def holds(self, adapter: Adapter) -> bool:
        """Say whether an adapter fits."""
        return adapter.layout.rank <= self.rank and all(
            layer in self._of_layer for layer in adapter.layout.layers
        )

    def views(
        self, seat_P: torch.Tensor, adapter: Adapter, flat_P: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return pairs (in the seat, in a tensor of the adapter's layout) of the same elements."""
        pairs = []
        seat_SP, own_KP = seat_P.unsqueeze(0), flat_P.unsqueeze(0)
        for layer in adapter.layout.layers:
            rank = adapter.layout.shape(layer).rank
            place, number = self._of_layer[layer]
            first = number * self.rank
            a = self.a(seat_SP, place)[0, first : first + rank]
            b = self.b(seat_SP, place, number)[0, :, :rank]
            pairs.append((a, adapter.layout.a(own_KP, layer)[0]))
            pairs.append((b, adapter.layout.b(own_KP, layer)[0]))
        return pairs


class Seats:
    """The buffers of so many seats."""

    def __init__(
        self, layout: SeatLayout, count: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`dtype`: what products are taken in."""
        self.layout = layout
        self.count = count

        def zeros(kind: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(count, layout.size, dtype=kind, device=device)

        self.parameters_SP = zeros()
        self.gradients_SP = zeros()
        self.means_SP = zeros()
        self.squares_SP = zeros()
        self.computed_SP = zeros(dtype)
        self.kept_S = torch.ones(count, device=device)
        """What each seat's dropout keeps of its inputs."""
        self.losses_S = torch.zeros(count, dtype=torch.float64, device=device)
        """Losses of the steps in progress, times each run's loss scale."""

    def put(
        self, seat: int, adapter: Adapter, scaling: float, moments: "Moments | None" = None
    ) -> None:
        """Let an adapter sit down; a run that has made steps brings its moments."""
        self.clear(seat)
        self._write(self.parameters_SP[seat], adapter, adapter.flat_P)
        if moments is not None:
            self._write(self.means_SP[seat], adapter, moments.mean_P)
            self._write(self.squares_SP[seat], adapter, moments.square_P)
        self.kept_S[seat] = 1 - adapter.dropout
        computed = self.computed_SP[seat]
        computed.copy_(self.parameters_SP[seat])
        computed[self.layout.num_a :] = scaling * self.parameters_SP[seat, self.layout.num_a :]

    def resume(self, seat: int, adapter: Adapter, loss: float, gradient_P: torch.Tensor) -> None:
        """Go on with a step of which another seat has added up this loss and this gradient."""
        self.losses_S[seat] = loss
        self._write(self.gradients_SP[seat], adapter, gradient_P)

    def clear(self, seat: int) -> None:
        """Leave zeros in a seat."""
        for buffer in (
            self.parameters_SP, self.gradients_SP, self.means_SP, self.squares_SP,
            self.computed_SP, self.losses_S,
        ):  # fmt: skip
            buffer[seat].zero_()

    def take(self, seat: int, adapter: Adapter) -> "Moments":
        """Bring a seat's adapter up to date; return its moments."""
        self.read(self.parameters_SP[seat], adapter, adapter.flat_P)
        mean_P, square_P = (
            self.read(buffer_SP[seat], adapter, torch.zeros_like(adapter.flat_P))
            for buffer_SP in (self.means_SP, self.squares_SP)
        )
        return Moments(mean_P, square_P)

    def _write(self, seat_P: torch.Tensor, adapter: Adapter, own_P: torch.Tensor) -> None:
        """Copy what is in an adapter's layout to where a seat has it."""
        for there, own in self.layout.views(seat_P, adapter, own_P):
            there.copy_(own)

    def read(self, seat_P: torch.Tensor, adapter: Adapter, own_P: torch.Tensor) -> torch.Tensor:
        """Copy a seat's part of a buffer to what is in the adapter's layout; return that."""
        for there, own in self.layout.views(seat_P, adapter, own_P):
            own.copy_(there)
        return own_P


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What AdamW keeps of a run, in its adapter's layout."""

    mean_P: torch.Tensor
    square_P: torch.Tensor

    def on_host(self) -> "Moments":
        """Return them in the host's memory."""
        return Moments(mean_P=self.mean_P.cpu(), square_P=self.square_P.cpu())
