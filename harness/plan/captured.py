"""What captured steps of a cohort keep and need on a GPU: the pass itself, run on the meta device.

The whole pass is traced, all blocks of it: nothing goes through autograd, so that a block costs half a
millisecond. Shape suffixes: see `harness.engine.cuda.llama_pass`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from harness.base.targets import adapter_shapes
from harness.config.resources import BackendName, Shard
from harness.config.schema import LoraConfig, RunConfig
from harness.engine.cuda.backend import why_not_captured, why_not_this_model, windows_of
from harness.engine.cuda.llama_pass import LlamaPass
from harness.engine.cuda.ops import TILE
from harness.engine.cuda.seats import Seats, seats_for
from harness.engine.cuda.staging import PassKey, bucket
from harness.plan.model import META, PlannedModel
from harness.plan.prediction import BatchSize
from harness.plan.tracing import LiveBytes


@dataclass(frozen=True, slots=True)
class CapturedBytes:
    """What captured steps take besides the parts."""

    seats: int
    """The buffers of all seats: parameters, gradients, two moments, and what products are taken in."""
    peak: int
    """Live bytes of a pass at most, in the graphs' own pool."""


def plans_captured(model: PlannedModel, config: RunConfig, device: str) -> bool:
    """Say whether a run of this configuration would be computed in captured steps."""
    resources = config.resources
    return (
        device == "cuda"
        and resources.backend in (BackendName.auto, BackendName.cuda)
        and resources.data_parallel == 1
        and resources.shard is Shard.none
        and why_not_captured(config) is None
        and why_not_this_model(model.shared.base) is None
    )


def captured_bytes(
    model: PlannedModel, lora: LoraConfig, batch: BatchSize, cohort: int, *, recompute: bool
) -> CapturedBytes:
    """Return what `cohort` runs alike take, each with such a micro-batch."""
    seats = _seats(model, lora, cohort)
    buffers = (
        seats.parameters_SP,
        seats.gradients_SP,
        seats.means_SP,
        seats.squares_SP,
        seats.computed_SP,
    )
    key = _key(batch, seats.count, cohort, has_dropout=lora.dropout > 0, recompute=recompute)
    _, size = key.places()
    given = key.view(torch.empty(size, dtype=torch.int32, device=META))
    passes = _planned_pass(model)
    passes.turn_to(key.longest)
    live = LiveBytes("cuda")
    with live:
        passes.run(given, seats, recompute=recompute)
    return CapturedBytes(sum(each.nbytes for each in buffers), live.peak)


def _planned_pass(model: PlannedModel) -> LlamaPass:
    names = [spec.name for spec in model.linears]
    return LlamaPass(model.model, names, windows_of(model.model))


def _seats(model: PlannedModel, lora: LoraConfig, cohort: int) -> Seats:
    shapes = adapter_shapes(lora, model.linears)
    layers = {index for index, spec in enumerate(model.linears) if spec.name in shapes}
    rank = max(shape.rank for shape in shapes.values())
    layout = _planned_pass(model).seat_layout(layers, rank)
    head: Any = model.model.get_output_embeddings()
    return Seats(layout, seats_for(cohort), META, head.weight.dtype)


def _key(
    batch: BatchSize, seats: int, cohort: int, *, has_dropout: bool, recompute: bool
) -> PassKey:
    """Return the kind of pass that so many such micro-batches make (`harness.engine.cuda.staging.stage`)."""
    own = batch.rows * batch.length
    rows = -(-own // TILE) * TILE if seats > 1 else own
    examples = cohort * batch.rows + 1
    return PassKey(
        seats=seats,
        positions=bucket(cohort * rows, TILE),
        loss_positions=bucket(cohort * batch.loss_tokens, 16),
        sequences=1 << max(3, examples.bit_length()),
        longest=max(TILE, 1 << (batch.length - 1).bit_length()),
        has_dropout=has_dropout,
        recompute=recompute,
    )
