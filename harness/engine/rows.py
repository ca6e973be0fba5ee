"""Which rows of the batch in flight belong to which adapter, and which adapters are computed as one.

Adapters of one layout with equally many rows can be stacked: one batched product takes the place of one
product for each. Gradients are written where they belong by the layers themselves, not by autograd.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from harness.engine.adapter import Adapter, FlatGradient, is_power_of_two
from harness.engine.dropout import keep_mask
from harness.engine.lora_math import Scaling, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRows:
    """Rows [start, stop) of the joint batch belong to `adapter`; all rows, if both are 0."""

    adapter: str
    start: int = 0
    stop: int = 0
    dropout_key: int | None
    """Seed of this micro-batch's dropout masks; None while evaluating."""


class AdapterGroup:
    """Adapters whose rows lie side by side and whose products are taken as one."""

    def __init__(self, adapters: Sequence[Adapter], adapter_rows: Sequence[AdapterRows]) -> None:
        first = adapters[0]
        self.adapters = tuple(adapters)
        self.count = len(adapters)
        self.start, self.stop = adapter_rows[0].start, adapter_rows[-1].stop
        self.layout = first.layout
        self.dropout = first.dropout if adapter_rows[0].dropout_key is not None else 0.0
        self.dropout_key: int | None = None
        self._flat_KP = (
            first.flat_P.unsqueeze(0)
            if self.count == 1
            else torch.stack([adapter.flat_P for adapter in adapters])
        )
        self._computed_KP = self._flat_KP
        if first.compute_dtype is not self._flat_KP.dtype:
            self._computed_KP = torch.empty_like(self._flat_KP, dtype=first.compute_dtype)
        self._gradients_KP: torch.Tensor | None = None
        self._scalings: dict[int, Scaling] = {}
        self.norms: dict[int, torch.Tensor] = {}
        """Norms [K, 1, O] of the adapted weights by layer with DoRA, once this pass has asked for them."""
        self._weights: dict[int, Weights] = {}
        self._targets: dict[int, Weights] = {}
        self._finished: list[FlatGradient] = []

    def rows(self, of: torch.Tensor, width: int) -> torch.Tensor:
        """Return the group's part of `of` [N, …], as [K, N, …] where adapters are stacked.

        A row of the batch has `width` places in it; 0: all are the group's.
        """
        if width:
            of = of[self.start * width : self.stop * width]
        return of if self.count == 1 else of.unflatten(0, (self.count, -1))

    def scaling(self, layer: int) -> Scaling:
        """Return what the products of one layer are multiplied by: over what dropout keeps."""
        found = self._scalings.get(layer)
        if found is None:
            values = [adapter.scalings[layer] / (1 - self.dropout) for adapter in self.adapters]
            joint = self._joint(values)
            found = self._scalings[layer] = Scaling(joint, is_power_of_two(values[0]))
        return found

    def full_scaling(self, layer: int) -> float | torch.Tensor:
        """Return alpha / rank of one layer: one number, or a tensor [K, 1, 1]."""
        return self._joint([adapter.scalings[layer] for adapter in self.adapters])

    def _joint(self, values: Sequence[float]) -> float | torch.Tensor:
        """Return one number, or for adapters that differ a tensor [K, 1, 1]."""
        if len(set(values)) == 1:
            return values[0]
        return self._flat_KP.new_tensor(values).view(-1, 1, 1)

    def begin(self, adapter_rows: Sequence[AdapterRows]) -> None:
        """Take the adapters as they are now, for one pass."""
        self.dropout_key = adapter_rows[0].dropout_key
        self.norms.clear()
        for adapter in self.adapters:
            adapter.begin_pass()
        if self.count > 1:
            torch.stack([adapter.flat_P for adapter in self.adapters], out=self._flat_KP)
        if self._computed_KP is not self._flat_KP:
            self._computed_KP.copy_(self._flat_KP)
        if self._gradients_KP is not None and torch.is_grad_enabled():
            self._gradients_KP.zero_()  # layers add to it, however often the model calls them

    @property
    def _gradients(self) -> torch.Tensor:
        """The gradients of all adapters; an evaluation never asks."""
        if self._gradients_KP is None:
            self._gradients_KP = torch.zeros_like(self._flat_KP)
        return self._gradients_KP

    def weights(self, layer: int) -> Weights:
        """Return A and B of one layer, in the type that they are multiplied in."""
        found = self._weights.get(layer)
        if found is None:
            found = self._weights[layer] = self._views(self._computed_KP, layer)
        return found

    def targets(self, layer: int) -> Weights:
        """Return where the gradients of one layer's A and B are added up, in float32."""
        found = self._targets.get(layer)
        if found is None:
            found = self._targets[layer] = self._views(self._gradients, layer)
        return found

    def whole(self, part: str) -> torch.Tensor:
        """Return a matrix that the group's one adapter trains itself, in float32."""
        return self.layout.whole(self._flat_KP, part)[0]

    def whole_target(self, part: str) -> torch.Tensor:
        """Return where its gradient is added up."""
        return self.layout.whole(self._gradients, part)[0]

    def magnitudes(self, layer: int) -> torch.Tensor:
        """Return the magnitudes [K, 1, O] of one layer with DoRA."""
        return self.layout.magnitudes(self._flat_KP, layer).unsqueeze(1)

    def magnitude_targets(self, layer: int) -> torch.Tensor:
        """Return where the gradients [K, O] of one layer's magnitudes are added up."""
        return self.layout.magnitudes(self._gradients, layer)

    def _views(self, flat_KP: torch.Tensor, layer: int) -> Weights:
        a, b = self.layout.a(flat_KP, layer), self.layout.b(flat_KP, layer)
        return Weights(a[0], b[0]) if self.count == 1 else Weights(a, b)

    def finished_gradients(self) -> list[FlatGradient]:
        """Return the adapters' gradients."""
        if not self._finished:
            self._finished = [
                FlatGradient.of(adapter, gradient_P)
                for adapter, gradient_P in zip(self.adapters, self._gradients, strict=True)
            ]
        return self._finished


