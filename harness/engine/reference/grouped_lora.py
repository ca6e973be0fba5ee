"""The packed forward: the frozen layer sees the rows of all runs once, each adapter its own rows.

PEFT refuses mixed batches while training, so its layers get this forward instead. For one adapter its
numbers and gradients are PEFT's, bit for bit (dropout masks aside). Autograd sees one node for a layer,
whatever the number of adapters, and the adapters' gradients do not pass through it: with two leaves per
adapter and layer, and a slice of the batch for each, autograd would cost more than the products.

Dropout is stateless (`harness.engine.dropout`): masks do not depend on the other runs, survive recomputation
in gradient checkpointing, and leave no generator state to save.

Shape suffixes: N rows (B·T) of one adapter or of the batch, K stacked adapters, R rank, I inputs, O outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch

from harness.engine.lora_math import OWN, add_gradients, add_update
from harness.engine.reference.dora import DoraRows, FrozenRows
from harness.engine.rows import AdapterGroup, RowPlan


class PackedLora:
    """The forward of one PEFT LoRA layer for rows of several adapters.

    y[rows k] = base(x)[rows k] + s_k B_k A_k dropout_k(x[rows k])   (Hu et al. 2021, section 4.1)
    """

    def __init__(self, layer: Any, layer_index: int, plan: RowPlan) -> None:
        self.layer = layer
        self.layer_index = layer_index
        self.plan = plan
        self.frozen_rows = FrozenRows(layer, layer_index)

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = self.layer.base_layer(x, *args, **kwargs)
        groups = self.plan.groups(self.layer_index)
        if not groups:
            return y
        x = x.contiguous()
        if (
            y._is_view()
        ):  # of a layer with bias, in bitsandbytes: autograd lets nobody write into it
            y = y.clone()
        self.frozen_rows.measure(groups)
        return with_update(x, y, self.plan, _Update(self, groups, self._width(x)))

    def _width(self, x: torch.Tensor) -> int:
        """Return how many rows x_NI has for a row of the batch: T, or 0 where all belong to one adapter."""
        batch_rows, rows = self.plan.num_rows, x.numel() // x.shape[-1]
        if batch_rows == 0:
            return 0
        if rows % batch_rows:
            raise NotImplementedError(
                f"a layer of this model sees {rows} rows for a batch of {batch_rows} (routed "
                "experts?): its runs cannot share a forward pass; train them one at a time"
            )
        return rows // batch_rows


class _Update:
    """What the adapters add to one layer's output in one pass, forwards and backwards."""

    def __init__(self, packed: PackedLora, groups: Sequence[AdapterGroup], width: int) -> None:
        self.plan = packed.plan
        self.layer = packed.layer
        self.layer_index = packed.layer_index
        self.groups = groups
        self.width = width
        shapes = [group.layout.shape(self.layer_index) for group in groups]
        self.scales_base = any(shape.has_magnitudes for shape in shapes)
        """Whether `gradients` scales the frozen product's gradient too, in place."""

    def add_to(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor | None]:
        """Add the updates to y in place; return for backward, of each group, A x, the dropout mask, and with
        DoRA the sum that it scales."""
        saved: list[torch.Tensor | None] = []
        for group in self.groups:
            weights = group.weights(self.layer_index)
            y_rows, scaling = self._rows(y, group), group.scaling(self.layer_index)
            x_rows, kept = self._input(x, group, weights.a.dtype)
            h_rows = OWN.product(self._pooled(x_rows, group), weights.a)
            dora, both = self._dora(group), None
            if dora is None:
                add_update(OWN, weights.b, scaling, h_rows, y_rows)
            else:
                product = dora.frozen_product(x_rows, y_rows, drops=kept is not None)
                both = product.to(weights.a.dtype, copy=kept is not None)
                add_update(OWN, weights.b, scaling, h_rows, both)
                dora.write(y_rows, both, None if kept is None else product)
            saved += [h_rows, kept, both]
        return saved

    def gradients(
        self,
        grad_y: torch.Tensor,
        x: torch.Tensor,
        saved: list[torch.Tensor | None],
        *,
        grad_x_wanted: bool,
    ) -> torch.Tensor | None:
        """Add up the adapters' gradients where the groups keep them; return that of x, if it is wanted."""
        grad_x = self._empty_gradient(x) if grad_x_wanted else None
        for group, h, kept, both in zip(
            self.groups, saved[::3], saved[1::3], saved[2::3], strict=True
        ):
            assert h is not None
            weights, targets = group.weights(self.layer_index), group.targets(self.layer_index)
            x_rows, _ = self._input(x, group, weights.a.dtype, kept)
            grad = self._rows(grad_y, group).to(weights.a.dtype)
            dora, beside = self._dora(group), None
            if dora is not None and both is not None:
                dora.add_magnitude_gradients(grad, both)
                if kept is not None and grad_x is not None:
                    beside = dora.through_dropped(grad)
                grad = dora.scaled(grad)
                if kept is None:
                    dora.scale_(self._rows(grad_y, group))
            scaling, seen = group.scaling(self.layer_index), self._pooled(x_rows, group)
            grad_h = add_gradients(weights, targets, scaling, grad, seen, h)
            if grad_x is not None:
                self._write_gradient(
                    self._rows(grad_x, group), grad_h, weights.a, group, kept, beside
                )
        return grad_x

    def _write_gradient(
        self,
        grad_rows: torch.Tensor,
        grad_h: torch.Tensor,
        a: torch.Tensor,
        group: AdapterGroup,
        kept: torch.Tensor | None,
        beside: torch.Tensor | None,
    ) -> None:
        """Write the gradient of a group's input; `beside`: what comes to it another way than through A."""
        pooled = group.layout.shape(self.layer_index).pooled
        if kept is None and pooled == 1 and grad_rows.dtype is grad_h.dtype:
            torch.matmul(grad_h, a, out=grad_rows)
            return
        through = torch.matmul(grad_h, a)
        if pooled > 1:
            through = through.mul_(a.shape[-1] / pooled).repeat_interleave(pooled, dim=-1)
        if beside is not None:
            through.add_(beside)
        grad_rows.copy_(through if kept is None else through.mul_(kept))

    def _input(
        self,
        x: torch.Tensor,
        group: AdapterGroup,
        dtype: torch.dtype,
        kept: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a group's rows of x with what its dropout leaves of them, and its mask, if it is not
        given."""
        x_rows = self._rows(x, group).to(dtype)
        if kept is None:
            kept = self.plan.keep_mask(group, self.layer_index, x_rows)
        return (x_rows if kept is None else x_rows * kept), kept

    def _pooled(self, x_rows: torch.Tensor, group: AdapterGroup) -> torch.Tensor:
        """Return what A sees: with QA-LoRA the means of groups of inputs times their number, as PEFT has
        it."""
        pooled = group.layout.shape(self.layer_index).pooled
        if pooled == 1:
            return x_rows
        return x_rows.unflatten(-1, (-1, pooled)).mean(-1).mul_(x_rows.shape[-1] // pooled)

    def _dora(self, group: AdapterGroup) -> DoraRows | None:
        if not group.layout.shape(self.layer_index).has_magnitudes:
            return None
        return DoraRows(self.layer.base_layer, group, self.layer_index)

    def _rows(self, tensor: torch.Tensor, group: AdapterGroup) -> torch.Tensor:
        """Return the group's rows as [N, …], or [K, N, …] for stacked adapters."""
        return group.rows(tensor.view(-1, tensor.shape[-1]), self.width)

    def _empty_gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor like x, zero where no adapter of this layer has rows."""
        covered = sum(group.stop - group.start for group in self.groups)
        complete = self.width == 0 or covered == self.plan.num_rows
        return torch.empty_like(x) if complete else torch.zeros_like(x)


def with_update(x: torch.Tensor, y: torch.Tensor, plan: RowPlan, update: Any) -> torch.Tensor:
    """Return y with what adapters add to it in this pass, in place.

    `update`: of a layer or of fused experts; its `add_to` returns what its `gradients` needs in backward.
    """
    if torch.is_grad_enabled():
        return _Adapted.apply(x, y, plan.anchor, update)  # pyright: ignore[reportReturnType]
    update.add_to(x, y)
    return y


class _Adapted(torch.autograd.Function):
    """y + updates, in place, as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, update: Any
    ) -> torch.Tensor:
        ctx.update = update
        ctx.save_for_backward(x, *update.add_to(x, y))
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        (grad_y,) = grad_outputs
        x, *saved = ctx.saved_tensors
        grad_y = (
            grad_y.clone(memory_format=torch.contiguous_format)
            if ctx.update.scales_base
            else grad_y.contiguous()
        )
        grad_x = ctx.update.gradients(grad_y, x, saved, grad_x_wanted=ctx.needs_input_grad[0])
        return grad_x, grad_y, None, None
