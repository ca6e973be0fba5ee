"""One adapter as a flat tensor, of which PEFT's A and B are views: it is clipped, moved and stacked as one.

Shape suffixes: K adapters side by side, P elements of one, R rank, I inputs and O outputs of a layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from harness.base.targets import AdaptedShape
from harness.errors import RequestError


@dataclass(frozen=True, slots=True)
class _Place:
    """Where A [R, I] and B [O, R] of one layer begin."""

    a_start: int
    b_start: int
    rank: int
    """R: of fused experts that of all together."""
    shape: AdaptedShape


class ParameterLayout:
    """Where the A and B of each adapted layer lie in a flat tensor: every A first, then every B."""

    def __init__(self, rank: int, dimensions: Mapping[int, AdaptedShape | tuple[int, int]]) -> None:
        """`dimensions`: layer index -> inputs, outputs and experts, in the model's order."""
        self.rank = rank
        shapes = {layer: AdaptedShape(*each) for layer, each in dimensions.items()}
        self.num_a = sum(rank * each.experts * each.inputs for each in shapes.values())
        self.size = sum(each.params(rank) for each in shapes.values())
        self._places: dict[int, _Place] = {}
        a_start, b_start = 0, self.num_a
        for layer, shape in shapes.items():
            self._places[layer] = _Place(a_start, b_start, rank * shape.experts, shape)
            a_start += rank * shape.experts * shape.inputs
            b_start += rank * shape.experts * shape.outputs

    @property
    def layers(self) -> list[int]:
        """The adapted layers' indices."""
        return list(self._places)

    def __contains__(self, layer: int) -> bool:
        return layer in self._places

    def a(self, flat_KP: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the view a_KRI of one layer."""
        place = self._places[layer]
        inputs = place.shape.inputs
        size = place.rank * inputs
        return flat_KP[:, place.a_start : place.a_start + size].view(-1, place.rank, inputs)

    def b(self, flat_KP: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the view b_KOR of one layer."""
        place = self._places[layer]
        outputs = place.shape.outputs
        size = place.rank * outputs
        return flat_KP[:, place.b_start : place.b_start + size].view(-1, outputs, place.rank)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """One attached adapter."""

    name: str
    """PEFT's."""
    layout: ParameterLayout
    """The same object for all adapters of one rank and the same layers."""
    flat_P: torch.Tensor
    """All parameters, float32."""
    parameters: dict[str, nn.Parameter]
    """Parameters by full name, in PEFT's order; views of `flat_P`."""
    scaling: float
    dropout: float
    compute_dtype: torch.dtype = torch.float32
    """Type in which A and B are multiplied; they are kept, and their gradients added up, in float32."""

    @property
    def num_parameters(self) -> int:
        """Trainable elements: r (d_in + d_out) for each adapted layer, and each of its experts."""
        return self.layout.size

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameters."""
        return self.flat_P.numel() * self.flat_P.element_size()

    @property
    def gradient_bytes(self) -> int:
        """Bytes of its gradient, float32 and one element for each parameter."""
        return self.flat_P.numel() * self.flat_P.element_size()

    def begin_pass(self) -> None:
        """Get ready for a pass: nothing is to be done for A and B, which the layers read themselves."""

    def halves(self, flat_P: torch.Tensor) -> list[torch.Tensor]:
        """Return every A and every B of a flat tensor: what an optimizer may treat differently."""
        return [flat_P[: self.layout.num_a], flat_P[self.layout.num_a :]]

    def is_in_first(self, name: str) -> bool:
        """Say whether one of `parameters` is in the first of the halves."""
        return ".lora_B." not in name

    def of_parameters(self, flat_P: torch.Tensor) -> list[torch.Tensor]:
        """Return a flat tensor (a gradient, say) in the views and the order of `parameters`."""
        views = []
        for layer in self.layout.layers:
            views.append(self.layout.a(flat_P.unsqueeze(0), layer)[0])
            views.append(self.layout.b(flat_P.unsqueeze(0), layer)[0])
        return views


@dataclass(frozen=True, slots=True, eq=False)
class FlatGradient:
    """A gradient in an adapter's layout."""

    flat_P: torch.Tensor
    of_parameters: list[torch.Tensor]
    """Its views for the adapter's `parameters`, in their order."""

    @classmethod
    def of(cls, adapter: Adapter, flat_P: torch.Tensor) -> "FlatGradient":
        """Return `flat_P` with its views."""
        return cls(flat_P, adapter.of_parameters(flat_P))


def is_power_of_two(value: float) -> bool:
    """Say whether a product by `value` is exact, so that it may stand before or after another product."""
    return math.frexp(value)[0] == 0.5


def saved_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return what a run has left of what it trained; RequestError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{file} is damaged: {error}; put it back, or remove the run's directory, and the run's own "
            "command trains it again"
        ) from error