@dataclass(slots=True)
class _Composition:
    """The groups of one sequence of adapters' rows, and which of them adapt a layer."""

    groups: list[tuple[AdapterGroup, list[AdapterRows]]]
    of_layer: dict[int, list[AdapterGroup]] = field(default_factory=dict)


_Key = tuple[bool, tuple[tuple[str, int, int, bool], ...]]
_KEPT = 4


class RowPlan:
    """Which rows of the batch in flight belong to which adapters; shared by all layers of a model."""

    def __init__(self, device: torch.device) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.stacks = True
        """Whether adapters that may be stacked are; bench.cohort compares."""
        self.num_rows = 0
        """Rows of the batch in flight; 0 where all belong to one adapter, or to the base alone."""
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        """Makes autograd visit the adapters of a layer that sees no gradient otherwise."""
        self._kept: OrderedDict[_Key, _Composition] = OrderedDict()
        self._now = _Composition([])
        self._places_N: torch.Tensor | None = None

    def add(self, adapter: Adapter) -> None:
        """Take an adapter into account."""
        self.adapters[adapter.name] = adapter

    def remove(self, name: str) -> None:
        """Forget an adapter and everything that holds its tensors."""
        del self.adapters[name]
        self._kept.clear()

    @contextmanager
    def rows(
        self, adapter_rows: Sequence[AdapterRows], places_BT: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Run the forward passes (and recomputations) inside with these rows.

        `places_BT`: where dropout masks find each position (see `Batch.places_BT`); None: where it lies.
        """
        present = [self.adapters[each.adapter] for each in adapter_rows]
        if len(present) > 1 and any(adapter.layout.wholes for adapter in present):
            raise NotImplementedError(
                "a run with lora.train_also has embeddings or a head of its own, which all rows of a pass go "
                "through: it cannot share one"
            )
        before = self._now, self.num_rows, self._places_N
        self._now = self._composition(adapter_rows)
        self._places_N = None if places_BT is None else places_BT.reshape(-1)
        self.num_rows = adapter_rows[-1].stop if len(adapter_rows) > 1 else 0
        for group, of_group in self._now.groups:
            group.begin(of_group)
        try:
            yield
        finally:
            self._now, self.num_rows, self._places_N = before

    def groups(self, layer: int) -> list[AdapterGroup]:
        """Return the groups that adapt one layer."""
        found = self._now.of_layer.get(layer)
        if found is None:
            found = [group for group, _ in self._now.groups if layer in group.layout]
            self._now.of_layer[layer] = found
        return found

    @property
    def present(self) -> list[AdapterGroup]:
        """The groups of the batch in flight."""
        return [group for group, _ in self._now.groups]

    def gradients(self) -> dict[str, FlatGradient]:
        """Return the gradient of each adapter after the backward pass, good until the next one."""
        return {
            adapter.name: gradient
            for group, _ in self._now.groups
            for adapter, gradient in zip(group.adapters, group.finished_gradients(), strict=True)
        }

    def keep_mask(self, group: AdapterGroup, layer: int, x_NI: torch.Tensor) -> torch.Tensor | None:
        """Return which of a group's inputs dropout keeps, bool [N, I]; None without dropout.

        A group with dropout is of one adapter.
        """
        if group.dropout == 0 or group.dropout_key is None:
            return None
        rows, inputs = x_NI.shape
        places_N = self._places_N
        if places_N is None:
            places_N = torch.arange(rows, device=x_NI.device)
        elif self.num_rows:
            width = len(places_N) // self.num_rows
            places_N = places_N[group.start * width : group.stop * width]
        if len(places_N) != rows:
            raise NotImplementedError(
                f"a layer of this model sees {rows} of {len(places_N)} positions (routed experts?): "
                "which dropout masks they have is not known; use lora.dropout=0"
            )
        return keep_mask(group.dropout_key, layer, places_N, inputs, group.dropout)

    def _composition(self, adapter_rows: Sequence[AdapterRows]) -> _Composition:
        rows = ((s.adapter, s.start, s.stop, s.dropout_key is None) for s in adapter_rows)
        key = (self.stacks, tuple(rows))
        found = self._kept.pop(key, None)
        if found is None:
            found = _Composition([])
            for part in self._parts(adapter_rows):
                group = AdapterGroup([self.adapters[s.adapter] for s in part], part)
                found.groups.append((group, part))
        else:
            parts = self._parts(adapter_rows)
            found.groups = [(g, p) for (g, _), p in zip(found.groups, parts, strict=True)]
        self._kept[key] = found
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    def _parts(self, adapter_rows: Sequence[AdapterRows]) -> list[list[AdapterRows]]:
        """Cut the sequence into neighbours that are stacked."""
        parts: list[list[AdapterRows]] = []
        for rows in adapter_rows:
            if self.stacks and parts and self._may_be_stacked(parts[-1][-1], rows):
                parts[-1].append(rows)
            else:
                parts.append([rows])
        return parts

    def _may_be_stacked(self, one: AdapterRows, other: AdapterRows) -> bool:
        """Say whether two adapters can be one tensor; dropout draws its masks adapter by adapter."""
        first, second = self.adapters[one.adapter], self.adapters[other.adapter]
        return (
            one.stop - one.start == other.stop - other.start
            and first.layout is second.layout
            and first.dropout == second.dropout == 0
            and first.compute_dtype is second.compute_dtype
            and first.exact_layers == second.exact_layers
        )
