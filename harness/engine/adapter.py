"""One adapter as a flat tensor, of which PEFT's A, B and magnitudes are views: it is clipped, moved and
stacked as one.

Shape suffixes: K adapters side by side, P elements of one, R rank, I inputs and O outputs of a layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from harness.base.targets import AdapterShape
from harness.errors import RequestError

MAGNITUDES = "lora_magnitude_vector"
"""PEFT's name for the trained norms of DoRA."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where A [R, I], B [O, R] and the magnitudes [O] of one layer begin."""

    a_start: int
    b_start: int
    m_start: int
    rank: int
    """R: of fused experts that of all together."""
    shape: AdapterShape


class ParameterLayout:
    """Where everything lies in a flat tensor: whole matrices, then every A, every B, and the magnitudes."""

    def __init__(
        self,
        shapes: Mapping[int, AdapterShape],
        wholes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """`shapes`: by the layer's index, in the model's order; `wholes`: rows and columns of the matrices
        that are trained themselves (`lora.train_also`)."""
        self.wholes = dict(wholes or {})
        num_wholes = sum(rows * columns for rows, columns in self.wholes.values())
        self.rank = max((each.rank for each in shapes.values()), default=0)
        """The highest of all layers."""
        ranks = {layer: each.rank * each.experts for layer, each in shapes.items()}
        self.num_a = num_wholes + sum(ranks[layer] * each.inputs for layer, each in shapes.items())
        """Elements before the first B."""
        self.size = num_wholes + sum(each.params for each in shapes.values())
        self._places: dict[int, _Place] = {}
        num_b = sum(ranks[layer] * each.outputs for layer, each in shapes.items())
        a_start, b_start, m_start = num_wholes, self.num_a, self.num_a + num_b
        for layer, shape in shapes.items():
            self._places[layer] = _Place(a_start, b_start, m_start, ranks[layer], shape)
            a_start += ranks[layer] * shape.inputs
            b_start += ranks[layer] * shape.outputs
            m_start += shape.outputs * shape.has_magnitudes
        self.is_plain = all(s.pooled == 1 and not s.has_magnitudes for s in shapes.values())
        """Whether every adapted layer has plain LoRA."""

    @property
    def layers(self) -> list[int]:
        """The adapted layers' indices."""
        return list(self._places)

    def __contains__(self, layer: int) -> bool:
        return layer in self._places

    def shape(self, layer: int) -> AdapterShape:
        """Return what the adapter has of one layer."""
        return self._places[layer].shape

    def whole(self, flat_KP: torch.Tensor, part: str) -> torch.Tensor:
        """Return the view [K, rows, columns] of a matrix that is trained itself."""
        start = 0
        for name, (rows, columns) in self.wholes.items():
            if name == part:
                return flat_KP[:, start : start + rows * columns].view(-1, rows, columns)
            start += rows * columns
        raise KeyError(part)

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

    def magnitudes(self, flat_KP: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the view m_KO of one layer with DoRA."""
        place = self._places[layer]
        assert place.shape.has_magnitudes
        return flat_KP[:, place.m_start : place.m_start + place.shape.outputs]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """One attached adapter."""

    name: str
    """PEFT's."""
    layout: ParameterLayout
    """The same object for all adapters of the same shapes."""
    flat_P: torch.Tensor
    """All parameters, float32."""
    parameters: dict[str, nn.Parameter]
    """Parameters by full name, in PEFT's order; views of `flat_P`."""
    scalings: Mapping[int, float]
    """alpha / rank (or its kin) by layer."""
    dropout: float
    compute_dtype: torch.dtype = torch.float32
    """Type in which A and B are multiplied; they are kept, and their gradients added up, in float32."""

    @property
    def num_parameters(self) -> int:
        """Trainable elements: r (d_in + d_out) for each adapted layer, and each of its experts;
        magnitudes."""
        return self.flat_P.numel()

    exact_layers: frozenset[int] = field(init=False)
    """Layers whose scaling rounds nothing."""

    def __post_init__(self) -> None:
        exact = (layer for layer, value in self.scalings.items() if is_power_of_two(value))
        object.__setattr__(self, "exact_layers", frozenset(exact))

    @property
    def scaling(self) -> float:
        """The scaling that all layers have; only where it is one."""
        (scaling,) = set(self.scalings.values())
        return scaling

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
        """Return all up to the last A, and all from the first B on: what an optimizer may treat
        differently."""
        return [flat_P[: self.layout.num_a], flat_P[self.layout.num_a :]]

    def is_in_first(self, name: str) -> bool:
        """Say whether one of `parameters` is in the first of the halves: as PEFT's LoRA+, B and magnitudes
        are not."""
        return ".lora_B." not in name and f".{MAGNITUDES}." not in name

    def of_parameters(self, flat_P: torch.Tensor) -> list[torch.Tensor]:
        """Return a flat tensor (a gradient, say) in the views and the order of `parameters`."""
        flat_KP = flat_P.unsqueeze(0)
        views = [self.layout.whole(flat_KP, part)[0] for part in self.layout.wholes]
        for layer in self.layout.layers:
            views.append(self.layout.a(flat_KP, layer)[0])
            views.append(self.layout.b(flat_KP, layer)[0])
            if self.layout.shape(layer).has_magnitudes:
                views.append(self.layout.magnitudes(flat_KP, layer)[0])
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


def saved_tensors(
    file: Path, expected: Mapping[str, torch.Tensor], what: str
) -> dict[str, torch.Tensor]:
    """Return what a run has left of what it trained, `expected` by names and shapes; RequestError for a file
    that is damaged, or another one's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{file} is damaged: {error}; put it back, or remove the run's directory, and the run's own "
            "command trains it again"
        ) from error
    shapes = [{key: tuple(each.shape) for key, each in of.items()} for of in (expected, given)]
    if shapes[0] != shapes[1]:
        different = min(shapes[0].items() ^ shapes[1].items())[0]
        raise RequestError(
            f"{file.parent} holds another {what} than its record says: {different} is not as it must be"
        )
    return given
