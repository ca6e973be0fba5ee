"""The adapters of fused experts: PEFT's `target_parameters`, each run's on its own tokens.

PEFT adds s B_e A_e to the matrix of every expert e; here the update is computed beside the packed matrix, for
the tokens that the expert sees of each run. A [E·R, I] and B [O, R·E] lie as PEFT has them
(`lora.ParamWrapper`).

Shape suffixes: N tokens, S pairs of token and expert, R rank, E experts, I inputs, O outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from harness.base.experts import Routing
from harness.base.targets import LinearSpec
from harness.engine.lora_math import OWN, Scaling, Weights, add_gradients, add_update
from harness.engine.reference.grouped_lora import with_update
from harness.engine.rows import AdapterGroup, RowPlan


class _Span(NamedTuple):
    """Pairs [start, stop) that one expert has of one adapter: number `number` of a group."""

    group: AdapterGroup
    number: int
    expert: int
    start: int
    stop: int


def initialized(spec: LinearSpec, config: Any, adapter: str) -> Any:
    """Return PEFT's own layer for fused experts, with A and B as it draws them, and no matrix."""
    from peft.tuners.lora.layer import ParamWrapper

    stands_in: Any = nn.Module()
    stands_in.is_transposed = spec.transposed
    name = spec.name.rpartition(".")[2]
    shape = (spec.experts, spec.out_features // spec.experts, spec.in_features)
    matrix = nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)
    stands_in.register_parameter(name, matrix)
    return ParamWrapper(
        stands_in, adapter, name, config=config, r=config.r, lora_alpha=config.lora_alpha
    )


def names_in_file(specs: Sequence[LinearSpec]) -> dict[str, str]:
    """Return what PEFT calls the layers of these fused experts in a file, by their names in the model.

    It wraps a module once for each parameter, the first one innermost.
    """
    by_module: dict[str, list[str]] = {}
    for spec in specs:
        by_module.setdefault(spec.name.rpartition(".")[0], []).append(spec.name)
    return {
        name: ".".join(["base_model.model", module, *["base_layer"] * depth])
        for module, names in by_module.items()
        for depth, name in enumerate(reversed(names))
    }


class ExpertsLora:
    """What the adapters of a pass add to the matrices of one module of experts."""

    def __init__(self, layers: Mapping[str, int], plan: RowPlan) -> None:
        """`layers`: the index of each matrix among the base's linear layers, by its name in the module."""
        self._layers = layers
        self._plan = plan

    def updated(
        self, name: str, x_SI: torch.Tensor, y_SO: torch.Tensor, routing: Routing
    ) -> torch.Tensor:
        """Return y with the updates of the parameter `name`."""
        layer = self._layers[name]
        groups = self._plan.groups(layer)
        if not groups:
            return y_SO
        update = _Update(layer, routing.experts, list(self._spans(groups, routing)))
        return with_update(x_SI, y_SO, self._plan, update)

    def _spans(self, groups: list[AdapterGroup], routing: Routing) -> Iterator[_Span]:
        owners = list(self._owners(groups, routing.tokens))
        owner_N = torch.cat(
            [
                torch.full((count,), number, device=routing.token_S.device)
                for number, (_, count) in enumerate(owners)
            ]
        )
        start = 0
        for expert, counts in enumerate(routing.counts(len(owners), owner_N)):
            for (owner, _), count in zip(owners, counts, strict=True):
                if owner is not None and count:
                    yield _Span(*owner, expert, start, start + count)
                start += count

    def _owners(
        self, groups: list[AdapterGroup], tokens: int
    ) -> Iterator[tuple[tuple[AdapterGroup, int] | None, int]]:
        """Yield the adapters and how many tokens each has, in the batch's order; None for rows of none."""
        rows = self._plan.num_rows
        if rows == 0:
            yield (groups[0], 0), tokens
            return
        width, row = tokens // rows, 0
        for group in sorted(groups, key=lambda each: each.start):
            if group.start > row:
                yield None, (group.start - row) * width
            each = (group.stop - group.start) // group.count
            for number in range(group.count):
                yield (group, number), each * width
            row = group.stop
        if row < rows:
            yield None, (rows - row) * width


class _Update:
    """The updates of one matrix in one pass, forwards and backwards."""

    scales_base = False

    def __init__(self, layer: int, experts: int, spans: list[_Span]) -> None:
        self._layer = layer
        self._experts = experts
        self._spans = spans

    def add_to(self, x_SI: torch.Tensor, y_SO: torch.Tensor) -> list[torch.Tensor | None]:
        """Add the updates to y in place; return A x of each span, for backward."""
        saved: list[torch.Tensor | None] = []
        for span in self._spans:
            weights = self._of(span, span.group.weights(self._layer))
            h_SR = OWN.product(x_SI[span.start : span.stop].to(weights.a.dtype), weights.a)
            add_update(OWN, weights.b, self._scaling(span), h_SR, y_SO[span.start : span.stop])
            saved.append(h_SR)
        return saved

    def gradients(
        self,
        grad_y: torch.Tensor,
        x: torch.Tensor,
        saved: list[torch.Tensor | None],
        *,
        grad_x_wanted: bool,
    ) -> torch.Tensor | None:
        """Add up the gradients of A and B where the groups keep them; return that of x, if it is wanted."""
        grad_x = torch.zeros_like(x) if grad_x_wanted else None
        for span, h_SR in zip(self._spans, saved, strict=True):
            assert h_SR is not None
            weights = self._of(span, span.group.weights(self._layer))
            targets = self._of(span, span.group.targets(self._layer))
            grad_SO = grad_y[span.start : span.stop].to(weights.a.dtype)
            x_SI, scaling = x[span.start : span.stop].to(weights.a.dtype), self._scaling(span)
            grad_h_SR = add_gradients(weights, targets, scaling, grad_SO, x_SI, h_SR)
            if grad_x is not None:
                grad_x[span.start : span.stop] = grad_h_SR @ weights.a
        return grad_x

    def _of(self, span: _Span, weights: Weights) -> Weights:
        """Return views of one expert's A [R, I] and B [O, R] of one adapter."""
        a, b = weights
        if span.group.count > 1:
            a, b = a[span.number], b[span.number]
        a_ERI, b_ORE = a.view(self._experts, -1, a.shape[-1]), b.view(len(b), -1, self._experts)
        return Weights(a_ERI[span.expert], b_ORE[:, :, span.expert])

    def _scaling(self, span: _Span) -> Scaling:
        """Return the adapter's own, where PEFT has it: on the update."""
        value = span.group.scaling(self._layer).value
        own = value[span.number, 0, 0] if isinstance(value, torch.Tensor) else value
        return Scaling(own, is_exact=False)
